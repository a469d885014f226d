"""A server with the real server's kit that answers what a test has it answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

import secagg
from secagg.errors import RoundMismatchError, SecAggError
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.credentials import server_credentials
from secagg.integrations.grpc.refusals import abort
from secagg.protocol import Refusal
from secagg.trust import Tls
from secagg.trust.kit import load_server_kit
from secagg.trust.kit_files import PROJECT_FILE


@dataclass
class HostileServer(pb_grpc.SecureAggregationServicer):
    """Says `status`, hands out `aggregates` and `models`, and gives receipts for uploads, which it throws away.

    Once `closed` holds an error, uploads end with it. Where it has no aggregate or model it says so.
    """

    folder: Path
    status: pb.StatusReply = field(default_factory=lambda: pb.StatusReply(state="open"))
    aggregates: dict[int, secagg.Update] = field(default_factory=dict)
    models: dict[int, secagg.Update] = field(default_factory=dict)
    closed: SecAggError | None = None
    asked: list[tuple[str, int]] = field(default_factory=list)
    address: str = ""

    def __post_init__(self) -> None:
        self.kit = load_server_kit(self.folder)

    def say(self, round: int, **fields: object) -> None:
        """Name a round, and of aggregates and models what there is."""
        known = {"aggregates": sorted(self.aggregates), "models": sorted(self.models)}
        self.status = pb.StatusReply(**{"round": round, "attempt": 1, "state": "open", **known, **fields})

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        return pb.JoinReply(
            round=self.status.round,
            round_timeout=60.0,
            key=self.kit.key.fingerprint,
            epoch=self.kit.key.epoch,
            project=(self.folder / PROJECT_FILE).read_bytes(),
            base=self.status.base,
        )

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        return self.status

    def Resume(self, request: pb.Chunk, context: grpc.ServicerContext) -> pb.ResumeReply:
        if self.closed is not None:
            abort(context, Refusal.of(self.closed))
        return pb.ResumeReply()

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        update = secagg.Update.from_bytes(b"".join(message.data for message in request_iterator))
        return pb.UploadReply(receipt=secagg.Receipt.of(update, self.kit.identity).to_bytes())

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        self.asked.append((request.kind, request.round))
        stored = self.models if request.kind == "model" else self.aggregates
        if request.round not in stored:
            abort(context, Refusal.of(RoundMismatchError("it is not kept any more")))
        for chunk in stored[request.round].chunks():
            yield pb.Chunk(data=bytes(chunk))

    @contextlib.contextmanager
    def serving(self) -> Iterator[HostileServer]:
        server = grpc.server(ThreadPoolExecutor(4))
        pb_grpc.add_SecureAggregationServicer_to_server(self, server)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(Tls.load(self.folder)))
        self.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield self
        finally:
            server.stop(None).wait()
