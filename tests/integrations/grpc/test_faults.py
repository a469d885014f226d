"""Bad uploads: each is refused with a typed error, nothing of it is added, and the round goes on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import secagg
from secagg.errors import (
    CapacityError,
    DigestError,
    FormatError,
    IdentityError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    SecAggError,
    StorageError,
    TransportError,
)
from secagg.integrations.grpc import secagg_pb2 as pb

Chunks = list[bytes]


@pytest.fixture(scope="module")
def server(start_module_server: Callable[..., Any]) -> Iterator[Any]:
    """One server for all faults: each test is a round of it."""
    return start_module_server()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def garbage(nbytes: int) -> bytes:
    return np.random.default_rng(3).bytes(nbytes)


def plaintext(chunk: bytes) -> bytes:
    """Float32 parameters where ciphertext belongs."""
    return np.linspace(-1, 1, len(chunk) // 4, dtype=np.float32).tobytes().ljust(len(chunk), b"\0")


FAULTS: dict[str, tuple[Callable[[Chunks], Chunks], type[SecAggError], str]] = {
    "nothing": (lambda chunks: [], FormatError, "truncated"),
    "head cut": (lambda chunks: [chunks[0][:-1]], FormatError, "head"),
    "no head": (lambda chunks: chunks[-1:], FormatError, "magic|no head"),
    "first frame missing": (lambda chunks: [chunks[0], *chunks[2:]], FormatError, "frame 0 has"),
    "last frame missing": (lambda chunks: [*chunks[:-2], chunks[-1]], FormatError, "a chunk of 184 bytes; frame 1 has"),
    "last byte missing": (
        lambda chunks: [*chunks[:-1], chunks[-1][:-1]],
        FormatError,
        "a chunk of 183 .* tail has 184",
    ),
    "trailing tail": (lambda chunks: [*chunks, chunks[-1]], FormatError, "trailing"),
    "trailing byte": (lambda chunks: [*chunks, b"\0"], FormatError, "trailing"),
    "frames swapped": (lambda chunks: [chunks[0], chunks[2], chunks[1], *chunks[3:]], FormatError, "frame 0 has"),
    "empty chunk": (lambda chunks: [chunks[0], b"", *chunks[1:]], FormatError, "chunk of 0 bytes"),
    "two frames a chunk": (lambda chunks: [chunks[0], chunks[1] + chunks[2], *chunks[3:]], FormatError, "a chunk of"),
    "garbage": (lambda chunks: [garbage(len(chunk)) for chunk in chunks], FormatError, "magic|no head"),
    "garbage tail": (lambda chunks: [*chunks[:-1], garbage(len(chunks[-1]))], DigestError, "tail"),
    "garbage frames": (
        lambda chunks: [chunks[0], *(garbage(len(c)) for c in chunks[1:-1]), chunks[-1]],
        DigestError,
        "frame 0",
    ),
    "plaintext frames": (lambda chunks: [chunks[0], *map(plaintext, chunks[1:-1]), chunks[-1]], DigestError, "frame 0"),
    "bit flipped in the head": (lambda chunks: [flipped(chunks[0], 1000), *chunks[1:]], DigestError, "header"),
    "bit flipped in a frame": (
        lambda chunks: [*chunks[:2], flipped(chunks[2], 77_777), *chunks[3:]],
        DigestError,
        "frame 1",
    ),
    "bit flipped in a digest": (
        lambda chunks: [*chunks[:-2], flipped(chunks[-2], 8 * len(chunks[-2]) - 1), chunks[-1]],
        DigestError,
        "frame 1",
    ),
    "bit flipped in the tag": (lambda chunks: [*chunks[:-1], flipped(chunks[-1], 5)], DigestError, "tail"),
    "bit flipped in the tail's digest": (
        lambda chunks: [*chunks[:-1], flipped(chunks[-1], 8 * len(chunks[-1]) - 1)],
        DigestError,
        "tail",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_upload_adds_nothing(server: Any, provision: Any, fault: str) -> None:
    damage, error, match = FAULTS[fault]
    with server.session("site-3") as session:
        round = session.join().round
        chunks = [bytes(chunk) for chunk in provision.update("site-3", round).chunks()]
        with pytest.raises(error, match=match) as caught:
            server.send_raw("site-3", damage(chunks))
        assert type(caught.value) is error
        assert session.status().added == ()
    assert server.spool == []
    server.run_round("site-1", "site-2", "site-3", round=round)


def other_key(provision: Any, round: int) -> secagg.Update:
    keys = secagg.generate_keys(provision.config)
    return secagg.Client(provision.config, keys.client, "site-3").encrypt(provision.states["site-3"], round=round)


def other_config(provision: Any, round: int) -> secagg.Update:
    block = provision.config.to_dict()
    block["aggregation"]["max_weight"] = 1000.0
    config = secagg.Config.from_dict(block)
    return secagg.Client(config, provision.keys.client, "site-3").encrypt(provision.states["site-3"], round=round)


def other_encrypted_set(provision: Any, round: int) -> secagg.Update:
    config = secagg.Config.from_dict({**provision.config.to_dict(), "encrypt": "conv"})
    return secagg.Client(config, provision.keys.client, "site-3").encrypt(provision.states["site-3"], round=round)


UNFIT: dict[str, tuple[Callable[[Any, int], secagg.Update], type[SecAggError], str]] = {
    "earlier round": (lambda provision, round: provision.update("site-3", round - 1), RoundMismatchError, "is open"),
    "later round": (lambda provision, round: provision.update("site-3", round + 1), RoundMismatchError, "is open"),
    "other key": (other_key, KeyMismatchError, "key"),
    "other config": (other_config, MismatchError, "max_weight"),
    "other encrypted set": (other_encrypted_set, LayoutError, "encrypt"),
    "other site": (lambda provision, round: provision.update("site-1", round), IdentityError, "'site-3'"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_an_unfit_update_adds_nothing(server: Any, provision: Any, fault: str) -> None:
    make, error, match = UNFIT[fault]
    server.run_round("site-1", "site-2", "site-3", round=current(server))
    with server.session("site-3") as session:
        round = session.join().round
        with pytest.raises(error, match=match) as caught:
            session.upload(make(provision, round))
        assert type(caught.value) is error
        assert session.status().added == ()
    assert server.spool == []
    server.run_round("site-1", "site-2", "site-3", round=round)


def test_another_layout_is_refused_in_every_later_round(server: Any, provision: Any) -> None:
    round = current(server)
    server.run_round("site-1", "site-2", "site-3", round=round)
    other = {**provision.states["site-3"], "extra": np.ones(3)}
    with server.session("site-3") as session:
        with pytest.raises(LayoutError, match=r"tensor 'extra' is float64\[3\] encrypted, expected: there is none"):
            session.upload(provision.clients["site-3"].encrypt(other, round=round + 1))
        assert session.status().added == ()
    server.run_round("site-1", "site-2", "site-3", round=round + 1)


def test_an_aggregate_is_no_update(server: Any, provision: Any) -> None:
    round = current(server)
    server.run_round("site-1", "site-2", "site-3", round=round)
    with server.session("site-1") as session:
        aggregate = session.download(round, server.folder / "aggregate")
        with aggregate, pytest.raises(MismatchError, match="aggregate"):
            server.send_raw("site-1", aggregate.chunks())
        assert session.status().added == ()


def test_a_message_over_the_limit_is_refused(server: Any, provision: Any) -> None:
    round = current(server)
    head = next(iter(provision.update("site-3", round).chunks()))
    with pytest.raises(TransportError, match="RESOURCE_EXHAUSTED"):
        server.send_raw("site-3", [head, bytes(6 << 20)])
    assert server.process.poll() is None
    with server.session("site-3") as session:
        assert session.status().added == ()
    server.run_round("site-1", "site-2", "site-3", round=round)
    server.wait_until(lambda: not server.spool)


def test_a_site_more_than_planned_is_refused(start_server: Callable[..., Any]) -> None:
    server = start_server(insecure=True)
    server.join("site-1", "site-2", "site-3", "site-4")
    with pytest.raises(CapacityError, match="max_clients = 4"):
        server.join("site-5")


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65, "sité"])
def test_a_name_that_is_none_is_refused(start_server: Callable[..., Any], name: str) -> None:
    server = start_server(insecure=True)
    with server.session("site-1") as session:
        with pytest.raises(grpc.RpcError) as caught:
            session._link._stub.Join(pb.JoinRequest(site=name), timeout=120.0)
        assert dict(caught.value.trailing_metadata())["secagg-error"] == "ConfigError"
        assert session.status().waiting_for == ()


def test_a_disk_that_fails_is_told_without_its_paths(start_server: Callable[..., Any], provision: Any) -> None:
    server = start_server()
    spool = server.folder / "run" / "spool"
    shutil.rmtree(spool)
    with server.session("site-1") as session:
        with pytest.raises(StorageError, match="could not store the update of 'site-1': No such file") as caught:
            session.upload(provision.update("site-1"))
        assert type(caught.value) is StorageError
        assert str(server.folder) not in str(caught.value)
        assert session.status().added == ()
        spool.mkdir()
        assert not session.upload(provision.update("site-1")).already_added


def test_native_errors_of_the_server_stay_there(start_server: Callable[..., Any], provision: Any) -> None:
    server = start_server(log_may_hold_tracebacks=True)
    blocker = server.folder / "run" / "spool" / "site-1.part"
    blocker.mkdir()
    with server.session("site-1") as session:
        with pytest.raises(TransportError, match="the server failed; its log says why") as caught:
            session.upload(provision.update("site-1"))
        assert str(server.folder) not in str(caught.value)
        assert "IsADirectoryError" in server.log
        blocker.rmdir()
        assert not session.upload(provision.update("site-1")).already_added


def test_a_disk_that_fails_at_the_end_of_a_round(start_server: Callable[..., Any], provision: Any) -> None:
    """Those who wait wait on: the disk may be mended before the round timeout."""
    server = start_server()
    blocker = server.folder / "run" / "aggregate-0.secagg" / "in the way"
    blocker.mkdir(parents=True)
    server.join("site-1", "site-2")
    waiting = [server.exchange(site, provision.update(site)) for site in ("site-1", "site-2")]
    server.wait_until(lambda: "round 0: the aggregate cannot be stored, trying again" in server.log)
    with server.session("site-3") as session:
        server.wait_until(lambda: bool(session.status().trouble))  # the log is written first
        status = session.status()
    assert (status.round, status.attempt, status.added) == (0, 1, ("site-1", "site-2"))
    assert "Is a directory" in status.trouble  # an operator must act
    assert str(server.folder) not in status.trouble
    assert not any(future.done() for future in waiting)
    shutil.rmtree(blocker.parent)
    for future in waiting:
        with future.result() as aggregate:
            provision.assert_mean(aggregate, ["site-1", "site-2"])
    assert [record["outcome"] for record in server.rounds] == ["completed"]
    with server.session("site-3") as session:
        assert session.status().trouble == ""


def test_a_disk_that_fails_until_the_round_timeout(start_server: Callable[..., Any], provision: Any) -> None:
    """Those who wait are told; what they uploaded stays."""
    server = start_server(round_timeout=3.0)
    blocker = server.folder / "run" / "aggregate-0.secagg" / "in the way"
    blocker.mkdir(parents=True)
    updates = {site: provision.update(site) for site in ("site-1", "site-2")}

    def persist(site: str) -> None:
        while True:
            with contextlib.suppress(QuorumError):  # on a slow machine an attempt may end before both are there
                return server.exchange(site, updates[site]).result().close()

    server.join(*updates)
    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(persist, site) for site in updates]:
            with pytest.raises(TransportError, match="could not store the aggregate of round 0"):
                future.result()
    assert {record["outcome"] for record in server.rounds} == {"failed"}
    assert "could not be stored" in server.rounds[-1]["reason"]
    shutil.rmtree(blocker.parent)
    with server.session("site-1") as session:
        assert session.upload(updates["site-1"]).already_added
        server.wait_until(lambda: session.status().aggregates == (0,))
        with session.download(0, server.folder / "aggregate") as aggregate:
            provision.assert_mean(aggregate, ["site-1", "site-2"])


def current(server: Any) -> int:
    with server.session("site-1") as session:
        round = session.status().round
    assert isinstance(round, int)
    return round
