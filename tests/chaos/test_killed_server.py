"""`kill -9` of the server at random moments of rounds with five sites.

What a site has a receipt for is in the aggregate of its round, once; and that aggregate is, byte for byte, the one of
an `Aggregator` that adds the same updates without a server.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from five_sites import SITES, FiveSites, make_kits
from mortal import MortalServer

from .conftest import Report, Watch

# CPython drops an SSL socket unclosed if the connection is reset before the handshake.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <ssl\.SSLSocket:ResourceWarning")


@pytest.mark.parametrize(
    ("scheme", "kills"),
    [
        pytest.param("flashe", 4, id="flashe"),
        pytest.param("bgv", 2, id="bgv"),
        pytest.param("auto", 4, id="auto"),
        pytest.param("flashe", 200, id="flashe-200", marks=pytest.mark.long),
        pytest.param("bgv", 60, id="bgv-60", marks=pytest.mark.long),
        pytest.param("auto", 200, id="auto-200", marks=pytest.mark.long),
    ],
)
def test_kill_at_random_moments(
    scheme: str, kills: int, tmp_path: Path, seed: int, watch: Watch, report: Report
) -> None:
    rng, began = random.Random(seed), time.monotonic()
    kits = make_kits(tmp_path, scheme)
    moments: Counter[str] = Counter()
    with (
        MortalServer(kits["server"], tmp_path / "server") as server,
        FiveSites(kits, tmp_path / "sites", server.address) as five,
    ):
        server.start()
        five.join()
        seconds = five.time_rounds(server.run)
        while sum(moments.values()) < kills:
            watch()
            five.prepare()
            futures = five.begin()
            time.sleep(rng.uniform(0, 1.2 * seconds))
            while True:
                moments[moment(server)] += 1
                server.kill()
                server.start()
                # Some are killed once more: while they start, when sites come back, or at the end of the round.
                if rng.random() < 0.5 or sum(moments.values()) == kills:
                    break
                if rng.random() < 0.7:
                    server.wait_until_it_listens()
                time.sleep(rng.uniform(0, 1.0))
            for future in futures:
                future.result()
            assert len(five.ledger.check_new(server.run)) == 1
        watch()
        five.play()
        five.ledger.check_new(server.run)
        server.stop()
    ledger = five.ledger
    assert ledger.acknowledged == len(SITES) * ledger.checked
    report(
        f"seed {seed}: {sum(moments.values())} kills, {server.lives} starts, {ledger.checked} rounds, "
        f"{ledger.acknowledged} updates acknowledged, all in the sum once; {time.monotonic() - began:.0f} s. "
        f"Acknowledged + on their way when killed: {dict(sorted(moments.items()))}"
    )


def moment(server: MortalServer) -> str:
    """How far the round is: updates acknowledged, and on their way; before the first of them, calibrations."""
    if not server.listens:
        return "starting"
    patterns = ("round-*/*.update", "spool/*.part", "round-*/*.calibration", "spool/*.calibration")
    added, parts, calibrated, calibrating = (len(list(server.run.glob(pattern))) for pattern in patterns)
    return f"{added}+{parts}" if added or parts else f"{calibrated}+{calibrating} calibrations"
