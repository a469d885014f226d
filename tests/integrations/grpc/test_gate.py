"""Calls that no site makes: silent, compressed, malformed. They cost the server little, and the others nothing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import SMALL, STATE, Running, certify, chunks_of, make_signed, messages, serving, wait_until
from signed import Signed

from secagg.errors import FormatError, IdentityError, RoundMismatchError, SecAggError
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc.refusals import error_of
from secagg.server import Limits
from secagg.server.members import MAX_CALLS
from secagg.trust import Authority, Tls

SERVICE = "/secagg.v1.SecureAggregation"
UNARY = (f"{SERVICE}/Join", f"{SERVICE}/Resume", f"{SERVICE}/Status", "/grpc.health.v1.Health/Check")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signed, dict[str, Tls]]:
    return certify(make_signed(), Authority.create(tmp_path_factory.mktemp("authority")))


def raw(channel: grpc.Channel, method: str, requests: Iterator[bytes]) -> Any:
    """A call of bytes, with as many messages as one likes."""
    return channel.stream_stream(method, _registered_method=False)(requests, timeout=120.0)


@contextmanager
def silent_calls(running: Running, count: int, name: str = "site-1") -> Iterator[list[Any]]:
    """Begin calls that send no message until the block ends."""
    end = threading.Event()

    def nothing() -> Iterator[bytes]:
        end.wait()
        yield from ()

    with ExitStack() as stack:
        calls: list[Any] = []
        stack.callback(lambda: [call.cancel() for call in calls])
        stack.callback(end.set)
        while len(calls) < count:
            channel = stack.enter_context(running.channel(name))
            methods = (*UNARY, f"{SERVICE}/Download", f"{SERVICE}/Upload")
            calls += [raw(channel, method, nothing()) for method in methods]
        yield calls


def test_a_silent_site_does_not_stop_the_others(place: tuple[Signed, dict[str, Tls]], tmp_path: Path) -> None:
    """It has many more calls under way than the server has threads."""
    signed, tls = place
    with serving(signed, tmp_path / "run", tls) as running, silent_calls(running, 60) as calls:
        # All but those that it may have are sent away, and hold no thread.
        wait_until(lambda: sum(call.done() for call in calls) >= len(calls) - MAX_CALLS)
        ended = [call for call in calls if call.done()]
        assert {call.code() for call in ended} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(error_of(call) is None for call in ended)
        running.run_round(0, names=["site-2", "site-3"])


def test_silent_calls_end(place: tuple[Signed, dict[str, Tls]], tmp_path: Path) -> None:
    """Without certificates nobody can be told from others: then silence is bounded by time alone."""
    signed, _ = place
    limits = Limits(idle_seconds=0.5)
    with serving(signed, tmp_path / "run", limits=limits) as running, silent_calls(running, 60) as calls:
        wait_until(lambda: all(call.done() for call in calls))
        assert {call.code() for call in calls} <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        running.run_round(0)


@pytest.mark.parametrize(
    ("method", "request_", "kind"),
    [
        ("Join", pb.JoinRequest(site="site-2"), IdentityError),
        ("Resume", pb.Chunk(data=b"no head"), FormatError),
        ("Upload", pb.Chunk(data=b"no head"), FormatError),
        ("Download", pb.DownloadRequest(round=7), RoundMismatchError),
    ],
    ids=["Join", "Resume", "Upload", "Download"],
)
def test_refused_calls_are_over(
    place: tuple[Signed, dict[str, Tls]], tmp_path: Path, method: str, request_: Any, kind: type[SecAggError]
) -> None:
    """A connection takes few streams at a time, and what of a call is left at the server would count as one."""
    signed, tls = place
    gc.disable()
    try:
        with serving(signed, tmp_path / "run", tls) as running, running.channel() as channel:
            for _ in range(40):
                with pytest.raises(grpc.RpcError) as caught:
                    next(raw(channel, f"{SERVICE}/{method}", iter([request_.SerializeToString()])))
                assert type(error_of(caught.value)) is kind, caught.value
                del caught
    finally:
        gc.enable()


@pytest.mark.parametrize("method", [method for method in UNARY if "health" not in method])
def test_a_call_without_a_message(place: tuple[Signed, dict[str, Tls]], tmp_path: Path, method: str) -> None:
    signed, tls = place
    with (
        serving(signed, tmp_path / "run", tls) as running,
        running.channel() as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        next(raw(channel, method, iter(())))
    assert type(error_of(caught.value)) is FormatError
    assert caught.value.details() == "the call has no message"


def test_a_call_with_two_messages(place: tuple[Signed, dict[str, Tls]], tmp_path: Path) -> None:
    """The first one counts."""
    signed, tls = place
    requests = [pb.JoinRequest(site=name).SerializeToString() for name in ("site-1", "site-2")]
    with serving(signed, tmp_path / "run", tls) as running, running.channel() as channel:
        [reply] = raw(channel, f"{SERVICE}/Join", iter(requests))
        assert pb.JoinReply.FromString(reply).max_clients == 4
        assert running.server.status().waiting_for == ("site-1",)


@pytest.mark.parametrize("method", [*UNARY, f"{SERVICE}/Upload", f"{SERVICE}/Download", f"{SERVICE}/Nothing"])
def test_messages_that_are_none(place: tuple[Signed, dict[str, Tls]], tmp_path: Path, method: str) -> None:
    signed, tls = place
    with serving(signed, tmp_path / "run", tls) as running, running.channel() as channel:
        for blob in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x08"):
            with pytest.raises(grpc.RpcError) as caught:
                next(raw(channel, method, iter([blob])))
            assert caught.value.code() not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
            assert str(tmp_path) not in str(caught.value.details())
        assert running.server.status().waiting_for == ()
        running.run_round(0)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_refused(
    place: tuple[Signed, dict[str, Tls]], tmp_path: Path, compression: grpc.Compression
) -> None:
    """A small one could unpack to one that fills the memory."""
    signed, tls = place
    update = signed.site().encrypt({"w": STATE["w"] * 0}, round=0)
    with serving(signed, tmp_path / "run", tls) as running, running.stub(compression=compression) as stub:
        bomb = pb.Chunk(data=bytes(4 << 20))
        for call in (
            lambda: stub.Resume(bomb, timeout=120.0),
            lambda: stub.Upload(iter([bomb]), timeout=120.0),
            lambda: stub.Upload(messages(chunks_of(update)), timeout=120.0),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert running.server.status().added == ()
        assert running.server.status().waiting_for == ()
        running.run_round(0, SMALL)


def test_health_is_asked_for_and_not_watched(place: tuple[Signed, dict[str, Tls]], tmp_path: Path) -> None:
    signed, tls = place
    with serving(signed, tmp_path / "run", tls) as running, running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="")
        assert stub.Check(request, timeout=120.0).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(request, timeout=120.0))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_of_more_than_the_limit(place: tuple[Signed, dict[str, Tls]], tmp_path: Path) -> None:
    signed, tls = place
    with serving(signed, tmp_path / "run", tls) as running, running.stub() as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Resume(pb.Chunk(data=bytes(6 << 20)), timeout=120.0)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert running.spool() == []
