"""Rounds between real processes over real sockets."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mortal import free_port

import secagg
from secagg.errors import ConfigError, DuplicateError, QuorumError, RoundMismatchError, TransportError
from secagg.integrations.grpc import Server, SiteSession
from secagg.integrations.grpc.credentials import channel_credentials
from secagg.integrations.grpc.server import SERVICE

StartServer = Callable[..., Any]


def own_address() -> str:
    """Of a server that goes down and comes back: nobody else gets the port meanwhile."""
    return f"127.0.0.1:{free_port()}"


def test_three_sites_get_the_weighted_mean(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    server.run_round("site-1", "site-2", "site-3")
    server.run_round("site-1", "site-2", "site-3", round=1)
    assert server.spool == []
    nbytes = provision.update("site-1").nbytes
    assert [record["round"] for record in server.rounds] == [0, 1]
    for record in server.rounds:
        assert record["outcome"] == "completed"
        assert record["missing"] == []
        assert sorted(upload["site"] for upload in record["uploads"]) == ["site-1", "site-2", "site-3"]
        assert {upload["nbytes"] for upload in record["uploads"]} == {nbytes}
        assert all(upload["receive_seconds"] > 0 and upload["add_seconds"] > 0 for upload in record["uploads"])


def test_the_server_loads_no_he_library(start_server: StartServer) -> None:
    server = start_server()
    server.run_round("site-1", "site-2", "site-3")
    maps = Path(f"/proc/{server.process.pid}/maps").read_text().lower()
    assert "grpc" in maps
    assert not [name for name in ("tenseal", "pyfhel", "libseal", "torch") if name in maps]
    assert server.stop() == []


def test_without_certificates_on_the_loopback(start_server: StartServer) -> None:
    server = start_server(insecure=True)
    server.run_round("site-1", "site-2", "site-3")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
def test_without_certificates_nowhere_else(provision: Any, tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        Server(provision.config, provision.keys.server, tmp_path, address=address, insecure=True)
    with pytest.raises(ConfigError, match="loopback"):
        SiteSession(address.replace(":0", ":8443"), "site-1", tls=None)


def test_without_certificates_only_when_asked_to(provision: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="certificates"):
        Server(provision.config, provision.keys.server, tmp_path)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", ":80", "::1:80", "a/b:80", "host:65536", "unix:/x"])
def test_an_address_is_host_and_port(provision: Any, tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Server(provision.config, provision.keys.server, tmp_path, address=address, insecure=True)


def test_a_port_that_is_taken(start_server: StartServer, provision: Any, tmp_path: Path) -> None:
    server = start_server()
    with pytest.raises(TransportError, match="cannot listen"):
        Server(provision.config, provision.keys.server, tmp_path, address=server.address, tls=provision.server_tls)


def test_health(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    with grpc.secure_channel(server.address, channel_credentials(provision.tls["site-1"])) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=120, wait_for_ready=True)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_join_and_status(start_server: StartServer, provision: Any) -> None:
    server = start_server(round_timeout=500.0)
    with server.session("site-2") as session:
        before = session.status()
        assert (before.state, before.seconds_left, before.waiting_for) == ("idle", None, ())
        membership = session.join()
        assert (membership.round, membership.min_clients, membership.max_clients) == (0, 2, 4)
        assert membership.round_timeout == 500.0
        assert membership.key == provision.keys.client.fingerprint
        session.upload(provision.update("site-2"))
        server.join("site-1")
        status = session.status()
    assert (status.round, status.attempt, status.state) == (0, 1, "open")
    assert (status.added, status.waiting_for, status.aggregates) == (("site-2",), ("site-1",), ())
    assert status.seconds_left is not None
    assert 0 < status.seconds_left <= 500.0


def test_progress(start_server: StartServer, provision: Any, tmp_path: Path) -> None:
    server = start_server()
    server.join("site-1", "site-2")
    waiting = server.exchange("site-1", provision.update("site-1"))
    update = provision.update("site-2")
    update.save(tmp_path / "update.secagg")
    up: list[tuple[int, int]] = []
    down: list[tuple[int, int]] = []
    with server.session("site-2") as session:
        assert not session.upload(tmp_path / "update.secagg", lambda *step: up.append(step)).already_added
        with session.download(0, tmp_path / "aggregate.secagg", lambda *step: down.append(step)) as aggregate:
            provision.assert_mean(aggregate, ["site-1", "site-2"])
            assert down[-1] == (aggregate.nbytes, aggregate.nbytes)
    assert up[-1] == (update.nbytes, update.nbytes)
    assert up == sorted(up)
    assert len(up) == 1 + update.header.frame_count + 1 > 3  # the head, every frame, and the tail
    waiting.result().close()
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"update.secagg", "aggregate.secagg"}


def test_an_error_in_progress_is_the_callers(start_server: StartServer, provision: Any) -> None:
    """The upload has broken off then, like any other, and another one goes on with it."""

    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError(done)

    server = start_server()
    update = provision.update("site-1")
    with server.session("site-1") as session:
        with pytest.raises(ZeroDivisionError):
            session.upload(update, fail)
        assert session.status().added == ()
        assert not session.upload(update).already_added


def test_the_same_upload_is_added_once(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    update = provision.update("site-1")
    server.join("site-1", "site-2", "site-3")
    with server.session("site-1") as session:
        assert not session.upload(update).already_added
        assert session.upload(update).already_added
        with pytest.raises(DuplicateError, match="site-1"):
            session.upload(provision.update("site-1"))
        assert session.status().added == ("site-1",)
        others = [server.exchange(site, provision.update(site)) for site in ("site-2", "site-3")]
        for future in others:
            with future.result() as aggregate:
                provision.assert_mean(aggregate)
        assert session.upload(update).already_added  # the answer was lost, say, and the round is over
        with pytest.raises(RoundMismatchError, match="round 1 is open"):
            session.upload(provision.update("site-1"))


def test_aggregates_are_kept_for_two_rounds(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    for round in range(3):
        server.run_round("site-1", "site-2", round=round)
    kept = {"aggregate-1.secagg", "aggregate-2.secagg"}  # the third goes after the end of the round is told
    server.wait_until(lambda: {path.name for path in (server.folder / "run").glob("aggregate*")} == kept)
    with server.session("site-3") as session:
        assert session.status().aggregates == (1, 2)
        with session.download(1, tmp_path / "late") as aggregate:
            assert aggregate.header.round == 1
        with pytest.raises(RoundMismatchError, match="not kept"):
            session.download(0, tmp_path / "gone")
        with pytest.raises(RoundMismatchError, match="not begun"):
            session.download(4, tmp_path / "never")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["late"]


def test_below_min_clients_those_who_wait_are_told(start_server: StartServer, provision: Any) -> None:
    server = start_server(round_timeout=3.0)
    update = provision.update("site-1")
    with pytest.raises(QuorumError, match="1 of at least 2"):
        server.exchange("site-1", update).result()
    # On a slow machine an attempt may end before the update is there, and others after it.
    records = server.rounds
    assert [(record["round"], record["attempt"], record["outcome"]) for record in records] == [
        (0, number, "failed") for number in range(1, len(records) + 1)
    ]
    assert [upload["site"] for upload in records[-1]["uploads"]] == ["site-1"]
    with server.session("site-1") as session:
        status = session.status()
    assert (status.round, status.added, status.aggregates) == (0, ("site-1",), ())
    assert status.attempt >= 2


def test_what_was_uploaded_stays_when_an_attempt_fails(start_server: StartServer, provision: Any) -> None:
    server = start_server(round_timeout=3.0)
    updates = {site: provision.update(site) for site in ("site-1", "site-2")}
    with pytest.raises(QuorumError, match="what was uploaded stays in it"):
        server.exchange("site-1", updates["site-1"]).result()
    with server.session("site-1") as session:
        assert session.upload(updates["site-1"]).already_added
        with pytest.raises(DuplicateError):
            session.upload(provision.update("site-1"))

    def persist(site: str) -> secagg.Update:
        while True:
            with contextlib.suppress(QuorumError):  # on a busy machine more than one attempt may fail
                return server.exchange(site, updates[site]).result()

    with ThreadPoolExecutor() as pool:
        for aggregate in pool.map(persist, updates):
            with aggregate:
                provision.assert_mean(aggregate, updates)
    assert [record["outcome"] for record in server.rounds].count("completed") == 1


def test_a_site_that_dies_in_its_upload_is_left_out(start_server: StartServer, provision: Any) -> None:
    server = start_server(round_timeout=5.0)
    updates = {site: provision.update(site) for site in ("site-1", "site-2", "site-3")}
    # The upload of site-3 starts the clock, not the start of its process: that may take longer than the round.
    with server.stalling_site("site-3", updates["site-3"]):
        server.wait_until(lambda: any(path.stat().st_size for path in server.spool))
        waiting = [server.exchange(site, updates[site]) for site in ("site-1", "site-2")]
    for future in waiting:
        with future.result() as aggregate:
            provision.assert_mean(aggregate, ["site-1", "site-2"])
    assert server.rounds[0]["missing"] == ["site-3"]
    server.wait_until(lambda: not server.spool)
    server.stop()
    server.round_timeout = 600.0  # the next round must not end before all have come
    server.start()
    server.run_round("site-1", "site-2", "site-3", round=1)


def test_a_site_that_died_in_its_upload_may_come_back(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    updates = {site: provision.update(site) for site in ("site-1", "site-2", "site-3")}
    server.join(*updates)
    with server.stalling_site("site-3", updates["site-3"]):
        # The new upload of the site is served while the stalled one still holds its connection.
        waiting = [server.exchange(site, update) for site, update in updates.items()]
        for future in waiting:
            with future.result() as aggregate:
                provision.assert_mean(aggregate)
    assert [len(record["uploads"]) for record in server.rounds] == [3]


def test_a_site_waits_for_a_server_that_is_not_up_yet(start_server: StartServer, provision: Any) -> None:
    early = start_server()
    early.stop()
    early.address = own_address()
    waiting = [early.exchange(site, provision.update(site)) for site in ("site-1", "site-2")]
    time.sleep(0.5)
    early.start()
    for future in waiting:
        with future.result() as aggregate:
            provision.assert_mean(aggregate, ["site-1", "site-2"])


def test_sites_survive_a_server_that_is_killed_in_a_round(start_server: StartServer, provision: Any) -> None:
    server = start_server(address=own_address())
    server.join("site-1", "site-2", "site-3")
    waiting = [server.exchange(site, provision.update(site)) for site in ("site-1", "site-2")]
    with server.session("site-3") as session:
        server.wait_until(lambda: session.status().added == ("site-1", "site-2"))
        server.kill()
        server.start()
        server.wait_until(lambda: "2 updates are in the sum; waiting for site-3" in server.log)
        status = session.status()
    assert (status.attempt, status.added, status.waiting_for) == (1, ("site-1", "site-2"), ("site-3",))
    waiting.append(server.exchange("site-3", provision.update("site-3")))
    for future in waiting:
        with future.result() as aggregate:
            provision.assert_mean(aggregate)


def test_a_server_that_starts_again_goes_on(start_server: StartServer, provision: Any, tmp_path: Path) -> None:
    server = start_server(address=own_address())
    server.join("site-1", "site-2")
    update = provision.update("site-1")
    waiting = [server.exchange("site-1", update), server.exchange("site-2", provision.update("site-2"))]
    for future in waiting:
        future.result().close()
    server.stop()
    (server.folder / "run" / "spool" / "site-3.part").write_bytes(b"of a crash")
    update.save(server.folder / "run" / "spool" / "site-1.part")  # of a round that is over
    server.start()
    assert server.spool == []
    with server.session("site-1") as session:
        assert session.join().round == 1
        assert session.upload(update).already_added
        with session.download(0, tmp_path / "aggregate") as aggregate:
            provision.assert_mean(aggregate, ["site-1", "site-2"])
    server.run_round("site-1", "site-2", round=1)


def test_a_run_folder_of_another_key_is_refused(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    server.run_round("site-1", "site-2")
    server.stop()
    other = secagg.generate_keys(provision.config).server
    with pytest.raises(ConfigError, match="another key"):
        Server(provision.config, other, server.folder / "run", insecure=True)


def test_a_server_that_stops_lets_waiting_sites_go(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    server.join("site-1", "site-2")
    with server.session("site-1") as session:
        session.upload(provision.update("site-1"))
        assert server.stop() == []
        session.timeout, session._round_timeout = 1.0, 0.0  # from here on it is to run into it
        with pytest.raises(TransportError, match="download of round 0"):
            session.download(0, server.folder / "aggregate")


def test_a_deadline_ends_the_waiting(start_server: StartServer, provision: Any) -> None:
    server = start_server()
    server.join("site-1", "site-2")
    with server.session("site-1") as session:
        session.upload(provision.update("site-1"))
        session.timeout, session._round_timeout = 1.0, 0.0  # from here on it is to run into it
        with pytest.raises(TransportError, match="DEADLINE_EXCEEDED"):
            session.download(0, server.folder / "aggregate")


def test_rounds_are_logged_in_one_line(start_server: StartServer) -> None:
    server = start_server()
    server.run_round("site-1", "site-2", "site-3")
    [line] = [line for line in server.log.splitlines() if "round 0 completed" in line]
    assert line.startswith("INFO secagg.server.history round 0 completed after ")
    assert all(name in line for name in ("site-1", "site-2", "site-3", "B received in", "added in"))
    json.dumps(server.rounds)
