"""`secagg site` as processes that are killed, stopped and started again."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from provisioned import Federation, Secagg
from served import Served

import secagg as library
from secagg.site.folder import MODEL_FILE, RECEIPT_FILE, TRAINED_FILE, UPDATE_FILE
from secagg.trust.kit_files import PROJECT_FILE, locked

SITES = ("a", "b", "c")
ROUNDS = 2
TASK = Path(__file__).parents[1] / "support" / "slow_task.py"
#: What a round adds to the model at each site, and so to their mean.
STEPS = (0.1, 0.2, 0.3)


class SiteProcess:
    """`secagg site`; `log` is what all its starts wrote."""

    def __init__(self, kit: Path, folder: Path, address: str, step: float) -> None:
        self.kit = kit
        self.report = folder / f"{kit.name}.jsonl"
        self._log = folder / f"{kit.name}.log"
        self._command = [sys.executable, "-m", "secagg.cli", "site", str(kit), "--server", address]
        self._command += ["--task", f"{TASK}:Slow", "--option", f"step={step}", "--rounds", str(ROUNDS)]
        self._command += ["--report", str(self.report)]
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.report.read_text().splitlines()]

    def wait_for(self, pattern: str) -> None:
        self.wait_until(lambda: re.search(pattern, self.log) is not None)

    def wait_until(self, condition: Any) -> None:
        deadline = time.monotonic() + 900
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(240)


@contextlib.contextmanager
def processes(federation: Federation, folder: Path, address: str) -> Iterator[list[SiteProcess]]:
    sites = [SiteProcess(federation[name], folder, address, step) for name, step in zip(SITES, STEPS, strict=True)]
    try:
        for site in sites:
            site.start()
        yield sites
    finally:
        for site in sites:
            site.process.kill()
            site.process.wait()


def test_sites_that_are_killed_and_stopped_go_on(federation: Federation, tmp_path: Path) -> None:
    with (
        Served(federation["server"], tmp_path / "served") as served,
        processes(federation, tmp_path, served.address) as (a, b, c),
    ):
        a.wait_for(r"round 0 \(1 of 2\): train")
        assert a.end(signal.SIGKILL) == -signal.SIGKILL
        b.wait_until((b.kit / RECEIPT_FILE).exists)
        assert b.end(signal.SIGINT) == 130
        assert b.log.endswith("secagg: stopped; the same command, started again, goes on\n")
        update = (b.kit / UPDATE_FILE).read_bytes()
        b.start()
        b.wait_for(r"round 0 \(1 of 2\): going on with the update that was encrypted before")
        a.start()
        c.wait_for(r"round 1 \(2 of 2\): train")
        assert c.end(signal.SIGKILL) == -signal.SIGKILL
        c.start()
        c.wait_for("going on from its own global model, of round 1")
        for site in (a, b, c):
            assert site.process.wait(900) == 0, site.log
            assert "Traceback" not in site.log
            assert site.log.count("sum of 3 updates, verified") >= 1
        assert library.Update.from_bytes(update).header.contributions[0] in _contributions(served.folder / "run", 0)
        finals = {site.log.splitlines()[-1] for site in (a, b, c)}
        assert len(finals) == 1
        mean = float(finals.pop().removeprefix("2 rounds are done: mean "))
        assert abs(mean - ROUNDS * sum(STEPS) / len(STEPS)) < ROUNDS / 1023  # a step of 11 bits a round
        records = b.records
        assert [record["round"] for record in records] == [0, 1]
        assert (records[0]["train_seconds"], records[0]["encrypt_seconds"]) == (0, 0)
        assert all(record["verified"] for record in records)
        assert sorted(path.name for path in (served.folder / "run").glob("model-*")) == [
            "model-1.secagg",
            "model-2.secagg",
        ]
        # A site that comes when all is done gets the model that the others have made.
        (a.kit / MODEL_FILE).unlink()
        a.start()
        assert a.process.wait(900) == 0, a.log
        assert re.search("going on from the global model of round 2 that [abc] has stored", a.log)
        assert a.log.splitlines()[-1] == b.log.splitlines()[-1]


def test_a_site_that_is_killed_while_it_waits_for_the_scales_of_a_round(tmp_path: Path) -> None:
    """It does not train again, and nobody has told it how large what it sends is."""
    federation = Federation.make(tmp_path / "made", aggregation={"min_clients": 3, "max_clients": 5})
    with (
        Served(federation["server"], tmp_path / "served") as served,
        processes(federation, tmp_path, served.address) as (a, b, c),
    ):
        a.wait_for(r"round 0 \(1 of 2\): train")
        assert a.end(signal.SIGKILL) == -signal.SIGKILL
        b.wait_for("round 0: calibrate, and wait for others")
        b.wait_until((b.kit / TRAINED_FILE).exists)
        assert b.end(signal.SIGKILL) == -signal.SIGKILL
        b.start()
        b.wait_for(r"round 0 \(1 of 2\): going on with what was trained before")
        a.start()
        for site in (a, b, c):
            assert site.process.wait(900) == 0, site.log
            assert "Traceback" not in site.log
            assert len(re.findall(r"^round \d \(\d of 2\): [\d.]+ bits a value$", site.log, re.MULTILINE)) == 2
            assert all(record["calibration_nbytes"] > 0 and record["clipped"] == 0 for record in site.records)
        assert b.log.count("round 0 (1 of 2): train") == 1
        assert b.records[0]["train_seconds"] == 0
        finals = {site.log.splitlines()[-1] for site in (a, b, c)}
        assert len(finals) == 1
        mean = float(finals.pop().removeprefix("2 rounds are done: mean "))
        due = max(STEPS) * 2**0.5 / 63 / 2  # half a step of 7 bits: what was dropped in round 0 has been paid back
        assert abs(mean - ROUNDS * sum(STEPS) / len(STEPS)) < due


def _contributions(folder: Path, round: int) -> tuple[Any, ...]:
    with library.Update.open(folder / f"aggregate-{round}.secagg") as aggregate:
        return aggregate.header.contributions


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("no kit", 3, "is no kit"),
        ("server's kit", 3, "is the server's kit; give that of a site"),
        ("expired", 3, "expired on"),
        ("revoked", 3, "has been revoked"),
        ("other signing key", 3, "which the manifest gives to none of"),
    ],
)
def test_a_kit_that_is_of_no_use(
    secagg: Secagg, federation: Federation, tmp_path: Path, change: str, code: int, message: str
) -> None:
    kit, project, authority = federation["a"], federation.provisioner.project, federation.provisioner.identity
    if change == "no kit":
        kit = tmp_path / "nothing"
    elif change == "server's kit":
        kit = federation["server"]
    elif change == "expired":
        replace(project, issued=1, expires=2).save(kit / PROJECT_FILE, authority)
    elif change == "revoked":
        sites = tuple(replace(site, revoked=site.name == "a") for site in project.sites)
        replace(project, sites=sites).save(kit / PROJECT_FILE, authority)
    else:
        library.Identity.generate().save(kit / "signing.key")
    before = {path.name for path in kit.iterdir()} if kit.exists() else set()
    result = secagg("site", kit, "--server", "127.0.0.1:1")
    assert (result.returncode, "Traceback" in result.stderr) == (code, False), result.stderr
    assert message in result.stderr
    assert before == ({path.name for path in kit.iterdir()} if kit.exists() else set())


@pytest.mark.parametrize(
    "arguments",
    [("--rounds", 0), *(("--option", option) for option in ("threads=0", "seed=-1", "seed=0.5", "part=3/2", "part=1"))],
)
def test_options_that_cannot_be(secagg: Secagg, federation: Federation, arguments: tuple[object, ...]) -> None:
    result = secagg("site", federation["a"], "--server", "127.0.0.1:1", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_another_process_of_the_site(secagg: Secagg, federation: Federation) -> None:
    with locked(federation["a"]):
        result = secagg("site", federation["a"], "--server", "127.0.0.1:1")
    assert result.returncode == 2
    assert "another `secagg site` is at work" in result.stderr


def test_nobody_there(secagg: Secagg, federation: Federation) -> None:
    result = secagg("site", federation["a"], "--server", "127.0.0.1:1", "--timeout", 1)
    assert result.returncode == 5, result.stderr
    assert "joining failed" in result.stderr
