"""The calls of a server, as one function of any bytes: a script of calls by parties that mean harm.

The server is a real one but for the network: its servicer, with contexts that say who calls. Each call ends with
a reply or a typed error. What was acknowledged stays, also when the server starts again. The disk stays below quota.
A script whose first byte is 128 or more is of a federation whose rounds begin with a calibration.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fuzz_worlds import AUTHORITY, BASE, NAMES, SERVER, World, scratch
from google.protobuf.message import DecodeError, Message

import secagg
from secagg.errors import ConfigError, SecAggError
from secagg.integrations.grpc import secagg_pb2
from secagg.integrations.grpc.gate import Gate
from secagg.integrations.grpc.refusals import ERROR_KEY
from secagg.integrations.grpc.servicer import Servicer
from secagg.server import open_round
from secagg.server.federation import Federation
from secagg.server.limits import Limits
from secagg.trust.identity import check_signature

T = TypeVar("T")

#: Operations of a script. Those of templates refer to updates and models that are made when the process starts.
JOIN, RESUME, UPLOAD, CHUNK, DOWNLOAD, STATUS, RESTART, SEND, ASK, FETCH, WAIT = range(11)
OPERATIONS = 11
#: Behind the first of them, in the place of 0, where scales are measured: a multiple of `OPERATIONS`, of 128 or more.
MEASURED = 132

#: What a server signs begins with it.
RECEIPT = b"secagg receipt v1"

#: One record of a script: operation, caller, and the length of what follows.
_RECORD = struct.Struct("<BBH")
MAX_RECORDS = 48
MAX_PAYLOAD = (1 << 16) - 1

ROUND_TIMEOUT = 100.0
LIMITS = Limits(uploads_in_flight=2, slot_seconds=0.01, disk_quota=400_000, max_upload_nbytes=150_000)


@dataclass(frozen=True)
class Record:
    """One call, or a chunk of the upload before it."""

    operation: int
    caller: int
    payload: bytes

    def to_bytes(self) -> bytes:
        return _RECORD.pack(self.operation, self.caller, len(self.payload)) + self.payload


def read_script(data: bytes) -> list[Record]:
    """The records of any bytes; what is cut at the end is shorter."""
    records, place = [], 0
    while place + _RECORD.size <= len(data) and len(records) < MAX_RECORDS:
        operation, caller, length = _RECORD.unpack_from(data, place)
        place += _RECORD.size
        records.append(Record(operation % OPERATIONS, caller, data[place : place + length]))
        place += length
    return records


def certificate(name: str, days: int = 10_000) -> bytes:
    """A certificate in DER that says what those of `secagg provision` do; who issued it, TLS has checked.

    It is signed by itself, by Ed25519, which makes the same bytes each time: the manifest has its digest, and updates
    that were kept have that of the manifest.
    """
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"certificate of {name}".encode()).digest())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.datetime(2020, 1, 1)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=days))
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(key, None).public_bytes(serialization.Encoding.DER)


def pem(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).public_bytes(serialization.Encoding.PEM)


_CERTIFICATES = {name: certificate(name) for name in (*NAMES, "server")}
_PEMS = {name: pem(der) for name, der in _CERTIFICATES.items()}

#: Whose scales are fixed, and whose are measured in the round.
WORLDS = (
    World.of("seeded", clear=True, certificates=_CERTIFICATES),
    World.of("measured", clear=False, certificates=_CERTIFICATES),
)

#: Who may call, by number: the parties; one who is no party; a site's other certificate, and an expired one; nobody,
#: two at once, and rubbish.
CALLERS: tuple[dict[str, list[bytes]], ...] = (
    *({"x509_pem_cert": [pem]} for pem in _PEMS.values()),
    {"x509_pem_cert": [pem(certificate("site-9"))]},
    {"x509_pem_cert": [pem(certificate("site-1", days=9_999))]},
    {"x509_pem_cert": [pem(certificate("site-1", days=1))]},
    {},
    {"x509_pem_cert": list(_PEMS.values())[:2]},
    {"x509_pem_cert": [b"-----BEGIN CERTIFICATE-----\n"]},
)


def measures(script: bytes) -> bool:
    """Whether a script is of the federation whose scales are measured."""
    return script[:1] >= b"\x80"


def make_templates(world: World) -> list[bytes]:
    """What a federation could have sent in three rounds, with and without bases: of each site, then a model of one."""
    templates = []
    sites = [world.site(name) for name in NAMES]
    for site in sites:
        site.restore_carry(b"")
    with scratch() as folder:
        for round, base in ((0, None), (0, BASE), (1, None), (2, None)):
            groups, scales = [], None
            if world.precision == "auto":
                groups.append([site.calibrate(world.state, 1.0, round, base=base) for site in sites])
                aggregator = secagg.Aggregator(
                    world.config, world.key.server, round, project=world.project, kind="calibration"
                )
                for calibration in groups[0]:
                    aggregator.add(calibration)
                scales = aggregator.finish()
            groups.append([site.encrypt(world.state, round=round, base=base, calibration=scales) for site in sites])
            sites[1].encrypt_model(path := f"{folder}/model", world.state, round=round, base=base)
            for group in groups:
                templates += [update.to_bytes() for update in group] + [Path(path).read_bytes()]
    return templates


TEMPLATES = [make_templates(world) for world in WORLDS]


def chunks_of(container: bytes) -> list[bytes]:
    """A container as it is sent."""
    return [bytes(chunk) for chunk in secagg.Update.from_bytes(container).chunks()]


class Aborted(Exception):
    """What gRPC's `abort` raises."""


class Broken(grpc.RpcError):
    """What a stream raises whose other side is gone."""


class Context:
    """The part of a gRPC context that handlers use; nobody waits on the other side."""

    def __init__(self, caller: int) -> None:
        self._caller = CALLERS[caller % len(CALLERS)]
        self.code: grpc.StatusCode | None = None
        self.metadata: dict[str, str] = {}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._caller

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"

    def is_active(self) -> bool:
        return False

    def cancel(self) -> None:
        return

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.metadata = dict(metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        assert isinstance(code, grpc.StatusCode)
        assert code is not grpc.StatusCode.OK
        details.encode()  # what cannot be sent would end the call otherwise
        self.code = code
        raise Aborted


class Failed(logging.Handler):
    """Keeps what a handler did not expect: the site is told nothing of it, so that it must be found here."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        if getattr(record, "event", None) == "failed" and record.exc_info:
            self.error = record.exc_info[1]


class Clock:
    """In place of the module `time` in the federation: rounds time out when a script says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Server:
    """A server on a folder of its own, which can start again."""

    def __init__(self, folder: str, world: World, failed: Failed, clock: Clock) -> None:
        self._folder, self._world, self._failed, self._clock = folder, world, failed, clock
        self._acknowledged: dict[tuple[str, int, str], bytes] = {}
        self._start()

    def _start(self) -> None:
        self._federation = Federation(
            self._world.config,
            self._world.key.server,
            self._folder,
            round_timeout=ROUND_TIMEOUT,
            project=secagg.Project.from_bytes(self._world.project.sign(AUTHORITY)),
            identity=SERVER,
            limits=LIMITS,
        )
        servicer = Servicer(self._federation)
        gate = Gate(servicer)
        unary, download = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler(servicer.Download)
        self._calls = {
            "Upload": servicer.Upload,
            "Download": gate.intercept_service(lambda _: download, None).stream_stream,
        }
        for name in ("Join", "Resume", "Status"):
            handler = unary(getattr(servicer, name))
            self._calls[name] = gate.intercept_service(lambda _, handler=handler: handler, None).stream_unary

    def restart(self) -> None:
        self.close()
        self._start()
        self.check()

    def close(self) -> None:
        self._federation.close()

    def wait(self) -> None:
        """Let the open round time out."""
        self._clock.now += ROUND_TIMEOUT
        with self._federation._round._adding:
            self._federation._round._settle()
        self._tidy()

    def _tidy(self) -> None:
        """What the thread of `OpenRound.watch` does when a round has ended; here there is none."""
        if self._federation._round._untidy:
            with self._federation._round._adding:
                self._federation._round._clear()

    def call(self, name: str, request: Message | None, caller: int) -> Any:
        """Make a call of one message, or of none; what it returns is as of `call_with`."""
        return self.call_with(name, iter(() if request is None else (request,)), caller)

    def call_with(self, name: str, messages: Iterator[Message], caller: int) -> Any:
        """Make a call; return its reply or replies, or None if it was refused, with a typed error or for its turn."""
        context = Context(caller)
        reply = None
        with suppress(Aborted, Broken):
            answer = self._calls[name](messages, context)
            reply = list(answer) if name == "Download" else answer  # only reading a stream makes the call
        self._tidy()
        if self._failed.error is not None:
            raise self._failed.error
        if reply is None and context.code is not None:
            kind = context.metadata.get(ERROR_KEY)
            assert kind or context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert kind is None or issubclass(getattr(secagg.errors, kind), SecAggError)
        for message in reply if isinstance(reply, list) else [reply]:
            assert message is None or message.SerializeToString() is not None
        return reply

    def upload(self, messages: list[secagg_pb2.Chunk], caller: int, *, broken: bool) -> None:
        def stream() -> Iterator[secagg_pb2.Chunk]:
            yield from messages
            if broken:
                raise Broken

        reply = self.call_with("Upload", stream(), caller)
        if reply is None:
            return
        header = secagg.Header.from_head(messages[0].data)
        if header.kind == "update":
            receipt = secagg.Receipt.from_bytes(reply.receipt)
            check_signature(SERVER.public, receipt.signature, RECEIPT + receipt.head + receipt.body, "the server")
            # The same is what has the same nonce: the receipt is for what was added, whatever came now.
            assert reply.already_added or receipt.head == header.head[-32:]
        else:
            assert reply.receipt == b""
        if header.kind != "model":
            self._acknowledged[header.kind, header.round, header.site] = header.contributions[0].nonce

    def check(self) -> None:
        """What was acknowledged is in the sum of its round, once, and nobody else is; the disk has room."""
        status = self._federation.status()
        assert status.disk_used <= LIMITS.disk_quota, status.disk_used
        added = sorted(self._given(status.stage or "update", status.round))
        assert list(status.added) == added, (status.added, added)
        for round in status.aggregates:
            with self._sum("aggregate", round) as aggregate, suppress(SecAggError):
                self._world.site().decrypt(aggregate)
        if status.stage == "update":
            with self._sum("scales", status.round) as scales, suppress(SecAggError):
                site, header = self._world.site(), scales.header
                site.restore_carry(b"")
                site.encrypt(self._world.state, round=header.round, base=header.base, calibration=scales)

    @contextmanager
    def _sum(self, kind: str, round: int) -> Iterator[secagg.Update]:
        """A sum that the server has stored, which is whole and of what was acknowledged."""
        with secagg.Update.open(Path(self._folder) / f"{kind}-{round}.secagg") as summed:
            listed = {item.site: item.nonce for item in summed.header.contributions}
            assert listed == self._given("update" if kind == "aggregate" else "calibration", round)
            for _ in summed.frames():
                pass
            self._world.project.site(summed.header.sites[0])
            yield summed

    def _given(self, kind: str, round: int) -> dict[str, bytes]:
        """The nonces that were acknowledged, by site."""
        return {
            site: nonce
            for (its_kind, its_round, site), nonce in self._acknowledged.items()
            if (its_kind, its_round) == (kind, round)
        }


@contextmanager
def _instead(module: Any, name: str, value: T) -> Iterator[T]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield value
    finally:
        setattr(module, name, before)


@contextmanager
def _heard() -> Iterator[Failed]:
    """Listen to what the package logs; nobody else does meanwhile."""
    log, failed = logging.getLogger("secagg"), Failed()
    before = log.level, log.propagate
    log.addHandler(failed)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield failed
    finally:
        log.removeHandler(failed)
        log.setLevel(before[0])
        log.propagate = before[1]


class Script:
    """Runs scripts, each on a new server that works in `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) / "run"

    def __call__(self, data: bytes) -> None:
        with _instead(open_round, "time", Clock()) as clock, _heard() as failed:
            server = Server(str(self._folder), WORLDS[measures(data)], failed, clock)
            try:
                self._run(server, read_script(data), TEMPLATES[measures(data)])
                server.check()
                server.restart()
            finally:
                server.close()
                shutil.rmtree(self._folder)

    def _run(self, server: Server, records: list[Record], templates: list[bytes]) -> None:
        place = 0
        while place < len(records):
            record = records[place]
            place += 1
            follow = place
            while record.operation == UPLOAD and follow < len(records) and records[follow].operation == CHUNK:
                follow += 1
            with suppress(DecodeError):  # gRPC answers what is no message
                self._make(server, record, records[place:follow], templates)
            place = follow

    def _make(self, server: Server, record: Record, following: list[Record], templates: list[bytes]) -> None:
        payload, caller = record.payload, record.caller
        template = templates[payload[0] % len(templates)] if payload else templates[0]
        options = [*payload[1:4], 0, 0, 0][:3]
        if record.operation == JOIN:
            named = secagg_pb2.JoinRequest(site=NAMES[caller % len(NAMES)])
            server.call("Join", secagg_pb2.JoinRequest.FromString(payload) if payload else named, caller)
        elif record.operation == RESUME:
            server.call("Resume", secagg_pb2.Chunk.FromString(payload), caller)
        elif record.operation == UPLOAD:
            messages = [secagg_pb2.Chunk.FromString(item.payload) for item in (record, *following)]
            server.upload(messages, caller, broken=bool(following and following[-1].caller % 2))
        elif record.operation == DOWNLOAD:
            server.call("Download", secagg_pb2.DownloadRequest.FromString(payload), caller)
        elif record.operation == STATUS:
            server.call("Status", None if payload else secagg_pb2.StatusRequest(), caller)
        elif record.operation == RESTART:
            with suppress(ConfigError):
                server.restart()
        elif record.operation == SEND:
            frame, less, broken = options
            head, *chunks = chunks_of(template)
            chunks = chunks[frame % 4 :][: len(chunks) - less % 4]
            messages = [secagg_pb2.Chunk(data=head, frame=frame), *(secagg_pb2.Chunk(data=chunk) for chunk in chunks)]
            server.upload(messages, caller, broken=bool(broken % 2))
        elif record.operation == ASK:
            server.call("Resume", secagg_pb2.Chunk(data=chunks_of(template)[0]), caller)
        elif record.operation == FETCH:
            header = secagg.Update.from_bytes(template).header
            nonce = header.contributions[0].nonce if options[0] % 2 else b""
            kind = ("", "aggregate", "model", "update", "scales")[options[1] % 5]
            request = secagg_pb2.DownloadRequest(nonce=nonce, kind=kind)
            if options[2] % 2:
                request.round = header.round
            server.call("Download", request, caller)
        elif record.operation == WAIT:
            server.wait()
