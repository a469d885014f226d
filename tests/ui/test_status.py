"""What is said of a server's answer, and what of it needs attention."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from served import Kits, federation

from secagg import Layout
from secagg.errors import QuorumError, SecAggError
from secagg.protocol import ServerStatus
from secagg.trust.kit import load_site_kit
from secagg.ui.status import Report

STATUS = ServerStatus(
    round=0,
    attempt=1,
    state="idle",
    added=(),
    waiting_for=(),
    seconds_left=None,
    uploads_in_flight=0,
    disk_used=0,
    disk_quota=64 << 30,
    epoch=0,
    models=(),
    aggregates=(),
    project_serial=1,
)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("federation"), federation())


@pytest.mark.parametrize("ours", [0, 2])
def test_another_epoch(kits: Kits, ours: int) -> None:
    project = replace(load_site_kit(kits["site-1"]).project, epoch=ours, serial=ours + 1)
    report = Report("fl:1", replace(STATUS, epoch=1, project_serial=2), project, 0.0, project.issued)
    (problem,) = report.problems()
    assert problem.endswith("unpack the newest kit here" if ours == 0 else "and start the server again")


def test_who_skips_is_not_missing(kits: Kits) -> None:
    project = load_site_kit(kits["site-1"]).project
    status = replace(STATUS, state="open", added=("site-1",), skipped=("site-2", "site-3"))
    report = Report("fl:1", status, project, 0.0, project.issued)
    assert report.not_joined == ["site-4"]
    assert "skipped      2: site-2, site-3" in report.text().splitlines()
    assert json.loads(report.json())["skipped"] == ["site-2", "site-3"]


@pytest.mark.parametrize(
    ("stage", "row", "problems"),
    [
        ("", "7, attempt 2, open, 30 s left", ("a sum", "aggregate")),
        (
            "calibration",
            "7, stage calibration, attempt 2, open, 30 s left",
            ("scales", "scales"),
        ),
        ("update", "7, stage update, attempt 2, open, 30 s left", ("a sum", "aggregate")),
    ],
)
def test_which_stage_is_open(kits: Kits, stage: str, row: str, problems: tuple[str, str]) -> None:
    project = load_site_kit(kits["site-1"]).project
    status = replace(STATUS, round=7, attempt=2, state="open", seconds_left=30.0, stage=stage, trouble="disk full")
    report = Report("fl:1", status, project, 0.0, project.issued)
    assert f"round        {row}" in report.text().splitlines()
    assert json.loads(report.json())["stage"] == stage
    failed, trouble = report.problems()
    assert f"round 7 has ended once without {problems[0]}, for too few sites" in failed
    assert trouble == f"the server could not store the {problems[1]} of round 7, and tries again: disk full"


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (
            {"skipped": ("site-2", "site-3"), "stage": "calibration"},
            "site-2, site-3 skip, so 3 calibrations cannot come",
        ),
        ({"skipped": ("site-2", "site-3")}, "site-2, site-3 skip, so 3 updates cannot come"),
        ({"skipped": ("site-2",)}, None),  # two more may come
        ({"skipped": ("site-2", "site-3"), "added": ("site-1", "site-4")}, "site-2, site-3 skip, so 3 .*"),
        ({"skipped": ("site-2", "site-3", "site-4"), "added": ()}, None),  # nobody waits for more
        ({"skipped": ("site-2", "site-3"), "project_serial": 2}, None),  # by a list that this kit has not
    ],
)
def test_a_quorum_that_is_out_of_reach(kits: Kits, state: dict[str, Any], problem: str | None) -> None:
    project = load_site_kit(kits["site-1"]).project
    status = replace(STATUS, **({"state": "open", "added": ("site-1",)} | state))
    report = Report("fl:1", status, project, 0.0, project.issued)
    if problem is None:
        report.check()
        assert "ATTENTION" not in report.text()
    else:
        with pytest.raises(SecAggError, match=f"^{problem}$"):
            report.check()
        assert re.search(f"ATTENTION    {problem}$", report.text(), re.MULTILINE)


@pytest.mark.parametrize(("waiting", "missing"), [(("site-2",), "site-2"), ((), "unknown to this kit, of manifest 1")])
def test_who_is_missing_by_an_older_list(kits: Kits, waiting: tuple[str, ...], missing: str) -> None:
    project = replace(load_site_kit(kits["site-1"]).project, serial=1)
    status = replace(STATUS, attempt=2, state="open", waiting_for=waiting, project_serial=2)
    with pytest.raises(QuorumError, match=f"once without a sum, for too few sites or .* missing: {missing}$"):
        Report("fl:1", status, project, 0.0, project.issued).check()


@pytest.mark.parametrize(
    ("state", "problems"),
    [
        ({"disk_free": None}, ()),
        ({"disk_free": 1 << 30}, ()),
        ({"disk_free": (1 << 30) - 1}, ("has 1.1 GB free, .*: make room",)),
        ({"disk_free": 10_000, "disk_quota": 10_000}, ()),
        ({"disk_free": 9_999, "disk_quota": 10_000}, ("has 10.0 kB free",)),
        ({"disk_used": 9_500, "disk_quota": 10_000, "disk_free": 400}, ("takes 9.5 kB of 10.0 kB", "has 400 bytes")),
        ({"trouble": "No space left on device"}, ("of round 0, and tries again: No space left on device",)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_disks(kits: Kits, state: dict[str, Any], problems: tuple[str, ...]) -> None:
    project = load_site_kit(kits["site-1"]).project
    report = Report("fl:1", replace(STATUS, **state), project, 0.0, project.issued)
    for found, pattern in zip(report.problems(), problems, strict=True):
        assert re.search(pattern, found)
        assert f"ATTENTION    {found}" in report.text()
        assert found in json.loads(report.json())["problems"]
    if problems:
        with pytest.raises(SecAggError, match=problems[-1]):
            report.check()


def test_a_quota_and_a_disk_that_are_small_for_the_model(kits: Kits) -> None:
    layout = Layout.of({"w": np.zeros(100_000_000, np.float32)})
    project = replace(load_site_kit(kits["site-1"]).project, layout=layout)
    status = replace(STATUS, disk_quota=100_000_000)
    report = Report("fl:1", status, project, 0.0, project.issued)
    (problem,) = report.problems()
    assert re.fullmatch(r"rounds take up to [\d.]+ GB, the quota is 100 MB: uploads may be refused; .*", problem)
    report = replace(report, status=replace(STATUS, disk_free=2_000_000_000))
    (problem,) = report.problems()
    assert problem.endswith("has 2.0 GB free, rounds may take more: make room")
