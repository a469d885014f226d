"""The gRPC server: a thread pool around `secagg.integrations.grpc.federation`."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import secagg
from secagg.errors import ConfigError, IdentityError, SecAggError, TransportError

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .address import is_loopback, parse_address
from .chunks import MAX_MESSAGE_NBYTES, receive
from .federation import SPOOL_SUFFIX, Federation
from .rounds import Admission
from .status import abort
from .tls import Tls, check_name

SERVICE = pb.DESCRIPTOR.services_by_name["SecureAggregation"].full_name

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.so_reuseport", 0),  # A second server on the same port is an error, not a lottery.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

log = logging.getLogger(__name__)


class Server:
    """Serves a federation: adds what sites upload and serves the aggregates. It can decrypt nothing.

    Parameters
    ----------
    config : secagg.Config
        The configuration that the sites have.
    key : secagg.ServerKey
        The server's half of the key.
    folder : path
        Run folder: spool, aggregates of the last two rounds, ``rounds.jsonl``. A server that is started again on
        the same folder goes on after the last aggregate.
    address : str
        Where to listen, as ``host:port``; port 0 takes a free one, which `address` then names.
    tls : Tls or None
        The server's certificate. Only sites with a certificate of the same authority are admitted.
    insecure : bool
        Serve without certificates, on a loopback address only. Sites are then who they say they are.
    round_timeout : float
        Seconds after which a round ends without the missing sites.

    Raises
    ------
    ConfigError
        Without certificates and not `insecure`, or not on a loopback address; for an unusable folder or timeout.
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
    ) -> None:
        self._host, port = parse_address(address)
        if tls is None and not insecure:
            raise ConfigError("a server needs certificates; without them it must be insecure, on a loopback address")
        if tls is None and not is_loopback(self._host):
            raise ConfigError(
                f"without certificates a server listens on a loopback address only, not on {self._host!r}"
            )
        credentials = None if tls is None else tls.server_credentials()
        self._federation = Federation(config, key, folder, round_timeout=round_timeout)
        # A site takes two threads at most: one uploads or waits, one does what an earlier call has not given up yet.
        threads = 2 * config.aggregation.max_clients + 8
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="secagg"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=threads,
        )
        servicer = _Servicer(self._federation, certified=tls is not None)
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
            raise TransportError(
                f"cannot listen on {address}: the port is taken or not allowed, or certificate and key do not fit"
            ) from error
        self._port = port
        self._watcher = threading.Thread(target=self._federation.watch, name="secagg-rounds", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def start(self) -> None:
        """Begin to serve; returns at once."""
        self._watcher.start()
        self._server.start()
        for service in ("", SERVICE):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving on %s", self.address)

    def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, give those under way `grace` seconds, and return when all have ended.

        Sites that wait for the round are told at once, and try again until their deadline. The open round is given
        up: a server that starts again on the folder opens it anew.
        """
        self._health.enter_graceful_shutdown()
        self._federation.close()
        self._server.stop(grace).wait()
        if self._watcher.ident is not None:
            self._watcher.join()

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


class _Servicer(pb_grpc.SecureAggregationServicer):
    """The calls of secagg.proto."""

    def __init__(self, federation: Federation, *, certified: bool) -> None:
        self._federation = federation
        self._certified = certified
        self._uploads: dict[str, grpc.ServicerContext] = {}
        self._lock = threading.Lock()

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        with _typed_errors(context):
            site, identity = check_name(request.site), self._identity(context)
            if identity is not None and identity != site:
                raise IdentityError(f"site {site!r} joined under the certificate of {identity!r}")
            aggregation = self._federation.config.aggregation
            return pb.JoinReply(
                round=self._federation.join(site),
                min_clients=aggregation.min_clients,
                max_clients=aggregation.max_clients,
                round_timeout=self._federation.round_timeout,
                key=self._federation.key.fingerprint,
            )

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        with _typed_errors(context):
            chunks = (message.data for message in request_iterator)
            head = next(chunks, b"")
            started = time.monotonic()
            admission, header = self._federation.admit(head, self._identity(context))
            if admission is Admission.ADD:
                with (
                    self._only_upload_of(header.site, context),
                    tempfile.NamedTemporaryFile(
                        dir=self._federation.spool, prefix=f"{header.site}-", suffix=SPOOL_SUFFIX
                    ) as file,
                ):
                    receive(file, head, chunks, header.nbytes)
                    admission = self._federation.add(Path(file.name), header, time.monotonic() - started)
            return pb.UploadReply(already_added=admission is Admission.ALREADY_ADDED)

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        with _typed_errors(context):
            self._identity(context)
            aggregate = self._federation.wait(request.round, request.nonce, context.is_active)
        if aggregate is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        with _typed_errors(context), aggregate:
            for chunk in aggregate.chunks():
                yield pb.Chunk(data=bytes(chunk))

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
        with _typed_errors(context):
            self._identity(context)
            snapshot, seconds_left = self._federation.snapshot()
            return pb.StatusReply(
                round=snapshot.attempt.round,
                attempt=snapshot.attempt.number,
                state="idle" if seconds_left is None else "open",
                added=snapshot.added,
                waiting_for=snapshot.waiting_for,
                seconds_left=seconds_left,
                aggregates=snapshot.completed,
            )

    def _identity(self, context: grpc.ServicerContext) -> str | None:
        """Return the common name of the caller's certificate; None on a server without certificates."""
        if not self._certified:
            return None
        names = context.auth_context().get("x509_common_name", ())
        if len(names) != 1:
            raise IdentityError(f"the certificate has {len(names)} common names; it must have one, the site's name")
        return bytes(*names).decode("utf-8", "replace")

    @contextmanager
    def _only_upload_of(self, site: str, context: grpc.ServicerContext) -> Iterator[None]:
        # One upload a site bounds what uploads take. The newest wins: a site that tries again after a broken
        # connection need not wait until the server has noticed the break.
        with self._lock:
            earlier = self._uploads.get(site)
            self._uploads[site] = context
        if earlier is not None:
            earlier.cancel()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            with self._lock:
                if self._uploads.get(site) is context:
                    del self._uploads[site]


@contextmanager
def _typed_errors(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call with a typed error, whatever goes wrong inside; nothing of a native exception gets out."""
    refusal: SecAggError
    try:
        yield
        return
    except SecAggError as error:
        log.info("refused %s: %s: %s", context.peer(), type(error).__name__, error)
        refusal = error
    except grpc.RpcError:
        log.info("%s broke off", context.peer())
        raise
    except OSError as error:
        log.exception("a call failed on the server's files")
        refusal = TransportError(f"the server could not store or read a file: {error.strerror}")
    except Exception:
        log.exception("a call failed")
        refusal = TransportError("the server failed; its log says why")
    abort(context, refusal)
