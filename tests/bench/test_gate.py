"""The gate: its verdicts on times that are given, and its own command on trees that are slower, larger or broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pairing import Measured
from table import show
from trees import GateError
from verdict import BOUND, Interval, check_compared, judge, ratios

ROOT = Path(__file__).resolve().parents[2]
#: Each function takes a fifth longer, in CPU time.
SLOW = """

import time as _time

def _slowed(function):
    def run(*args, **kwargs):
        start = _time.process_time()
        result = function(*args, **kwargs)
        end = _time.process_time()
        while _time.process_time() < end + 0.2 * (end - start):
            pass
        return result
    return run

"""


def measured(ratio: float, noise: float = 0.03, nbytes: int = 1000, blocks: int = 40) -> Measured:
    """Blocks of four turns, of a machine that becomes slower all the time."""
    draw = np.random.default_rng(0)
    found = Measured(nbytes={"base": 1000, "change": nbytes})
    drift = np.linspace(1, 2, 2 * blocks)
    for side, factor in (("base", 1.0), ("change", ratio)):
        for clock in ("cpu", "wall"):
            found.turns[side][clock] = list(factor * drift * draw.lognormal(0, noise, 2 * blocks))
    found.calibration, found.calibrations = ("memcpy", 1000), [0.1] * blocks
    return found


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.02])
def test_noise_passes(ratio: float) -> None:
    assert judge("add", measured(ratio), False).failures == ()


def test_a_fifth_fails() -> None:
    (failure,) = judge("add", measured(1.2), False).failures
    assert "takes 1." in failure
    assert "git diff" in failure


def test_a_fifth_is_not_seen_through_more_noise_than_that() -> None:
    """Who is told so can measure longer: the interval is in the table."""
    row = judge("add", measured(1.2, noise=0.5, blocks=8), False)
    assert row.failures == ()
    assert row.cpu is not None
    assert row.cpu.high > 1.2


def test_waiting_fails_too() -> None:
    found = measured(1.0)
    found.turns["change"]["wall"] = [1.5 * seconds for seconds in found.turns["change"]["wall"]]
    (failure,) = judge("add", found, False).failures
    assert "on the wall" in failure


def test_turns_that_stand_beside_each_other_are_paired() -> None:
    """Each block's ratio is that of its two pairs; a machine half as fast in the second block changes nothing."""
    turns = {"base": {"cpu": [1, 2, 2, 4]}, "change": {"cpu": [2, 4, 4, 8]}}
    assert ratios(turns, "cpu") == pytest.approx([2, 2])


def test_the_interval_is_by_ranks() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 99.0]
    assert Interval.of(values) == Interval(pytest.approx(1.35), 1.0, 99.0)


def test_one_byte_more_fails() -> None:
    (failure,) = judge("add", measured(1.0, nbytes=1001), False).failures
    assert "1 more than the base" in failure
    assert "sizes.csv" in failure


def test_bytes_that_are_recorded_are_reported() -> None:
    row = judge("add", measured(1.0, nbytes=1001), True)
    assert row.failures == ()
    assert "1 bytes more" in row.note
    fewer = judge("add", measured(1.0, nbytes=900), False)
    assert fewer.failures == ()
    assert "100 bytes fewer" in fewer.note


def test_what_the_base_cannot_run_is_new_and_what_the_change_cannot_run_fails() -> None:
    new, gone = Measured(problems={"base": "no such"}), Measured(problems={"change": "no such"})
    assert judge("x", new, False).failures == ()
    assert "new" in judge("x", new, False).note
    assert "cannot run it: no such" in judge("x", gone, False).failures[0]


def test_where_all_is_new_nothing_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a base whose public functions are others; what a library says is shown as it is."""
    new = judge("x", Measured(problems={"base": "no [/such] thing"}), False)
    with pytest.raises(GateError, match=r"none of 1 benchmarks, and nothing was compared: .*no \[/such\] thing"):
        check_compared([new])
    check_compared([new, judge("y", measured(1.0), False)])
    check_compared([judge("x", Measured(problems={"change": "no such"}), False)])  # which fails
    show([new], "0" * 40, Path("gate.json"))
    assert "no [/such] thing" in capsys.readouterr().out


class Checkout:
    """A repository of its own: the files of this one and its built kernels, committed; then patched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("secagg", "secagg_ext", "integrations", "benchmarks"):
            keep = shutil.ignore_patterns("__pycache__", "*.c", ".benchmarks")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=keep)
        shutil.copy(ROOT / "setup.py", folder)
        (folder / ".gitignore").write_text("*.so\n__pycache__\n.benchmarks\n")
        self.git("init", "--quiet")
        self.commit()

    def git(self, *args: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *args], cwd=self.folder, check=True, timeout=60)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "x")

    def append(self, path: str, text: str) -> None:
        with (self.folder / path).open("a", encoding="utf-8") as file:
            file.write(text)

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text(encoding="utf-8")
        assert old in text
        (self.folder / path).write_text(text.replace(old, new), encoding="utf-8")

    def start(self, *args: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "TMPDIR": str(self.folder.parent)}
        return subprocess.Popen(
            [sys.executable, str(self.folder / "benchmarks" / "gate"), *args],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def gate(self, *args: str) -> tuple[int, str]:
        with self.start(*args) as process:
            try:
                output, _ = process.communicate(timeout=3000)
            finally:
                process.kill()
        assert not list(self.folder.parent.glob("secagg-gate-*")), "the base's folder is removed"
        return process.returncode, output

    def results(self) -> dict[str, dict]:
        """The rows that the last run has written."""
        data = json.loads((self.folder / ".benchmarks" / "gate.json").read_text(encoding="utf-8"))["data"]
        return {row["name"]: row for row in data["rows"]}

    def slow(self, path: str, *functions: str, by: float = 0.2) -> None:
        self.append(path, SLOW.replace("0.2", str(by)) + "".join(f"{name} = _slowed({name})\n" for name in functions))

    def grow(self) -> None:
        """Messages of one byte more: that of a site's name."""
        self.replace("secagg/client.py", "self._name = check_site(name)", 'self._name = check_site(name + "x")')


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_a_slower_and_larger_change_fails(checkout: Checkout) -> None:
    """By as much as five seconds tell on a busy machine; the long form finds a fifth."""
    checkout.slow("secagg/client.py", "Client.encrypt", by=0.6)
    checkout.grow()
    code, output = checkout.gate("HEAD", "--only", "encrypt flashe", "--seconds", "5", "--record")
    assert code == 1, output
    row = checkout.results()["encrypt flashe-16"]
    assert row["cpu"]["low"] > BOUND, output
    assert row["nbytes"] == row["base_nbytes"] + 1
    assert "FAIL encrypt flashe-16: takes 1." in output
    assert "1 more than the base" in output
    (line,) = (checkout.folder / "benchmarks" / "results" / "history.jsonl").read_text().splitlines()[-1:]
    kept = json.loads(line)
    assert kept["commit"].endswith("-dirty")
    assert kept["rows"] == [
        {
            "name": "encrypt flashe-16",
            "ratio": row["cpu"]["median"],
            "low": row["cpu"]["low"],
            "high": row["cpu"]["high"],
            "calibrated": row["calibrated"],
            "nbytes": row["nbytes"],
        }
    ]


def test_what_cannot_be_judged(checkout: Checkout) -> None:
    """Ends with 2, and says what to do."""
    code, output = checkout.gate("no-such-commit")
    assert (code, "no commit 'no-such-commit'" in output, "git fetch" in output) == (2, True, True), output
    code, output = checkout.gate("HEAD", "--seconds", "0")
    assert (code, "--seconds is 0; give more than 0" in output) == (2, True), output
    code, output = checkout.gate("HEAD", "--only", "nothing")
    assert (code, "encrypt flashe-16" in output) == (2, True), output
    checkout.append("secagg/__init__.py", "\nraise ImportError('broken')\n")
    checkout.commit()
    checkout.git("checkout", "--quiet", "HEAD~1", ".")
    code, output = checkout.gate("HEAD", "--only", "flatten")
    assert (code, "the base cannot be timed: ImportError: broken" in output) == (2, True), output
    for kernel in (checkout.folder / "secagg_ext" / "_cython").glob("*.so"):
        kernel.unlink()
    code, output = checkout.gate("HEAD~1", "--only", "flatten")
    assert (code, "run `make setup`" in output) == (2, True), output


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_who_breaks_it_off_finds_nothing_left(sign: signal.Signals, checkout: Checkout) -> None:
    with checkout.start("HEAD", "--only", "flatten", "--seconds", "60") as process:
        try:
            deadline = time.monotonic() + 60
            while not list(checkout.folder.parent.glob("secagg-gate-*/base/secagg_ext/_cython/*.so")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1)
            process.send_signal(sign)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + sign, output
    assert "Traceback" not in output
    assert not list(checkout.folder.parent.glob("secagg-gate-*"))


@pytest.mark.long
def test_a_fifth_and_a_byte_fail_everywhere(checkout: Checkout) -> None:
    """In every benchmark; and against itself none fails."""
    code, output = checkout.gate("HEAD", "--seconds", "240")
    assert code == 0, output
    checkout.slow("secagg/client.py", "Client.encrypt", "Client.decrypt", "Client.calibrate")
    checkout.slow("secagg/aggregator.py", "Aggregator.add")
    checkout.slow("secagg_ext/__init__.py", "flatten", "pack_words")
    checkout.grow()
    code, output = checkout.gate("HEAD", "--seconds", "240")
    assert code == 1
    for name, row in checkout.results().items():
        assert row["cpu"]["low"] > BOUND, f"{name}\n{output}"
        assert row["nbytes"] is None or row["nbytes"] > row["base_nbytes"], f"{name}\n{output}"
