"""What a site of `secagg site` does with a carry in its folder that it cannot use: it says so, and goes on without."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from feedback_sites import NAMES, Site, opened, provision
from provisioned import Federation as Provisioned

from secagg.site.folder import CARRY_FILE, MODEL_FILE, UPDATE_FILE
from secagg.wire.carry import StoredCarry


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("feedback"))


def run_round(start: Callable[[str], Site]) -> list[Site]:
    sites = [start(name) for name in NAMES]
    for site in sites:
        site.upload()
    for site in sites:
        site.receive()
    return sites


def changed(path: Path, **changes: object) -> bytes:
    stored = StoredCarry.from_bytes(path.read_bytes())
    site = changes.pop("site", stored.site)
    return replace(stored, carry=replace(stored.carry, **changes), site=site).to_bytes()  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Callable[[Path], bytes | None], str]] = {
    "damaged": (lambda path: path.read_bytes()[:-1] + b"x", "is damaged"),
    "another version": (lambda path: b"x" * 100, "is damaged"),
    "of another model": (lambda path: changed(path, model="ab" * 32), "it is of another model"),
    "of a later round": (lambda path: changed(path, round=9), "it is of round 9, the global model of round 1"),
    "of another site": (lambda path: changed(path, site="b"), "of site 'b', this is 'a'"),
    "missing": (lambda path: None, "the file is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_carry_that_cannot_be_used(fault: str, provisioned: Provisioned, tmp_path: Path) -> None:
    make, message = FAULTS[fault]
    path = tmp_path / "a" / CARRY_FILE
    with opened(provisioned, tmp_path) as start:
        run_round(start)
        blob = make(path)
        path.unlink() if blob is None else path.write_bytes(blob)
        site = start("a")
        (warning,) = site.reporter.warnings
        assert warning.startswith(f"{path}: what error feedback carried to the next update is lost: ")
        assert re.search(message, warning)
        assert not site.model.site.carries
        site.encrypt()  # without a warning of the client besides
        assert path.read_bytes() == site.model.site.carry()
        assert not start("a").reporter.warnings


def test_who_joins_late_is_warned_of_nothing(provisioned: Provisioned, tmp_path: Path) -> None:
    """Nor is one that has caught up by itself, and ended before its first update."""
    with opened(provisioned, tmp_path) as start:
        run_round(start)
        for name in (CARRY_FILE, UPDATE_FILE, MODEL_FILE):
            (tmp_path / "a" / name).unlink()
        for _ in range(2):
            site = start("a")
            assert site.model.round == 1
            assert not site.reporter.warnings
        site.encrypt()


def test_after_the_last_round_the_carry_stays_with_the_model(provisioned: Provisioned, tmp_path: Path) -> None:
    with opened(provisioned, tmp_path) as start:
        site, *_ = run_round(start)
        site.participant.clear()
        assert not (site.folder / UPDATE_FILE).exists()
        assert start("a").model.site.carry() == site.model.site.carry() != b""
