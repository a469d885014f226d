"""Rounds that begin with a calibration, over gRPC: three sites by hand, with a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import Federation
from running import Running, serving
from signed import Signed, sign_federation

import secagg
from secagg.integrations.grpc.link import GrpcLink
from secagg.protocol import DownloadRequest
from secagg.protocol.chunks import chunks_from

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE"}},
    "aggregation": {"min_clients": 2, "max_clients": 4},
}
SITES = ("site-1", "site-2", "site-3")
WEIGHTS = {"site-1": 5.0, "site-2": 40.0, "site-3": 300.0}
FIRST = {"w": np.zeros((300, 7), np.float32), "b": np.zeros(7, np.float32)}


def state_of(site: str, round: int) -> dict[str, Any]:
    rng = np.random.default_rng([SITES.index(site), round])
    return {name: rng.normal(0, 1e-3, value.shape).astype(np.float32) for name, value in FIRST.items()}


@pytest.fixture(scope="module")
def signed() -> Signed:
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config)))


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


def take_part(running: Running, site: secagg.Client, rounds: int, first: bytes) -> list[dict[str, Any]]:
    """What a site's loop does in some rounds."""
    means: list[dict[str, Any]] = []
    with closing(GrpcLink(running.server.address, None)) as link:
        for round in range(rounds):
            reply = link.join(site.name, 60)
            assert reply.round == round
            base, state, weight = reply.base or first, state_of(site.name, round), WEIGHTS[site.name]
            own = site.calibrate(state, weight, round, base=base)
            assert upload(link, own) == b""
            scales = download(link, "scales", own)
            update = site.encrypt(state, weight, round, base=base, calibration=scales)
            receipt = secagg.Receipt.from_bytes(upload(link, update))
            aggregate = download(link, "aggregate", update)
            means.append(site.decrypt(aggregate, round=round, base=base, receipt=receipt))
    return means


def test_three_sites_that_calibrate(running: Running, signed: Signed) -> None:
    sites = {name: signed.site(name) for name in SITES}
    first = sites["site-1"].base(FIRST)
    with running.session("site-1") as session:
        assert session.status().stage == "calibration"
    for name in SITES:
        with closing(GrpcLink(running.server.address, None)) as link:
            link.join(name, 60)
    with ThreadPoolExecutor(3) as pool:
        futures = {name: pool.submit(take_part, running, site, 3, first) for name, site in sites.items()}
        means = {name: future.result() for name, future in futures.items()}
    total = sum(WEIGHTS.values())
    for round in range(3):
        for name in FIRST:
            exact = sum(WEIGHTS[site] * state_of(site, round)[name].astype(float) for site in SITES) / total
            for site in SITES:
                np.testing.assert_array_equal(means[site][round][name], means["site-1"][round][name])
            error = means["site-1"][round][name] - exact
            assert np.linalg.norm(error) < 0.1 * np.linalg.norm(exact)
