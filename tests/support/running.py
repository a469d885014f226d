"""A signed federation on real sockets: its server in this process, and calls that no well-behaved site makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from federation import Federation
from signed import Signed, sign_federation

import secagg
from secagg.errors import SecAggError
from secagg.integrations.grpc import Server, SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.credentials import channel_credentials
from secagg.integrations.grpc.refusals import error_of
from secagg.trust import Authority, Certificate, Tls

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 16}},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0},
}
#: Seven frames.
STATE = {"w": np.linspace(-1, 1, 2_500_000, dtype=np.float32)}
SMALL = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}
SITES = ("site-1", "site-2", "site-3")

#: Of calls that must not run into it, on a slow machine either.
_SECONDS = 120.0


def make_signed(epoch: int = 0, **fields: Any) -> Signed:
    """A federation of three sites under keys of its own; `fields` are of the project."""
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config, epoch)), **fields)


def certify(signed: Signed, authority: Authority) -> tuple[Signed, dict[str, Tls]]:
    """Issue the certificates of all parties; return them, and the federation whose project names them."""
    tls = {"server": authority.issue_server(), **{name: authority.issue_site(name) for name in signed.names}}

    def named(member: Any) -> Any:
        return replace(member, certificate=Certificate.load(tls[member.name]).fingerprint)

    project = signed.reissue(
        server=named(signed.project.server),
        server_certificate=Certificate.load(tls["server"]).der,
        sites=tuple(map(named, signed.project.sites)),
    )
    return replace(signed, project=project), tls


@dataclass
class Running:
    """A server that runs. Without certificates sites are who they say they are."""

    signed: Signed
    folder: Path
    server: Server
    certificates: Mapping[str, Tls] = field(default_factory=dict)

    def session(self, name: str, **options: Any) -> SiteSession:
        options = {"tls": self.certificates.get(name), "project": self.signed.project, "timeout": _SECONDS} | options
        return SiteSession(self.server.address, name, **options)

    @contextmanager
    def channel(self, name: str = "site-1", *options: tuple[str, Any], **keywords: Any) -> Iterator[grpc.Channel]:
        """A connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1), *options)
        tls = self.certificates.get(name)
        if tls is None:
            channel = grpc.insecure_channel(self.server.address, options, **keywords)
        else:
            channel = grpc.secure_channel(self.server.address, channel_credentials(tls), options, **keywords)
        with channel:
            yield channel

    @contextmanager
    def stub(self, name: str = "site-1", **keywords: Any) -> Iterator[pb_grpc.SecureAggregationStub]:
        with self.channel(name, **keywords) as channel:
            yield pb_grpc.SecureAggregationStub(channel)

    def send(self, update: secagg.Update, chunks: Iterable[bytes] | None = None, frame: int = 0) -> pb.UploadReply:
        """Upload at once, without asking where to go on; raise the server's typed error, or what gRPC says."""
        chunks = chunks_of(update) if chunks is None else list(chunks)
        with self.stub(update.header.site) as stub:
            return typed(lambda: stub.Upload(messages(chunks, frame), timeout=_SECONDS))

    def resume(self, update: secagg.Update, name: str | None = None) -> pb.ResumeReply:
        """Ask where an upload goes on."""
        with self.stub(name or update.header.site) as stub:
            return typed(lambda: stub.Resume(pb.Chunk(data=update.header.head), timeout=_SECONDS))

    @contextmanager
    def paused(self, update: secagg.Update, frames: int) -> Iterator[Paused]:
        """Upload so many frames; the block begins when they are on the server's disk."""
        with self.stub(update.header.site) as stub:
            upload = Paused(stub, update, frames)
            try:
                wait_until(lambda: upload.call.done() or self.frames_in(update) >= frames)
                yield upload
            finally:
                upload.call.cancel()  # first: or more frames could be on their way
                upload.go_on()

    def frames_in(self, update: secagg.Update) -> int:
        """How many frames of an update are whole in the spool."""
        frames = 0
        with suppress(SecAggError), secagg.Update.open(self.part(update)) as part:
            for _ in part.frames():
                frames += 1
        return frames

    def part(self, update: secagg.Update) -> Path:
        suffix = ".model" if update.header.kind == "model" else ".part"
        return self.folder / "spool" / f"{update.header.site}{suffix}"

    def spool(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "spool").iterdir())

    def run_round(self, round: int, state: Any = SMALL, names: Iterable[str] = SITES) -> secagg.Update:
        """Let sites go through a round; return its aggregate."""
        names = list(names)
        base = self.server.status().base
        for name in names:
            with self.session(name) as session:
                session.join()
        for name in names:
            with self.session(name) as session:
                session.upload(self.signed.site(name).encrypt(state, round=round, base=base))
        with self.session(names[0]) as session:
            path = self.folder.with_name(f"{self.folder.name}-aggregate-{round}")
            aggregate = session.download(round, path)
            with aggregate:
                return secagg.Update.from_bytes(aggregate.to_bytes())


class Paused:
    """An upload that stops in the middle until it is told to go on."""

    def __init__(self, stub: pb_grpc.SecureAggregationStub, update: secagg.Update, frames: int) -> None:
        self._go_on = threading.Event()
        self._messages = list(messages(chunks_of(update)))
        self._frames = frames
        self.call = stub.Upload.future(self._send(), timeout=_SECONDS)

    def go_on(self) -> None:
        self._go_on.set()

    def _send(self) -> Iterator[pb.Chunk]:
        for index, message in enumerate(self._messages):
            if index > self._frames:
                self._go_on.wait()
            yield message


@contextmanager
def serving(
    signed: Signed, folder: Path, certificates: Mapping[str, Tls] | None = None, **options: Any
) -> Iterator[Running]:
    """A server on a run folder while the block lasts; `options` go to the constructor."""
    tls = (certificates or {}).get("server")
    arguments = {"project": signed.project, "identity": signed.server, "tls": tls, "insecure": tls is None}
    with Server(signed.config, signed.federation.keys.server, folder, **(arguments | options)) as server:
        yield Running(signed, folder, server, certificates or {})


def chunks_of(update: secagg.Update) -> list[bytes]:
    return [bytes(chunk) for chunk in update.chunks()]


def messages(chunks: Iterable[bytes], frame: int = 0) -> Iterator[pb.Chunk]:
    for index, chunk in enumerate(chunks):
        yield pb.Chunk(data=chunk, frame=0 if index else frame)


def typed(call: Callable[[], Any]) -> Any:
    """Return what a call returns; raise the server's typed error, or what gRPC says."""
    try:
        return call()
    except grpc.RpcError as error:
        raise error_of(error) or error from None


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; the test's hard timeout bounds it."""
    while not condition():
        time.sleep(0.02)
