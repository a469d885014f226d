"""``secagg bench clara``: the short form as a process that is killed and goes on, and what its tables make of rows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from secagg.bench.clara.cell import Cell, make_row
from secagg.bench.clara.federations import RoundCost, SiteCost
from secagg.bench.clara.progress_file import Options, WorkingFolder
from secagg.bench.clara.published import ROUND_SECONDS
from secagg.bench.clara.run import cells, check_options, run_clara
from secagg.bench.clara.settings import TITLES, WHOLE
from secagg.bench.clara.summary import Interval, best, dice_differences, lines, targets
from secagg.bench.clara.tables import print_tables
from secagg.bench.results import Results
from secagg.cli import main
from secagg.errors import ConfigError, FormatError

SHORT = ["--network", "small", "--sites", "2", "--rounds", "2", "--seeds", "1", "--many", "3"]


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "secagg.cli", "bench", "clara", *(options or SHORT), "--out", str(out)]


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "clara.json"
    with subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()  # a round is done, the next one has begun
        servers = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert line.startswith("2 sites, seed 0, round 0 (1 of 2): Dice raw 0.")
    assert len(servers) == len(TITLES) - 1
    deadline = time.monotonic() + 60
    while any(map(is_alive, servers)):
        assert time.monotonic() < deadline, "servers outlive the run"
        time.sleep(0.05)
    work = tmp_path / "clara.json.work"
    assert os.stat(work).st_mode & 0o777 == 0o700

    others = Options(sites=(2,), rounds=3, seeds=1, many=3, network="small")
    with pytest.raises(ConfigError, match=r"work holds a run with --rounds 2, this one has --rounds 3"):
        run_clara(others, out)

    done = subprocess.run(command(out), capture_output=True, text=True, check=True)
    assert "2 sites, seed 0: going on after 1 round\n" in done.stdout
    assert "round 0" not in done.stdout
    assert not work.exists()
    data = Results.load(out, "clara").data
    (cell,) = data["cells"]
    assert Counter((row["setting"], row["round"]) for row in cell["rows"]) == Counter(
        (setting, round) for setting in TITLES for round in range(2)
    )
    assert cell["resumed"] == [1]
    check_rows(cell["rows"])
    assert [row["setting"] for row in data["many"]["rows"]] == list(WHOLE)
    for row in data["many"]["rows"]:
        assert all(len(row[f"{step}_seconds"]) == 3 for step in ("encrypt", "upload", "decrypt"))
    assert data["targets"] == []  # what 100,000 parameters cost is nothing
    assert "Clara's table" in done.stdout
    assert "HE three" in done.stdout


def check_rows(rows: list[dict[str, Any]]) -> None:
    raw = {row["round"]: row for row in rows if row["setting"] == "raw"}
    for row in rows:
        # Training is the same, and so is its sum, but for what the setting rounds.
        assert row["dice"] == pytest.approx(raw[row["round"]]["dice"], abs=0.02)
        assert row["round_seconds"] > row["train_seconds"] > 0
        assert row["upload_seconds"] > 0
        assert row["add_seconds"] > 0
        assert (row["encrypt_seconds"] > 0) == (row["setting"] != "raw")
    size = {row["setting"]: row["nbytes"] for row in rows}
    assert size["raw"] == 4 * 108_346 + 8
    assert size["smallest"] < size["exact"] < size["raw"] < size["three"] < size["full"]


@pytest.mark.long
def test_the_whole_network(tmp_path: Path) -> None:
    out = tmp_path / "clara.json"
    subprocess.run(command(out, "--sites", "2", "--rounds", "2", "--seeds", "2", "--many", "3"), check=True)
    data = Results.load(out, "clara").data
    assert data["model"]["parameters"] == 4_700_914
    assert [len(cell["rows"]) for cell in data["cells"]] == [2 * len(TITLES), 2 * len(WHOLE)]
    assert len(data["targets"]) == 6


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    servers: list[int] = []

    def interrupt(*row: object) -> None:
        servers.extend(children_of(os.getpid()))
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("secagg.bench.clara.cell.make_row", interrupt)
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)  # a command sets its own
    before = set(children_of(os.getpid()))
    assert main(["bench", "clara", *SHORT, "--out", str(tmp_path / "clara.json")]) == 130
    assert "the same command, started again, goes on from the last whole round" in capsys.readouterr().err
    assert len(set(servers) - before) == len(TITLES) - 1
    assert set(children_of(os.getpid())) <= before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no keys, above all


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(sites=(1,)), "--sites has 1; the brain can be shared by 2 to 24 sites"),
        (Options(sites=(2, 25)), "--sites has 25"),
        (Options(sites=(2, 4, 2)), "--sites has a number twice: 2 4 2"),
        (Options(rounds=0), "--rounds is 0; use 1 or more"),
        (Options(seeds=0), "--seeds is 0; use 1 or more"),
        (Options(many=1), "--many is 1; use 2 or more"),
        (Options(many=-1), "--many is -1; use 2 or more"),
        (Options(many=10_001), "--many is 10001; use 10000 or less"),
    ],
)
def test_options_of_no_use(tmp_path: Path, options: Options, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_clara(options, tmp_path / "clara.json")
    assert not list(tmp_path.iterdir())


def test_cells() -> None:
    options = Options(sites=(4, 2), seeds=3, many=0)
    check_options(options)
    assert cells(options) == [
        Cell(4, 0, tuple(TITLES)),
        Cell(2, 0, tuple(TITLES)),
        Cell(2, 1, WHOLE),
        Cell(2, 2, WHOLE),
    ]


def test_the_working_folder(tmp_path: Path) -> None:
    options, cell, folder = Options(rounds=2), Cell(2, 0, ("raw", "full")), tmp_path / "work"
    rows = [{"setting": setting, "round": 0} for setting in cell.settings]
    with WorkingFolder.open(folder, options) as work:
        assert (work.rounds_done(cell), work.models(cell)) == (0, {})
        work.add_round(cell, rows, {"raw": {"a.b": [1.0, 2.0]}, "full": {"a.b": [3.0]}}, last=False)
        with pytest.raises(ConfigError, match="another process is at work"), WorkingFolder.open(folder, options):
            pass
    with WorkingFolder.open(folder, options) as work:
        assert work.rounds_done(cell) == 1
        assert work.models(cell)["raw"]["a.b"].tolist() == [1.0, 2.0]
        whole = (folder / "models-0.npz").read_bytes()
        (folder / "models-0.npz").write_bytes(whole[:99])
        with pytest.raises(FormatError, match="is damaged: remove"):
            work.models(cell)
        work.add_round(cell, [row | {"round": 1} for row in rows], {}, last=True)
        assert work.models(cell) == {}
        assert [path.name for path in folder.iterdir()] == ["progress.json"]
        assert [(row["setting"], row["round"]) for row in work.cells[0]["rows"]] == [
            ("raw", 0),
            ("full", 0),
            ("raw", 1),
            ("full", 1),
        ]
    with (
        pytest.raises(ConfigError, match=r"run with --sites 2 4 8 --many 30, this one has --sites 2 --many 0"),
        WorkingFolder.open(folder, Options(sites=(2,), rounds=2, many=0)),
    ):
        pass
    for text in ("{", "[]", '{"options": {}}'):
        (folder / "progress.json").write_text(text)
        with pytest.raises(FormatError, match="not the progress of a run"), WorkingFolder.open(folder, options):
            pass


def test_a_round_takes_as_long_as_its_slowest_site() -> None:
    sites = [
        SiteCost(nbytes=100, train=10.0, encrypt=1.0, upload=2.0, download=0.5, decrypt=0.25),
        SiteCost(nbytes=102, train=8.0, encrypt=2.0, upload=4.0, download=0.25, decrypt=0.75),
    ]
    row = make_row("full", 3, 0.9, RoundCost(sites, add=0.125))
    assert row == {
        "setting": "full",
        "round": 3,
        "dice": 0.9,
        "nbytes": 101,
        "train_seconds": 9.0,
        "encrypt_seconds": 1.5,
        "upload_seconds": 3.0,
        "download_seconds": 0.375,
        "decrypt_seconds": 0.5,
        "add_seconds": 0.125,
        "round_seconds": 14.0 + 0.125 + 1.0,
    }


def row(
    setting: str, round: int, dice: float, seconds: float, encrypt: float = 0.0, upload: float = 1.0
) -> dict[str, Any]:
    steps = {"encrypt": encrypt, "upload": upload, "add": 0.5, "download": 0.25, "decrypt": 0.0}
    times = {f"{step}_seconds": time for step, time in steps.items()}
    return {"setting": setting, "round": round, "dice": dice, "nbytes": 10, "round_seconds": seconds, **times}


CELL = {
    "sites": 2,
    "seed": 0,
    "rows": [
        row("raw", 0, 0.5, 10.0),
        row("full", 0, 0.4, 12.0, encrypt=1.0, upload=1.5),
        row("raw", 1, 0.7, 20.0),
        row("full", 1, 0.8, 25.0, encrypt=2.0, upload=1.5),
        row("raw", 2, 0.7, 30.0),
        row("full", 2, 0.6, 32.0, encrypt=3.0, upload=1.5),
    ],
}


def test_lines() -> None:
    raw, full = lines(CELL)
    assert (raw.setting, raw.seconds, raw.dice, raw.round, raw.increase) == ("raw", 60.0, 0.7, 1, 0.0)
    assert (full.setting, full.sites, full.nbytes, full.seconds, full.dice, full.round) == ("full", 2, 10, 69.0, 0.8, 1)
    assert full.increase == pytest.approx(15.0)
    # Longer by 2, 5 and 2 seconds: 3 ± 4.303 · √3 / √3; of which encryption is 1.5, 2.5 and 3.5: 2.5 ± 4.303 / √3.
    assert full.paired.mean == pytest.approx(3.0)
    assert full.paired.half == pytest.approx(4.302653, abs=1e-5)
    assert full.parts == {"encrypt": 2.0, "upload": 0.5, "add": 0.0, "download": 0.0, "decrypt": 0.0}
    assert full.added.mean == pytest.approx(2.5)
    assert full.added.half == pytest.approx(4.302653 / 3**0.5, abs=1e-5)
    assert full.noise == pytest.approx(0.5)


def test_the_best_round_is_the_first_that_has_the_best_dice() -> None:
    assert best(CELL["rows"][::2])["round"] == 1  # type: ignore[index]


def test_an_interval_of_one_value_is_none() -> None:
    assert Interval.of([1.0]).farthest == float("inf")
    assert Interval.of([1.0, 1.0]) == Interval(1.0, 1.0, 1.0)


def seeds(*differences: float) -> list[dict[str, Any]]:
    """Cells whose best Dice differ by so much, and whose last by nothing."""
    return [
        {
            "sites": 2,
            "seed": seed,
            "rows": [
                *(row("raw", number, dice, 10.0) for number, dice in enumerate((0.9, 0.5))),
                *(
                    row(setting, number, dice, 11.0, encrypt=1.0)
                    for setting in ("full", "exact", "smallest")
                    for number, dice in enumerate((0.9 - difference, 0.5))
                ),
            ],
        }
        for seed, difference in enumerate(differences)
    ]


def test_targets() -> None:
    cells = seeds(0.01, 0.02, 0.03)
    assert dice_differences(cells, "full", 2) == pytest.approx([0.01, 0.02, 0.03])
    assert dice_differences(cells, "full", 2, last=True) == [0.0, 0.0, 0.0]
    assert dice_differences(cells, "full", 4) == []
    added, other, third, dice, *_ = targets(cells)
    assert added["measured"] == pytest.approx(100 / ROUND_SECONDS)  # a second
    assert [target["met"] for target in (added, other, third)] == [True, True, True]
    # 0.02 ± 4.303 · 0.01 / √3
    assert dice["measured"] == pytest.approx(0.02 + 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert not dice["met"]
    assert dice["detail"].startswith("3 seeds at 2 sites, ")
    assert dice["detail"].endswith("; raw's best: 0.900")  # where nothing was learnt, nothing differs
    assert all(target["met"] for target in targets(seeds(-0.01, -0.0101, -0.0099)))
    slow = [cell | {"rows": [row | {"encrypt_seconds": 2.0} for row in cell["rows"]]} for cell in seeds(0.0)]
    for line in slow[0]["rows"][:2]:
        line["encrypt_seconds"] = 0.0
    assert [target["met"] for target in targets(slow)] == [True, False, False]  # 1.1 %, of 5, 1 and 1; no Dice
    assert json.loads(json.dumps(targets(cells))) == targets(cells)


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    times = {f"{step}_seconds": [1.0, 2.0, 3.0] for step in ("encrypt", "upload", "decrypt")}
    many = {"sites": 3, "rows": [{"setting": "full", "nbytes": 2_000_000, **times}]}
    print_tables({"cells": [CELL], "rounds": 3, "many": many, "targets": targets(seeds(0.01, 0.02, 0.03))})
    text = capsys.readouterr().out
    full = next(line for line in text.splitlines() if line.strip().startswith("HE full"))
    ours_and_theirs = "0.00 283 2 69.0 s 5:57:05 0.800 1 0.949 at 931 +15.0 +20.1"
    assert full.split()[2:] == ours_and_theirs.split()
    assert "+2.500 ± 2.484" in text
    assert text.count("2.000 ± 1.000") == 3
