"""Requests that come twice, at once, in the wrong order, too late or half.

A round is preceded and accompanied by calls that a site's own session would never make. Each is answered, or refused
with a typed error or a status that says "try again"; and the sum is that of one update a site.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from five_sites import SITES, FiveSites, Site, make_kits
from mortal import MortalServer

import secagg
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.credentials import channel_credentials
from secagg.integrations.grpc.refusals import error_of
from secagg.trust import Tls

from .conftest import Report, Watch

#: What says "try again" without a typed error, or that the call's own time was up.
AGAIN = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,  # too many streams on this connection
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
SECONDS = 60.0


class Noise:
    """Calls of one site, past its session."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self._site, self._rng = site, rng
        credentials = channel_credentials(Tls.load(site.kits[site.name]))
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.secure_channel(site.address, credentials, options)
        self._stub = pb_grpc.SecureAggregationStub(self._channel)

    def calls(self, update: secagg.Update, stale: secagg.Update | None) -> list[tuple[str, Callable[[], object]]]:
        """Return some calls about this round's update and about the last one's, in any order, some of them twice."""
        round, chunks = update.header.round, [bytes(chunk) for chunk in update.chunks()]
        cut = self._rng.randrange(len(chunks))
        frame = self._rng.randrange(len(chunks) - 1)
        calls: list[tuple[str, Callable[[], object]]] = [
            ("upload", lambda: self._upload(chunks, 0)),
            ("half an upload", lambda: self._upload(chunks[:cut], 0)),
            ("the end of an upload", lambda: self._upload([chunks[0], *chunks[1 + frame :]], frame)),
            ("resume", lambda: self._stub.Resume(pb.Chunk(data=chunks[0]), timeout=SECONDS)),
            ("join", lambda: self._stub.Join(pb.JoinRequest(site=self._site.name), timeout=SECONDS)),
            ("status", lambda: self._stub.Status(pb.StatusRequest(), timeout=SECONDS)),
            ("download before upload", lambda: self._download(round, update.header.contributions[0].nonce, 0.5)),
            ("download", lambda: self._download(round, b"", 0.5)),
            ("download of a later round", lambda: self._download(round + 1, b"", SECONDS)),
            ("upload for another site", lambda: self._upload(self._of_another(update), 0)),
        ]
        if stale is not None:
            old = [bytes(chunk) for chunk in stale.chunks()]
            calls += [
                ("stale upload", lambda: self._upload(old, 0)),
                ("stale resume", lambda: self._stub.Resume(pb.Chunk(data=old[0]), timeout=SECONDS)),
                ("download of the last round", lambda: self._download(round - 1, b"", SECONDS)),
            ]
        return self._rng.choices(calls, k=self._rng.randrange(2, 7))

    def close(self) -> None:
        self._channel.close()

    def _upload(self, chunks: list[bytes], frame: int) -> object:
        def messages() -> Iterator[pb.Chunk]:
            for index, chunk in enumerate(chunks):
                yield pb.Chunk(data=chunk, frame=0 if index else frame)

        return self._stub.Upload(messages(), timeout=SECONDS)

    def _download(self, round: int, nonce: bytes, seconds: float) -> object:
        request = pb.DownloadRequest(round=round, nonce=nonce, kind="aggregate")
        return sum(len(message.data) for message in self._stub.Download(request, timeout=seconds))

    def _of_another(self, update: secagg.Update) -> list[bytes]:
        other = next(name for name in SITES if name != self._site.name)
        contribution = secagg.wire.header.Contribution(other, update.header.contributions[0].nonce)
        return [
            replace(update.header, contributions=(contribution,)).head,
            *(bytes(chunk) for chunk in list(update.chunks())[1:]),
        ]


def outcome(name: str, call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        refusal = error_of(error)
        if refusal is None and error.code() not in AGAIN:
            raise AssertionError(f"{name}: {error.code()}: {error.details()}") from error
        return "again" if refusal is None else type(refusal).__name__
    return "answered"


@pytest.mark.parametrize("runs", [8, pytest.param(200, marks=pytest.mark.long)])
def test_disordered_requests(runs: int, tmp_path: Path, seed: int, watch: Watch, report: Report) -> None:
    rng, began = random.Random(seed), time.monotonic()
    kits = make_kits(tmp_path, "flashe")
    answers: Counter[str] = Counter()
    with (
        MortalServer(kits["server"], tmp_path / "server") as server,
        FiveSites(kits, tmp_path / "sites", server.address) as five,
        ThreadPoolExecutor(16) as pool,
    ):
        server.start()
        five.join()
        noises = {site.name: Noise(site, rng) for site in five.sites}
        stale: dict[str, secagg.Update] = {}
        for _ in range(runs):
            watch()
            five.prepare()
            round = max(five.ledger.bases)
            updates = {site.name: site.update_of(round, five.ledger.bases[round]) for site in five.sites}
            calls = [call for name in SITES for call in noises[name].calls(updates[name], stale.get(name))]
            rng.shuffle(calls)
            answered = [(name, pool.submit(outcome, name, call)) for name, call in calls]
            sites = list(five.sites)
            rng.shuffle(sites)
            playing = []
            for site in sites:
                time.sleep(rng.choice([0.0, 0.0, 0.02, 0.1]))
                anew = rng.random() < 0.2  # a site that was restarted, and forgot its update
                playing.append(pool.submit(play, site, round, five.ledger.bases[round], anew))
            for future in playing:
                future.result()
            answers.update(f"{name}: {future.result()}" for name, future in answered)
            assert five.ledger.check_new(server.run) == [round]
            stale = updates
        for noise in noises.values():
            noise.close()
        server.stop()
    listing = "".join(f"\n    {number:5} {answer}" for answer, number in sorted(answers.items()))
    report(
        f"seed {seed}: {runs} rounds right, {five.ledger.acknowledged} updates acknowledged in a session; "
        f"{time.monotonic() - began:.0f} s{listing}"
    )
    assert not {"upload for another site: answered", "download of a later round: answered"} & answers.keys()


def play(site: Site, round: int, base: bytes, anew: bool) -> None:
    site.finish(site.update_of(round, base, anew))
