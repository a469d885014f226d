"""Connections that are cut in the middle of frames, stall and crawl; segments that come twice, late or never.

Every site ends right, or with a typed error, in bounded time; whatever sum there is, is the right one. Under TLS a
spoilt segment breaks the connection. Without it, it reaches HTTP/2, protobuf and the container.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from five_sites import SITES, FiveSites, make_kits
from mortal import MortalServer
from proxy import BREAKS, DISORDER, Fault, Proxy

from secagg.errors import SecAggError

from .conftest import Report, Watch

# CPython drops an SSL socket unclosed if the connection is reset before the handshake.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <ssl\.SSLSocket:ResourceWarning")

MAX_FAULTS = 8
#: How often sites may try to play a round that nothing disturbs.
TRIES = 20


def play(five: FiveSites) -> Counter[str]:
    """Let all sites take part in a round; return how they ended."""
    ends: Counter[str] = Counter()
    for future in five.begin():
        try:
            future.result()
            ends["right"] += 1
        except SecAggError as error:
            ends[type(error).__name__] += 1
    return ends


def play_well(five: FiveSites, server: MortalServer, watch: Watch) -> None:
    """Play until every site ends right.

    Not at once: some may be in the end of a round still, and on a slow machine a round may end before all are there.
    """
    last: Counter[str] = Counter()
    for _ in range(TRIES):
        watch()
        five.disconnect()
        five.ledger.check_new(server.run)
        five.prepare()
        with suppress(SecAggError):
            five.join()  # the round waits for whoever has joined
            last = play(five)
            if last == {"right": len(SITES)}:
                break
    assert last == {"right": len(SITES)}
    five.ledger.check_new(server.run)


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("runs", [3, pytest.param(200, marks=pytest.mark.long)])
def test_bad_links(runs: int, secure: bool, tmp_path: Path, seed: int, watch: Watch, report: Report) -> None:
    rng, began = random.Random(seed), time.monotonic()
    kits = make_kits(tmp_path, "flashe")
    ends: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    server = MortalServer(kits["server"], tmp_path / "server", round_timeout=3, idle_seconds=1, insecure=not secure)
    with (
        server,
        Proxy(server.port) as proxy,
        FiveSites(kits, tmp_path / "sites", proxy.address, secure=secure, timeout=6) as five,
    ):
        server.start()
        server.wait_until_it_listens()  # sites give up after a few seconds
        play_well(five, server, watch)
        nbytes = five.sites[0].update_of(0, five.ledger.bases[0]).nbytes
        for _ in range(runs):
            watch()
            five.disconnect()
            count = rng.randrange(1, MAX_FAULTS + 1)
            proxy.spoil(Fault.draw(rng, BREAKS + DISORDER, int(1.1 * nbytes)) for _ in range(count))
            ends += play(five)
            five.ledger.check_new(server.run)
            struck.update(fault.kind for fault in proxy.struck)
            proxy.struck.clear()
        proxy.spoil(())
        play_well(five, server, watch)  # nothing is left of what happened
        server.stop()
    report(
        f"seed {seed}: {runs} runs, {proxy.connections} connections, struck by {dict(struck)}; sites ended "
        f"{dict(ends)}; {five.ledger.checked} rounds right, {five.ledger.acknowledged} updates acknowledged; "
        f"{time.monotonic() - began:.0f} s"
    )
