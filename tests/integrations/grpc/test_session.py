"""The site's session against servers that break off, stall, lose, lie or talk nonsense, over real sockets."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from federation import Federation
from signed import Signed, sign_federation

import secagg
from secagg.errors import (
    ConfigError,
    DigestError,
    DuplicateError,
    FormatError,
    IdentityError,
    KeyMismatchError,
    MismatchError,
    QuotaError,
    RoundMismatchError,
    SecAggError,
    SignatureError,
    StateError,
    StorageError,
    TransportError,
    VerificationError,
)
from secagg.integrations.grpc import Server as RealServer
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.refusals import abort
from secagg.protocol import Refusal
from secagg.protocol.handshake import check_handshake
from secagg.site import Joined, transfer
from secagg.trust import Authority

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 16}},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0},
}
SITES = ("site-1", "site-2", "site-3")
#: Seven frames.
STATE = {"w": np.linspace(-1, 1, 2_500_000, dtype=np.float32)}
SMALL = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}

Head = bytes


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is small is sent as what is large: after asking what the server has of it."""
    monkeypatch.setattr(transfer, "_UNASKED_NBYTES", 0)


@pytest.fixture(scope="module")
def signed() -> Signed:
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config)))


@pytest.fixture(scope="module")
def update(signed: Signed) -> secagg.Update:
    """Of site-1, for round 0; the tests only send it."""
    update = signed.site().encrypt(STATE, round=0)
    assert update.header.frame_count == 7
    return update


@pytest.fixture(scope="module")
def aggregate(signed: Signed) -> secagg.Update:
    return signed.add(signed.encrypt([SMALL, SMALL], round=0))


class Server(pb_grpc.SecureAggregationServicer):
    """Keeps what it is sent, and does wrong what a test asks for.

    `cuts` are the numbers of frames after which uploads break off, one after another, then no more do. `refusals` are
    errors and codes with which calls end, by their name, one after another; None lets one go on.
    """

    def __init__(self, signed: Signed) -> None:
        self.signed = signed
        self.project = signed.project.sign(signed.authority)
        self.join = {"min_clients": 2, "max_clients": 4, "round_timeout": 5.0, "key": signed.project.key}
        self.sign = lambda update: secagg.Receipt.of(update, self.signed.server).to_bytes()
        self.cuts: list[int] = []
        self.refusals: defaultdict[str, list[SecAggError | grpc.StatusCode | None]] = defaultdict(list)
        self.next_frame: int | None = None
        self.downloads: list[list[bytes]] = []
        self.parts: dict[Head, list[bytes]] = {}
        self.done: dict[Head, bytes] = {}
        self.calls: list[str] = []
        self.uploads: list[tuple[int, int]] = []  # first frame, and how many chunks came after the head
        self.requests: list[pb.DownloadRequest] = []
        self.address = ""
        self.stall = threading.Event()

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        self._begin("Join", context)
        return pb.JoinReply(**{"project": self.project, **self.join})

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        self._begin("Status", context)
        return pb.StatusReply(round=3, attempt=2, state="open", models=[2, 3], time=12.5, base=bytes(32))

    def Resume(self, request: pb.Chunk, context: grpc.ServicerContext) -> pb.ResumeReply:
        self._begin("Resume", context)
        if request.data in self.done:
            return pb.ResumeReply(already_added=True, receipt=self.done[request.data])
        frame = len(self.parts.get(request.data, ())) if self.next_frame is None else self.next_frame
        return pb.ResumeReply(frame=frame)

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        self._begin("Upload", context)
        first = next(request_iterator, pb.Chunk())
        header = secagg.Header.from_head(first.data)
        # A new list: the call of a connection that broke may still be adding to the one before.
        part = self.parts[first.data] = self.parts.get(first.data, [])[: first.frame]
        cut = self.cuts.pop(0) if self.cuts else None
        received = 0
        while received != cut and (message := next(request_iterator, None)) is not None:
            assert message.frame == 0
            part.append(message.data)
            received += 1
        self.uploads.append((first.frame, received))
        if received == cut:
            context.abort(grpc.StatusCode.UNAVAILABLE, "broke off")
        blob = first.data + b"".join(part)
        assert len(blob) == header.nbytes
        sent = secagg.Update.from_bytes(blob)
        self.done[first.data] = self.sign(sent) if header.kind == "update" else b""
        for error in self.refusals["after Upload"][:1]:
            del self.refusals["after Upload"][0]
            assert isinstance(error, grpc.StatusCode)
            context.abort(error, "the answer is lost")
        return pb.UploadReply(receipt=self.done[first.data])

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        self.requests.append(request)
        self._begin("Download", context)
        for chunk in self.downloads.pop(0):
            yield pb.Chunk(data=chunk)

    def _begin(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        if f"stall {name}" in self.refusals:
            self.stall.wait()
        if self.refusals[name]:
            error = self.refusals[name].pop(0)
            if isinstance(error, SecAggError):
                abort(context, Refusal.of(error))
            if error is not None:
                context.abort(error, "not today")


@pytest.fixture
def server(signed: Signed) -> Iterator[Server]:
    servicer = Server(signed)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 5 << 20)])
    pb_grpc.add_SecureAggregationServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    servicer.stall.set()
    server.stop(None).wait()


@contextlib.contextmanager
def session_of(server: Server, *, project: bool = True, timeout: float = 120.0) -> Iterator[SiteSession]:
    own = server.signed.project if project else None
    with SiteSession(server.address, "site-1", tls=None, timeout=timeout, project=own) as session:
        yield session


@pytest.fixture
def session(server: Server) -> Iterator[SiteSession]:
    with session_of(server) as session:
        yield session


def chunks_of(update: secagg.Update) -> list[bytes]:
    return [bytes(chunk) for chunk in update.chunks()]


# Uploads.


def test_an_upload_goes_on_where_it_broke_off(server: Server, session: SiteSession, update: secagg.Update) -> None:
    server.cuts = [3, 0, 2, 2]
    steps: list[tuple[int, int]] = []
    uploaded = session.upload(update, lambda *step: steps.append(step))
    assert not uploaded.already_added
    assert server.uploads == [(0, 3), (3, 0), (3, 2), (5, 2), (7, 1)]
    assert server.done.keys() == {update.header.head}
    assert steps[-1] == (update.nbytes, update.nbytes)
    assert [done for done, _ in steps].count(len(update.header.head)) == 1  # later tries begin with what is there


def test_another_session_goes_on_with_the_upload(server: Server, update: secagg.Update, tmp_path: Path) -> None:
    update.save(tmp_path / "update.secagg")
    server.cuts = [5]
    server.refusals["Resume"] = [None, grpc.StatusCode.PERMISSION_DENIED]
    with session_of(server) as session, pytest.raises(TransportError, match="PERMISSION_DENIED"):
        session.upload(tmp_path / "update.secagg")
    with session_of(server) as session:
        session.upload(tmp_path / "update.secagg")
    assert server.uploads == [(0, 5), (5, 3)]
    assert server.done.keys() == {update.header.head}


def test_only_the_tail_is_missing(server: Server, session: SiteSession, update: secagg.Update) -> None:
    head, *frames, _ = chunks_of(update)
    server.parts[head] = frames
    session.upload(update)
    assert server.uploads == [(7, 1)]


def test_what_is_there_is_not_sent_again(server: Server, session: SiteSession, update: secagg.Update) -> None:
    first = session.upload(update)
    second = session.upload(update)
    assert (first.already_added, second.already_added) == (False, True)
    assert first.receipt == second.receipt == session.receipt(0)
    assert len(server.uploads) == 1


def test_a_lost_answer_is_no_loss(server: Server, session: SiteSession, update: secagg.Update) -> None:
    server.refusals["after Upload"] = [grpc.StatusCode.UNAVAILABLE]
    uploaded = session.upload(update)
    assert uploaded.already_added
    assert uploaded.receipt is not None
    assert server.uploads == [(0, 8)]


@pytest.mark.parametrize("frame", [8, 9, 2**63])
def test_a_frame_that_there_is_not(server: Server, session: SiteSession, update: secagg.Update, frame: int) -> None:
    server.next_frame = frame
    with pytest.raises(FormatError, match=f"asks for frame {frame}, the update has 7"):
        session.upload(update)
    assert server.uploads == []


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
@pytest.mark.parametrize("name", ["Join", "Status", "Resume", "Upload"])
def test_a_failure_that_says_nothing_is_tried_again(
    server: Server, session: SiteSession, signed: Signed, name: str, code: grpc.StatusCode
) -> None:
    server.refusals[name] = [code, code]
    if name == "Join":
        session.join()
    elif name == "Status":
        session.status()
    else:
        session.upload(signed.site().encrypt(SMALL, round=0))
    assert server.calls.count(name) == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_failure_that_will_not_pass_is_told_at_once(
    server: Server, session: SiteSession, update: secagg.Update, code: grpc.StatusCode
) -> None:
    server.refusals["Resume"] = [code]
    with pytest.raises(TransportError, match=f"the upload failed: not today .{code.name}"):
        session.upload(update)
    assert server.calls == ["Resume"]


@pytest.mark.parametrize("name", ["Resume", "Upload"])
@pytest.mark.parametrize("error", [QuotaError("full"), IdentityError("revoked"), DigestError("frame 3")])
def test_a_refusal_is_told_at_once(
    server: Server, session: SiteSession, update: secagg.Update, name: str, error: SecAggError
) -> None:
    server.refusals[name] = [error]
    with pytest.raises(type(error), match=str(error)) as caught:
        session.upload(update)
    assert type(caught.value) is type(error)
    assert server.calls.count("Resume") == 1


@pytest.mark.parametrize("name", ["Join", "Status", "Resume", "Upload", "Download"])
def test_a_server_that_stalls(server: Server, update: secagg.Update, tmp_path: Path, name: str) -> None:
    server.refusals[f"stall {name}"] = []
    calls: dict[str, Callable[[SiteSession], object]] = {
        "Join": SiteSession.join,
        "Status": SiteSession.status,
        "Resume": lambda session: session.upload(update),
        "Upload": lambda session: session.upload(update),
        "Download": lambda session: session.download(0, tmp_path / "aggregate"),
    }
    with session_of(server, timeout=0.5) as session, pytest.raises(TransportError, match="DEADLINE_EXCEEDED"):
        calls[name](session)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_never_answers(update: secagg.Update) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with SiteSession(address, "site-1", tls=None, timeout=0.5) as session:
            for call in (session.join, session.status, lambda: session.upload(update)):
                with pytest.raises(TransportError):
                    call()


def test_what_progress_raises_is_the_callers(server: Server, session: SiteSession, update: secagg.Update) -> None:
    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError(done)

    with pytest.raises(ZeroDivisionError):
        session.upload(update, fail)
    assert server.done == {}


def test_an_update_that_becomes_shorter(
    server: Server, session: SiteSession, update: secagg.Update, tmp_path: Path
) -> None:
    path = tmp_path / "update.secagg"
    update.save(path)
    with secagg.Update.open(path) as opened:
        with path.open("r+b") as file:
            file.truncate(update.nbytes // 2)
        with pytest.raises(FormatError, match="became shorter"):
            session.upload(opened)
    assert server.done == {}


def test_only_an_update_is_uploaded_as_one(
    server: Server, session: SiteSession, signed: Signed, aggregate: secagg.Update, tmp_path: Path
) -> None:
    signed.site().encrypt_model(tmp_path / "model", SMALL, round=1, base=bytes(32))
    signed.site().encrypt_to(tmp_path / "update", SMALL)
    with pytest.raises(MismatchError, match="'aggregate' where 'update' belongs"):
        session.upload(aggregate)
    with pytest.raises(MismatchError, match="'model' where 'update' belongs"):
        session.upload(tmp_path / "model")
    with pytest.raises(MismatchError, match="'update' where 'model' belongs"):
        session.save_model(tmp_path / "update")
    with pytest.raises(FormatError, match="cannot read"):
        session.upload(tmp_path / "missing")
    assert server.calls == []


@contextlib.contextmanager
def cutting_proxy(address: str, cuts: list[int]) -> Iterator[str]:
    """A TCP proxy that drops its connections after so many bytes towards the server, one after another; then none."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, _, port = address.partition(":")
    stop = threading.Event()

    def pump(source: socket.socket, target: socket.socket, budget: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if budget is not None:
                    data, budget = data[:budget], budget - len(data)
                target.sendall(data)
                if budget is not None and budget <= 0:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.ExitStack() as ends, ThreadPoolExecutor(32) as pool:
            while True:
                near = ends.enter_context(listener.accept()[0])
                if stop.is_set():
                    return
                far = ends.enter_context(socket.create_connection((host, int(port))))
                pool.submit(pump, near, far, cuts.pop(0) if cuts else None)
                pool.submit(pump, far, near, None)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()


def test_connections_that_break_in_the_middle_of_frames(server: Server, update: secagg.Update) -> None:
    draw = random.Random(5)
    cuts = [10, 300, *(draw.randrange(1 << 21) for _ in range(12))]
    with (
        cutting_proxy(server.address, cuts) as address,
        SiteSession(address, "site-1", tls=None, timeout=240.0, project=server.signed.project) as session,
    ):
        uploaded = session.upload(update)
    assert uploaded.receipt is not None
    assert server.done.keys() == {update.header.head}
    assert len(cuts) < 14
    assert server.uploads[-1][0] > 0  # it did not begin anew


def test_a_proxy_without_a_server_behind_it(tmp_path: Path) -> None:
    """It takes connections and drops them: that is no refusal of a certificate, and may pass."""
    tls = Authority.create(tmp_path).issue_site("site-1")
    dropped = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drop() -> None:
        while not dropped.is_set():
            listener.accept()[0].close()

    thread = threading.Thread(target=drop)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    try:
        check_handshake(address, tls)
        with SiteSession(address, "site-1", tls=tls, timeout=1.0) as session:
            # The latter on a machine so slow that nothing was dropped yet.
            with pytest.raises(TransportError, match="UNAVAILABLE|DEADLINE_EXCEEDED") as caught:
                session.join()
            assert type(caught.value) is TransportError
    finally:
        dropped.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()


# Receipts.


def test_a_receipt_is_kept(server: Server, session: SiteSession, signed: Signed) -> None:
    updates = [signed.site().encrypt(SMALL, round=round) for round in range(3)]
    receipts = [session.upload(update).receipt for update in updates]
    for round, (receipt, update) in enumerate(zip(receipts, updates, strict=True)):
        assert receipt is not None
        assert session.receipt(round) == receipt
        receipt.check(update, signed.project)
    assert session.receipt(3) is None


def _none(signed: Signed, update: secagg.Update) -> bytes:
    return b""


def _of_a_site(signed: Signed, update: secagg.Update) -> bytes:
    return secagg.Receipt.of(update, signed.identities["site-2"]).to_bytes()


def _of_another_update(signed: Signed, update: secagg.Update) -> bytes:
    return secagg.Receipt.of(signed.site("site-2").encrypt(SMALL), signed.server).to_bytes()


def _of_another_body(signed: Signed, update: secagg.Update) -> bytes:
    return replace(secagg.Receipt.of(update, signed.server), body=bytes(32)).to_bytes()


def _cut(signed: Signed, update: secagg.Update) -> bytes:
    return secagg.Receipt.of(update, signed.server).to_bytes()[:-1]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_none, SignatureError),
        (_of_a_site, SignatureError),
        (_of_another_body, SignatureError),
        (_of_another_update, VerificationError),
        (_cut, FormatError),
    ],
)
def test_a_receipt_that_is_none(
    server: Server, session: SiteSession, signed: Signed, make: Callable[..., bytes], error: type[SecAggError]
) -> None:
    server.sign = lambda update: make(signed, update)
    update = signed.site().encrypt(SMALL)
    for _ in range(2):  # of the upload, and of the same that is there already
        with pytest.raises(error) as caught:
            session.upload(update)
        assert type(caught.value) is error
        assert session.receipt(0) is None
    assert len(server.uploads) == 1
    with session_of(server, project=False) as other:  # it could not verify one
        assert other.upload(update).receipt is None


# Joining.


def test_join(server: Server, session: SiteSession, signed: Signed) -> None:
    server.join |= {"round": 7, "base": b"b" * 32}
    assert session.join() == Joined(
        round=7,
        min_clients=2,
        max_clients=4,
        round_timeout=5.0,
        key=signed.project.key,
        epoch=0,
        base=b"b" * 32,
        project=signed.project,
        manifest=server.project,
    )
    server.join["base"] = b""
    assert session.join().base is None


def test_without_a_manifest_of_its_own_a_session_believes_none(server: Server) -> None:
    server.project = b"whatever"
    with session_of(server, project=False) as session:
        joined = session.join()
        assert (joined.project, joined.manifest) == (None, b"")


def test_a_later_manifest_counts_from_now_on(server: Server, session: SiteSession, signed: Signed) -> None:
    """A server with another identity is believed once the provisioner says so."""
    update = signed.site().encrypt(SMALL)
    new = secagg.Identity.generate()
    server.sign = lambda update: secagg.Receipt.of(update, new).to_bytes()
    with pytest.raises(SignatureError):
        session.upload(update)
    later = signed.reissue(server=replace(signed.project.server, public=new.public))
    server.project = later.sign(signed.authority)
    joined = session.join()
    assert (joined.project, joined.manifest) == (later, server.project)
    assert session.upload(update).receipt is not None
    server.project = signed.project.sign(signed.authority)
    with pytest.raises(VerificationError, match="serial 0, an earlier one had 1"):
        session.join()


def _nothing(signed: Signed) -> bytes:
    return b""


def _garbage(signed: Signed) -> bytes:
    return b"garbage"


def _of_another_authority(signed: Signed) -> bytes:
    other = secagg.Identity.generate()
    return replace(signed.project, authority=other.public).sign(other)


def _tampered(signed: Signed) -> bytes:
    blob = bytearray(signed.project.sign(signed.authority))
    blob[-1] ^= 1
    return bytes(blob)


def _revoking(signed: Signed) -> bytes:
    return signed.without("site-1").sign(signed.authority)


def _without_the_site(signed: Signed) -> bytes:
    return signed.reissue(sites=signed.project.sites[1:]).sign(signed.authority)


def _expired(signed: Signed) -> bytes:
    return signed.reissue(expires=int(time.time()) - 1).sign(signed.authority)


def _of_tomorrow(signed: Signed) -> bytes:
    now = int(time.time())
    return signed.reissue(issued=now + 86_400, expires=now + 2 * 86_400).sign(signed.authority)


def _of_another_key(signed: Signed) -> bytes:
    return signed.reissue(key="ab" * 32).sign(signed.authority)


def _of_another_epoch(signed: Signed) -> bytes:
    return signed.reissue(epoch=1).sign(signed.authority)


def _of_another_server(signed: Signed) -> bytes:
    return signed.reissue(server=replace(signed.project.server, certificate="ab" * 32)).sign(signed.authority)


def _another_of_the_same_serial(signed: Signed) -> bytes:
    return replace(signed.project, expires=signed.project.expires + 1).sign(signed.authority)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (_nothing, IdentityError, "shows no manifest"),
        (_garbage, FormatError, "magic"),
        (_of_another_authority, SignatureError, "not of the authority"),
        (_tampered, SignatureError, "not that of the authority"),
        (_revoking, IdentityError, "'site-1' has been revoked"),
        (_without_the_site, IdentityError, "'site-1' is not in project"),
        (_expired, IdentityError, "project expired on"),
        (_of_tomorrow, IdentityError, "is not valid before"),
        (_of_another_key, KeyMismatchError, "unpack the server's newest kit"),
        (_of_another_epoch, KeyMismatchError, "of epoch 0, its manifest says .* of epoch 1"),
        (_of_another_server, IdentityError, "there has been a rotation: manifest 1 .* unpack the newest kit of site-1"),
        (_another_of_the_same_serial, VerificationError, "serial"),
    ],
)
def test_a_manifest_that_does_not_follow(
    server: Server,
    session: SiteSession,
    signed: Signed,
    make: Callable[[Signed], bytes],
    error: type[SecAggError],
    match: str,
) -> None:
    server.project = make(signed)
    with pytest.raises(error, match=match) as caught:
        session.join()
    assert type(caught.value) is error
    server.project = signed.project.sign(signed.authority)
    assert session.join().project == signed.project  # the session goes by its own still


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan, 1e9])
def test_a_round_timeout_that_is_none(server: Server, session: SiteSession, seconds: float) -> None:
    server.join["round_timeout"] = seconds
    with pytest.raises(FormatError, match="round timeout"):
        session.join()


def test_a_base_that_is_none(server: Server, session: SiteSession) -> None:
    server.join["base"] = b"short"
    with pytest.raises(FormatError, match="by 5 bytes"):
        session.join()


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        SiteSession("127.0.0.1:1", "site-1", tls=None, timeout=timeout)


def test_status(session: SiteSession) -> None:
    status = session.status()
    assert (status.round, status.attempt, status.state, status.models) == (3, 2, "open", (2, 3))
    assert (status.seconds_left, status.time, status.base) == (None, 12.5, bytes(32))


# Downloads.


def test_a_model_goes_there_and_back(server: Server, session: SiteSession, signed: Signed, tmp_path: Path) -> None:
    signed.site("site-2").encrypt_model(tmp_path / "model", STATE, round=4, base=bytes(32))
    server.cuts = [1, 3]
    steps: list[tuple[int, int]] = []
    assert session.save_model(tmp_path / "model", lambda *step: steps.append(step))
    assert [frame for frame, _ in server.uploads] == [0, 1, 4]
    assert not session.save_model(tmp_path / "model")
    with secagg.Update.open(tmp_path / "model") as model:
        server.downloads = [chunks_of(model)] * 2
        assert steps[-1] == (model.nbytes, model.nbytes)
    for round in (None, 4):
        with session.load_model(tmp_path / "back", round) as model:
            assert (model.header.round, model.header.site) == (4, "site-2")
            np.testing.assert_array_equal(signed.site().decrypt_model(model)["w"], STATE["w"])
        request = server.requests[-1]
        assert (request.kind, request.HasField("round")) == ("model", round is not None)
    with secagg.Update.open(tmp_path / "model") as model:
        server.downloads = [chunks_of(model)]
    with pytest.raises(RoundMismatchError, match="round 4, not 5"):
        session.load_model(tmp_path / "other", 5)
    assert not (tmp_path / "other").exists()


def test_the_server_has_no_model(server: Server, session: SiteSession, tmp_path: Path) -> None:
    server.refusals["Download"] = [RoundMismatchError("no model is stored")]
    with pytest.raises(RoundMismatchError, match="no model is stored"):
        session.load_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


SPOILT: dict[str, tuple[Callable[[list[bytes]], list[bytes]], type[SecAggError]]] = {
    "nothing": (lambda chunks: [], FormatError),
    "no tail": (lambda chunks: chunks[:-1], FormatError),
    "trailing byte": (lambda chunks: [*chunks, b"x"], FormatError),
    "empty chunk": (lambda chunks: [chunks[0], b"", *chunks[1:]], FormatError),
    "large chunk": (lambda chunks: [chunks[0], bytes((1 << 20) + 33), *chunks[1:]], FormatError),
    "garbage": (lambda chunks: [b"garbage", *chunks[1:]], FormatError),
    "damaged head": (lambda chunks: [chunks[0][:-1] + b"\0", *chunks[1:]], DigestError),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_download_that_is_damaged(
    server: Server,
    session: SiteSession,
    aggregate: secagg.Update,
    tmp_path: Path,
    fault: str,
) -> None:
    spoil, error = SPOILT[fault]
    server.downloads = [spoil(chunks_of(aggregate)), chunks_of(aggregate)]
    path = tmp_path / "aggregate"
    with pytest.raises(error) as caught:
        session.download(0, path)
    assert type(caught.value) is error
    assert list(tmp_path.iterdir()) == []
    with session.download(0, path) as whole:
        assert whole.to_bytes() == aggregate.to_bytes()


def test_another_download_than_was_asked_for(
    server: Server, session: SiteSession, signed: Signed, aggregate: secagg.Update, tmp_path: Path
) -> None:
    server.downloads = [chunks_of(aggregate), chunks_of(signed.site().encrypt(SMALL)), chunks_of(aggregate)]
    with pytest.raises(RoundMismatchError, match="aggregate of round 0, not 1"):
        session.download(1, tmp_path / "x")
    with pytest.raises(FormatError, match="'update' where 'aggregate' was asked for"):
        session.download(0, tmp_path / "x")
    with pytest.raises(FormatError, match="'aggregate' where 'model' was asked for"):
        session.load_model(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_is_tried_again(
    server: Server, session: SiteSession, aggregate: secagg.Update, tmp_path: Path
) -> None:
    server.refusals["Download"] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
    server.downloads = [chunks_of(aggregate)]
    session.download(0, tmp_path / "aggregate").close()
    assert server.calls == ["Download"] * 3


def test_a_file_that_cannot_be_written(
    server: Server, session: SiteSession, aggregate: secagg.Update, tmp_path: Path
) -> None:
    server.downloads = [chunks_of(aggregate)]
    with pytest.raises(StorageError, match="missing"):
        session.download(0, tmp_path / "missing" / "aggregate")


# Exchanges.


def test_another_encryption_of_this_site_is_in_the_sum(
    server: Server,
    session: SiteSession,
    signed: Signed,
    aggregate: secagg.Update,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The site's first update was added, the answer was lost, and the restarted site has encrypted anew."""
    server.refusals["Resume"] = [DuplicateError("another update of 'site-1' is already in the sum of round 0")]
    server.downloads = [chunks_of(aggregate)]
    with (
        caplog.at_level(logging.WARNING),
        session.exchange(signed.site().encrypt(SMALL), tmp_path / "aggregate") as result,
    ):
        assert "site-1" in result.header.sites
    assert server.requests[0].nonce == b""  # that of the first one is not known
    [record] = caplog.records
    assert "an earlier update of site-1 is in the sum of round 0 and counts (another update of" in record.message


def test_the_own_earlier_upload_is_waited_for(
    server: Server, session: SiteSession, signed: Signed, aggregate: secagg.Update, tmp_path: Path
) -> None:
    first, second = (signed.site().encrypt(SMALL) for _ in range(2))
    session.upload(first)
    server.refusals["Resume"] = [DuplicateError("another update of 'site-1' is already in the sum of round 0")]
    server.downloads = [chunks_of(aggregate)]
    session.exchange(second, tmp_path / "aggregate").close()
    assert server.requests[0].nonce == first.header.contributions[0].nonce
    assert session.receipt(0) is not None


def test_a_duplicate_that_is_not_of_this_site(
    server: Server, session: SiteSession, signed: Signed, tmp_path: Path
) -> None:
    others = signed.add([signed.site(name).encrypt(SMALL, round=0) for name in ("site-2", "site-3")])
    server.refusals["Resume"] = [DuplicateError("the nonce is in the sum")]
    server.downloads = [chunks_of(others)]
    with pytest.raises(DuplicateError, match="the nonce is in the sum"):
        session.exchange(signed.site().encrypt(SMALL), tmp_path / "aggregate")


def test_another_encryption_of_this_site_is_in_a_sum_that_is_done(
    server: Server, session: SiteSession, signed: Signed, aggregate: secagg.Update, tmp_path: Path
) -> None:
    server.refusals["Resume"] = [RoundMismatchError("round 1 is open")] * 3
    server.downloads = [chunks_of(aggregate)]
    with session.exchange(signed.site().encrypt(SMALL), tmp_path / "aggregate") as result:
        assert "site-1" in result.header.sites
    others = signed.add([signed.site(name).encrypt(SMALL, round=0) for name in ("site-2", "site-3")])
    server.downloads = [chunks_of(others)]
    for _ in range(2):  # the round ended without this site; its aggregate is not kept any more
        with pytest.raises(RoundMismatchError, match="round 1 is open"):
            session.exchange(signed.site().encrypt(SMALL), tmp_path / "other")
        server.refusals["Download"] = [RoundMismatchError("the aggregate of round 0 is not kept any more")]
    assert not (tmp_path / "other").exists()


def test_an_update_that_the_server_has_lost_is_sent_again(
    server: Server, session: SiteSession, signed: Signed, aggregate: secagg.Update, tmp_path: Path
) -> None:
    update = signed.site().encrypt(SMALL, round=0)
    server.refusals["Download"] = [StateError("upload it again")] * 2
    server.downloads = [chunks_of(aggregate)]
    session.exchange(update, tmp_path / "aggregate").close()
    assert server.calls == ["Resume", "Upload", "Download"] + ["Resume", "Download"] * 2
    server.refusals["Download"] = [StateError("upload it again")] * 9
    with pytest.raises(TransportError, match="lost the update of 'site-1' 5 times"):
        session.exchange(update, tmp_path / "aggregate")


# Against the real server.


@pytest.fixture
def real(signed: Signed, tmp_path: Path) -> Iterator[RealServer]:
    with RealServer(
        signed.config,
        signed.federation.keys.server,
        tmp_path / "run",
        insecure=True,
        project=signed.project,
        identity=signed.server,
    ) as server:
        yield server


def test_a_round_over_connections_that_break(real: RealServer, signed: Signed, tmp_path: Path) -> None:
    draw = random.Random(6)
    base = signed.site().base(STATE)

    def take_part(name: str, address: str) -> None:
        site = signed.site(name)
        with SiteSession(address, name, tls=None, timeout=240.0, project=signed.project) as session:
            assert session.join().base in (None, base)
            update = site.encrypt(STATE, round=0, base=base)
            with session.exchange(update, tmp_path / name) as aggregate:
                receipt = session.receipt(0)
                assert receipt is not None
                mean = site.decrypt(aggregate, round=0, base=base, receipt=receipt)
                assert np.abs(mean["w"] - STATE["w"]).max() < 1e-4
                assert session.join().base == aggregate.next_base

    with contextlib.ExitStack() as proxies, ThreadPoolExecutor() as pool:
        sites = []
        for name in SITES:
            with SiteSession(real.address, name, tls=None, project=signed.project) as session:
                session.join()
            cuts = [draw.randrange(1 << 21) for _ in range(5)]
            sites.append((name, proxies.enter_context(cutting_proxy(real.address, cuts))))
        for done in [pool.submit(take_part, *site) for site in sites]:
            done.result()


def test_a_stored_model_of_the_real_server(real: RealServer, signed: Signed, tmp_path: Path) -> None:
    site, path = signed.site(), tmp_path / "model"
    site.encrypt_model(path, SMALL, round=0, base=site.base(SMALL))
    with SiteSession(real.address, "site-1", tls=None, project=signed.project) as session:
        assert session.status().models == ()
        with pytest.raises(RoundMismatchError, match="no model"):
            session.load_model(tmp_path / "none")
        assert session.save_model(path)
        assert not session.save_model(path)
        assert session.status().models == (0,)
        with session.load_model(tmp_path / "back") as model:
            np.testing.assert_array_equal(signed.site("site-2").decrypt_model(model)["w"], SMALL["w"])
        site.encrypt_model(path, SMALL, round=5, base=bytes(32))
        with pytest.raises(RoundMismatchError, match="round 5"):
            session.save_model(path)


def test_a_restarted_site_against_the_real_server(
    real: RealServer, signed: Signed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its first update is in the sum, it has encrypted anew, and then the round ends."""
    with SiteSession(real.address, "site-1", tls=None, project=signed.project) as session:
        session.upload(signed.site().encrypt(SMALL))
    for name in ("site-2", "site-1"):
        site = signed.site(name)
        with SiteSession(real.address, name, tls=None, project=signed.project) as session:
            update = site.encrypt(SMALL, round=0)
            with session.exchange(update, tmp_path / name) as aggregate:
                assert aggregate.header.sites == ("site-1", "site-2")
                assert np.abs(site.decrypt(aggregate, round=0)["w"] - SMALL["w"]).max() < 1e-4
    assert "an earlier update of site-1 is in the sum of round 0 and counts" in caplog.text
