"""Rounds that begin with a calibration, over gRPC: three sites by hand, with a server in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from calibrating import FIRST, assert_mean, calibrating, calibration_of, update_of
from running import Running, serving
from signed import Signed

import secagg
from secagg.errors import RoundMismatchError, ScalesMismatchError, StateError
from secagg.integrations.grpc.link import GrpcLink
from secagg.protocol import DownloadRequest
from secagg.protocol.chunks import chunks_from
from secagg.wire.container import DIGEST_NBYTES

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture(scope="module")
def signed() -> Signed:
    return calibrating()


@pytest.fixture
def running(signed: Signed, tmp_path: Path) -> Iterator[Running]:
    with serving(signed, tmp_path / "run") as running:
        yield running


def upload(link: GrpcLink, update: secagg.Update) -> bytes:
    assert link.resume(update.header.head, 60).frame == 0
    reply = link.upload(chunks_from(update, 0), 60)
    assert not reply.already_added
    return reply.receipt


def download(link: GrpcLink, kind: str, own: secagg.Update) -> secagg.Update:
    request = DownloadRequest(kind, own.header.round, own.header.contributions[0].nonce)
    return secagg.Update.from_bytes(b"".join(bytes(chunk.data) for chunk in link.download(request, 60)))


def take_part(running: Running, site: secagg.Client, rounds: int, first: bytes) -> list[bytes]:
    """What a site's loop does in some rounds; return the names of the aggregates."""
    names = []
    with closing(GrpcLink(running.server.address, None)) as link:
        for round in range(rounds):
            reply = link.join(site.name, 60)
            assert reply.round == round
            own = calibration_of(site, round, reply.base or first)
            assert upload(link, own) == b""
            scales = download(link, "scales", own)
            assert own.header.contributions[0] in scales.header.contributions
            update = update_of(site, scales)
            receipt = secagg.Receipt.from_bytes(upload(link, update))
            aggregate = download(link, "aggregate", update)
            site.decrypt(aggregate, round=round, base=own.header.base, receipt=receipt)
            assert_mean(site, aggregate)
            names.append(aggregate.digest())
    return names


def test_three_sites_that_calibrate(running: Running, signed: Signed) -> None:
    sites = {name: signed.site(name) for name in SITES}
    first = sites["site-1"].base(FIRST)
    with running.session("site-1") as session:
        assert session.status().stage == "calibration"
    for name in SITES:
        with running.session(name) as session:
            session.join()
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(take_part, running, site, 3, first) for site in sites.values()]
        one, *others = (future.result() for future in futures)
    assert others == [one, one]
    outcomes = [json.loads(line)["outcome"] for line in (running.folder / "rounds.jsonl").read_text().splitlines()]
    assert outcomes == ["calibrated", "completed"] * 3


def test_refusals_cross_as_they_are(running: Running, signed: Signed, tmp_path: Path) -> None:
    """The types that a site acts on."""
    with serving(signed, tmp_path / "other") as other:
        for name in SITES[:2]:
            with other.session(name) as session:
                session.join()
        for name in SITES[:2]:
            other.send(calibration_of(signed.site(name)))
        with closing(GrpcLink(other.server.address, None)) as link:
            request = DownloadRequest("scales", 0)
            scales = secagg.Update.from_bytes(b"".join(bytes(chunk.data) for chunk in link.download(request, 60)))
            assert link.status(60).stage == "update"
        with pytest.raises(RoundMismatchError, match="whose scales are there already"):
            other.send(calibration_of(signed.site("site-3")))
    with pytest.raises(ScalesMismatchError, match="which has no scales yet"):
        running.send(update_of(signed.site(), scales))
    lost = calibration_of(signed.site())
    with running.session("site-1") as session, pytest.raises(StateError, match="the calibration is not in the sum of"):
        download(session._link, "scales", lost)


def test_a_download_of_scales_goes_on_where_it_broke_off(running: Running, signed: Signed) -> None:
    for name in SITES[:2]:
        with running.session(name) as session:
            session.join()
    own = [calibration_of(signed.site(name)) for name in SITES[:2]]
    for calibration in own:
        running.send(calibration)
    with closing(GrpcLink(running.server.address, None)) as link:
        scales = download(link, "scales", own[0])
        head = scales.header.head
        rest = DownloadRequest("scales", 0, head=head[-DIGEST_NBYTES:], frame=scales.header.frame_count)
        chunks = [bytes(chunk.data) for chunk in link.download(rest, 60)]
    assert chunks == [head, scales.to_bytes()[-scales.header.tail_nbytes :]]
