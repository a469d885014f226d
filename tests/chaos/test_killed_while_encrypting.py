"""A site with error feedback dies at a call to the file system while it encrypts, or is started anew at any step.

Whatever happens, the update in its folder and what it left to carry belong together: the global models are bit for bit
those of a federation in which nobody dies.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import power
import pytest
from feedback_sites import NAMES, Site, change, opened, provision
from forking import threads_are_known
from provisioned import Federation as Provisioned

from secagg.site.folder import CARRY_FILE, UPDATE_FILE

from .conftest import Report, Watch
from .crashing import Crash


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return provision(tmp_path_factory.mktemp("feedback"))


@pytest.fixture(scope="module")
def undisturbed(provisioned: Provisioned, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The global models of sites that live."""
    models = []
    with opened(provisioned, tmp_path_factory.mktemp("undisturbed")) as start:
        sites = [start(name) for name in NAMES]
        for _ in range(20):
            for site in sites:
                site.upload()
            for site in sites:
                site.receive()
            models.append(sites[0].model.state["w"].tobytes())
    return models


def dies(site: Site, call: int, shadow: Path | None = None, attempt: int = 0) -> bool:
    """Let a fork of a site encrypt, and kill it before a call; return whether it came so far."""
    options = {"folder": str(site.folder), "call": call}
    if shadow is not None:
        shutil.rmtree(shadow, ignore_errors=True)
        shadow.mkdir()
        options["shadow"] = str(shadow)
    with threads_are_known():
        child = os.fork()
    if not child:
        try:
            Crash(options).install()
            site.encrypt(attempt)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kept", [None, 0.0, 0.5], ids=["kill", "power", "power-half"])
def test_a_death_at_every_call(
    kept: float | None,
    provisioned: Provisioned,
    undisturbed: list[bytes],
    tmp_path: Path,
    seed: int,
    watch: Watch,
    report: Report,
) -> None:
    rng, models, found = random.Random(seed), [], {True: 0, False: 0}
    shadow = None if kept is None else tmp_path / "shadow"
    with opened(provisioned, tmp_path) as start:
        others, dead = [start(name) for name in NAMES[1:]], True
        while dead:
            watch()
            dead = dies(start(NAMES[0]), len(models) + 1, shadow)
            if dead and kept is not None:
                assert shadow is not None
                power.fail(tmp_path / NAMES[0], shadow, rng, kept)
            site = start(NAMES[0])
            assert not site.reporter.warnings
            found[site.participant.has_update()] += 1
            for each in (site, *others):
                each.upload()
            for each in (site, *others):
                each.receive()
            models.append(site.model.state["w"].tobytes())
    assert len(models) > 8
    assert found[False] > 6
    assert found[True] > 0
    assert models == undisturbed[: len(models)]
    report(f"seed {seed}: {len(models) - 1} deaths; {found[True]} times the update was there")


@pytest.mark.parametrize("kept", [None, 0.0, 0.5], ids=["kill", "power", "power-half"])
def test_a_death_while_a_round_is_encrypted_again(
    kept: float | None, provisioned: Provisioned, tmp_path: Path, seed: int
) -> None:
    """What is to be carried is always that of the update in the folder, the first or the second one."""
    rng, seen, call, dead = random.Random(seed), set(), 0, True
    shadow = None if kept is None else tmp_path / "shadow"
    with opened(provisioned, tmp_path) as start:
        folder = tmp_path / NAMES[0]
        while dead:
            call += 1
            site = start(NAMES[0])
            site.encrypt(attempt=1)
            first, carry = (folder / UPDATE_FILE).read_bytes(), site.model.site.carry()
            dead = dies(site, call, shadow)
            if dead and kept is not None:
                assert shadow is not None
                power.fail(folder, shadow, rng, kept)
            site.model.encrypt({"w": site.model.state["w"] + change(0, NAMES[0], 0)}, 2.0)
            left = (folder / CARRY_FILE).read_bytes()
            there = (folder / UPDATE_FILE).read_bytes() if (folder / UPDATE_FILE).exists() else None
            which = "none" if there is None else "first" if there == first else "second"
            seen.add(which)
            belongs = {"first": carry, "second": site.model.site.carry()}
            assert left == belongs[which] if which in belongs else left in belongs.values()
    assert seen == {"none", "first", "second"}


def test_a_site_that_is_started_anew_at_every_step(
    provisioned: Provisioned, undisturbed: list[bytes], tmp_path: Path
) -> None:
    models = []
    with opened(provisioned, tmp_path) as start:
        for _ in range(8):
            for name in NAMES:
                start(name).encrypt()
            for name in NAMES:
                start(name).upload()
            models.append({start(name).model.state["w"].tobytes() for name in NAMES})  # they catch up
    assert models == [{model} for model in undisturbed[:8]]
    assert (tmp_path / "a" / CARRY_FILE).stat().st_mode & 0o777 == 0o600
    assert not list((tmp_path / "a").glob(f"{UPDATE_FILE}?*"))
