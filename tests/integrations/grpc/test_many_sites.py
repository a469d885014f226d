"""Many sites in one process, as every simulator has them: what a site may use is its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from federation import Federation
from running import SMALL, Running, certify, serving
from signed import Signed, sign_federation

import secagg
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.trust import Authority

SITES = 20
CONFIG = {
    "he": {"lib": "flashe", "config": {"value_bits": 16}},
    "aggregation": {"min_clients": SITES, "max_clients": SITES, "max_abs": 1.0, "max_weight": 1.0},
}
#: A round takes about a second; what stalls goes on to the round timeout.
QUICK_SECONDS = 30.0


@pytest.fixture(scope="module")
def signed() -> Signed:
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config)), SITES)


@pytest.fixture(scope="module", params=["tls", "no tls"])
def running(
    request: pytest.FixtureRequest, signed: Signed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder, certificates = tmp_path_factory.mktemp("many"), None
    if request.param == "tls":
        signed, certificates = certify(signed, Authority.create(folder))
    with serving(signed, folder / "run", certificates, round_timeout=60.0) as running:
        yield running


def test_a_round_of_sites_that_are_threads_of_one_process(running: Running, tmp_path: Path) -> None:
    together = threading.Barrier(SITES)

    def take_part(name: str) -> dict[str, np.ndarray]:
        client = running.signed.site(name)
        with running.session(name) as session:
            round = session.join().round
            together.wait()
            update = client.encrypt(SMALL, round=round)
            with session.exchange(update, tmp_path / name) as aggregate:
                return client.decrypt(aggregate, like=SMALL, round=round, receipt=session.receipt(round))

    start = time.monotonic()
    with ThreadPoolExecutor(SITES) as pool:
        means = list(pool.map(take_part, running.signed.names))
    assert time.monotonic() - start < QUICK_SECONDS
    for mean in means:
        np.testing.assert_allclose(mean["w"], SMALL["w"], atol=1e-3)


def test_sites_that_share_a_connection(signed: Signed, tmp_path: Path) -> None:
    """Without certificates a connection is nobody's: a relay, or a program with a pool of its own, carries all sites.

    All of them wait for the round at once, and each can still ask how it stands.
    """
    with ExitStack() as stack:
        running = stack.enter_context(serving(signed, tmp_path / "run", round_timeout=60.0))
        stub = pb_grpc.SecureAggregationStub(stack.enter_context(grpc.insecure_channel(running.server.address)))
        waiting = []
        for name in signed.names:
            stub.Join(pb.JoinRequest(site=name), timeout=QUICK_SECONDS)
            call = stub.Download(pb.DownloadRequest(round=0), timeout=600.0)
            stack.callback(call.cancel)
            waiting.append(call)
        status = stub.Status(pb.StatusRequest(), timeout=QUICK_SECONDS)
        assert len(status.waiting_for) == SITES
        assert all(call.is_active() for call in waiting)
