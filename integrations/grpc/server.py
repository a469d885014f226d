"""The gRPC server: listens, starts and stops in order; its calls are in `secagg.integrations.grpc.servicer`."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from concurrent import futures
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import secagg
from secagg.errors import ConfigError, TransportError
from secagg.protocol import ServerStatus, is_loopback, parse_address
from secagg.server import MAX_CALLS, Events, Federation, Limits
from secagg.trust import Tls

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .credentials import server_credentials
from .gate import Gate
from .messages import MAX_MESSAGE_NBYTES
from .servicer import Servicer

SERVICE = pb.DESCRIPTOR.services_by_name["SecureAggregation"].full_name

#: Of the server's end of every connection.
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.so_reuseport", 0),  # A second server on the same port is an error, not a lottery.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # A small message could unpack to a large one before its size is looked at.
    ("grpc.per_message_decompression", 0),
    # Whoever has no certificate costs a connection, for a moment: see `most_connections`.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 600_000),
)

_MAX_CONNECTIONS = 8192

log = logging.getLogger(__name__)


class Server:
    """Serves a federation: adds what sites upload and serves the aggregates. It can decrypt nothing.

    Parameters
    ----------
    config, key, folder, round_timeout, project, identity, limits, events, bucket
        As of `secagg.server.Federation`.
    address : str
        Where to listen, as ``host:port``; port 0 takes a free one, which `address` then names.
    tls : Tls or None
        The server's certificate. Only sites with a certificate of the same authority are admitted.
    insecure : bool
        Serve without certificates, on a loopback address only. Sites are then who they say they are.

    Raises
    ------
    ConfigError
        Without certificates and not `insecure`, or not on a loopback address; for an unusable folder or timeout.
    KeyFileError
        If `key` or `identity` is not that of the project.
    TransportError
        If nothing can listen at the address.
    """

    def __init__(
        self,
        config: secagg.Config,
        key: secagg.ServerKey,
        folder: str | os.PathLike[str],
        *,
        address: str = "127.0.0.1:0",
        tls: Tls | None = None,
        insecure: bool = False,
        round_timeout: float = 3600.0,
        project: secagg.Project | None = None,
        identity: secagg.Identity | None = None,
        limits: Limits | None = None,
        events: Events | None = None,
        bucket: str | None = None,
    ) -> None:
        self._host, port = parse_address(address)
        if tls is None and not insecure:
            raise ConfigError("a server needs certificates; without them it must be insecure, on a loopback address")
        if tls is None and not is_loopback(self._host):
            raise ConfigError(
                f"without certificates a server listens on a loopback address only, not on {self._host!r}"
            )
        credentials = None if tls is None else server_credentials(tls)
        self._federation = Federation(
            config,
            key,
            folder,
            round_timeout=round_timeout,
            project=project,
            identity=identity,
            certified=tls is not None,
            limits=limits,
            events=events,
            bucket=bucket,
        )
        # Two parties more than the sites: the server itself, which asks for its status, and whoever is refused.
        threads = MAX_CALLS * (config.aggregation.max_clients + 2)
        self._pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="secagg")
        servicer = Servicer(self._federation)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._server = grpc.server(
            self._pool,
            interceptors=[Gate(servicer)],
            options=(
                *OPTIONS,
                ("grpc.max_allowed_incoming_connections", most_connections(files)),
                # A certificate makes a connection one party's; without one it may carry all of them.
                ("grpc.max_concurrent_streams", threads if tls is None else 2 * MAX_CALLS),
            ),
            maximum_concurrent_rpcs=threads,
        )
        pb_grpc.add_SecureAggregationServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            self._federation.close()
            raise TransportError(f"cannot listen on {address}: {_obstacle(self._host, port)}") from error
        self._port = port

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def status(self) -> ServerStatus:
        """Return how the round and the server's resources stand."""
        return self._federation.status()

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._federation.start()
        self._server.start()
        for service in ("", SERVICE):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving on %s", self.address, extra={"event": "serving"})

    def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, give uploads under way `grace` seconds, and return when all calls have ended.

        Sites that wait for the round are told at once, and try again until their deadline. The open round stays: a
        server that starts again on the folder, which is free when this returns, goes on with it.
        """
        self._health.enter_graceful_shutdown()
        self._federation.release()
        self._server.stop(grace).wait()
        self._pool.shutdown()  # a call that was cancelled may still be writing
        self._federation.close()

    def serve_until(self, stop: threading.Event, grace: float = 5.0) -> None:
        """Start, wait for `stop`, and stop."""
        self.start()
        try:
            stop.wait()
        finally:
            self.stop(grace)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _obstacle(host: str, port: int) -> str:
    """Return why a server cannot listen there, which gRPC tells nobody."""
    for name in dict.fromkeys((host, "0.0.0.0" if host == "::" else host)):  # noqa: S104 - not to be served there
        try:
            socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET).close()
        except OSError as error:
            return str(error.strerror).partition(" (")[0]
        except (TypeError, UnicodeError):
            return f"{host!r:.80} is no name of a host"
    return "the port may be taken, or not be allowed, or certificate and key not fit"


def most_connections(files: int) -> int:
    """Return how many connections a process takes that may have so many files open: strangers must not use them up."""
    return _MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, files // 2)
