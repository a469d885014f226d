"""Servers that take uploads, each in a process of its own: ``python upload_servers.py KIND FOLDER RUN``.

RUN is the run folder, which is made. The kind ``plain`` is the bare minimum of what must be done with an upload that is
acknowledged: it writes each chunk to a file and flushes the file to the disk before it answers. It and ``secagg`` speak
gRPC over mutual TLS with the same options and as many threads; ``insecure`` is ``secagg`` without certificates. They
print their address, and end with SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc

import secagg
from secagg.integrations.grpc import Server
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.credentials import server_credentials
from secagg.integrations.grpc.server import OPTIONS
from secagg.server import Limits
from secagg.trust import Tls


class PlainServicer(pb_grpc.SecureAggregationServicer):
    """Stores what is uploaded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            for message in request_iterator:
                file.write(message.data)
            file.flush()
            os.fsync(file.fileno())
        return pb.UploadReply()


@contextmanager
def plain_server(folder: Path, run: Path, threads: int) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(threads), options=OPTIONS)
    pb_grpc.add_SecureAggregationServicer_to_server(PlainServicer(run), server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(Tls.load(folder / "server")))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(1).wait()


@contextmanager
def secagg_server(folder: Path, run: Path, threads: int, tls: bool = True) -> Iterator[str]:
    project = secagg.Project.load(folder / "project.secagg")
    key = secagg.load_key(folder / "server.key")
    assert isinstance(key, secagg.ServerKey)
    server = Server(
        project.config,
        key,
        run,
        tls=Tls.load(folder / "server") if tls else None,
        insecure=not tls,
        project=project,
        identity=secagg.Identity.load(folder / "server" / "signing.key"),
        limits=Limits(uploads_in_flight=threads),
    )
    with server:
        yield server.address


SERVERS = {"secagg": secagg_server, "insecure": partial(secagg_server, tls=False), "plain": plain_server}


def main() -> None:
    kind, folder, run = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    run.mkdir()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    with SERVERS[kind](folder, run, threads=16) as address:
        print(address, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
