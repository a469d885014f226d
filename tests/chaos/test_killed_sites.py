"""`kill -9` of site processes, while connections break: who comes back goes on, and every sum is right."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from five_sites import SITES, Ledger, make_kits
from mortal import MortalServer
from proxy import Fault, Proxy
from served import Kits

import secagg

from .conftest import Report, Watch

SCRIPT = Path(__file__).parent / "mortal_site.py"
TYPED_ERROR = 3


class Process:
    """A site's process, started as often as it must."""

    def __init__(self, kits: Kits, name: str, address: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.name, self.folder = name, folder
        self._command = [sys.executable, "-W", "error", str(SCRIPT), str(kits[name]), address, str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log)

    def kill(self) -> bool:
        """Kill it; return whether it still lived."""
        assert self._process is not None
        self._process.kill()
        return self._process.wait() == -signal.SIGKILL

    def go_on(self) -> str | None:
        """Start it again if it has ended with a typed error, and return that."""
        assert self._process is not None
        code = self._process.poll()
        log = (self.folder / "log").read_text()
        assert code in (None, 0, TYPED_ERROR), log
        assert not (self.folder / "lost").exists(), (self.folder / "lost").read_text()
        if code != TYPED_ERROR:
            return None
        self.start()
        return log.splitlines()[-1]

    @property
    def done(self) -> bool:
        assert self._process is not None
        return self._process.poll() == 0

    def tell(self, ledger: Ledger, round: int) -> None:
        """Tell the ledger what this site has of a round."""
        for path in self.folder.glob(f"offer-{round}-*"):
            ledger.offer(secagg.Update.from_bytes(path.read_bytes()))
            path.unlink()
        receipt = self.folder / f"receipt-{round}"
        if receipt.exists():
            ledger.acknowledge(round, self.name, secagg.Receipt.from_bytes(receipt.read_bytes()))

    def mean(self, round: int) -> bytes | None:
        path = self.folder / f"mean-{round}"
        return path.read_bytes() if path.exists() else None


@contextmanager
def site_processes(kits: Kits, address: str, folder: Path) -> Iterator[list[Process]]:
    processes = [Process(kits, name, address, folder / name) for name in SITES]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def check_new(ledger: Ledger, sites: list[Process]) -> None:
    """Check the rounds that were not yet, and of which every site has the mean."""
    while True:
        round = max(ledger.bases)
        means = {site.mean(round) for site in sites}
        if None in means:
            return
        for site in sites:
            site.tell(ledger, round)
        aggregate = secagg.Update.from_bytes((sites[0].folder / f"aggregate-{round}").read_bytes())
        ledger.check(aggregate)
        mean = ledger.client.decrypt(aggregate, round=round)["w"]
        assert means == {aggregate.digest() + sha256(mean.tobytes()).digest()}
        for site in sites:
            (site.folder / f"aggregate-{round}").unlink()


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.long)])
def test_killed_sites(kills: int, tmp_path: Path, seed: int, watch: Watch, report: Report) -> None:
    rng, began, done = random.Random(seed), time.monotonic(), 0
    kits = make_kits(tmp_path, "flashe", 500_000)
    ledger, errors = Ledger(kits), Counter[str]()
    server = MortalServer(kits["server"], tmp_path / "server", idle_seconds=5)
    with server, Proxy(server.port) as proxy:
        server.start()
        for name in SITES:  # no round ends without one of them, however late it starts
            with kits.session(name, server.address) as session:
                session.join()
        with site_processes(kits, proxy.address, tmp_path / "sites") as sites:
            while done < kills:
                watch()
                time.sleep(rng.uniform(0.5, 3.0))
                for site in rng.sample(sites, rng.choice([1, 1, 1, 2, 2, 5])):
                    done += site.kill()
                    if rng.random() < 0.3:
                        proxy.faults.append(Fault.draw(rng, ("drop", "reset", "slow"), 1_500_000))
                    site.start()
                errors.update(filter(None, (site.go_on() for site in sites)))
                check_new(ledger, sites)
            for site in sites:
                (site.folder / "last").write_text(str(max(ledger.bases) + 2))
            while not all(site.done for site in sites):
                time.sleep(0.05)
                errors.update(filter(None, (site.go_on() for site in sites)))
                check_new(ledger, sites)
            check_new(ledger, sites)
        server.stop()
    assert ledger.checked >= 3
    report(
        f"seed {seed}: {done} kills, {proxy.connections} connections, {len(proxy.struck)} of them cut or slowed; "
        f"{ledger.checked} rounds right, {ledger.acknowledged} receipts in hand; sites ended by errors: "
        f"{dict(errors)}; {time.monotonic() - began:.0f} s"
    )
