"""A site's connection to the server, and the chunks that gRPC's threads read from an update."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

import grpc

from secagg.errors import ConfigError, SecAggError, StateError, TransportError
from secagg.protocol import (
    BusyError,
    Chunk,
    DepositReply,
    DownloadRequest,
    JoinReply,
    ServerStatus,
    SkipRequest,
    UploadReply,
    check_handshake,
    is_loopback,
    parse_address,
)
from secagg.trust import Project, Tls

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .credentials import channel_credentials
from .messages import (
    MAX_MESSAGE_NBYTES,
    pack_chunks,
    pack_request,
    unpack_chunks,
    unpack_deposit,
    unpack_join,
    unpack_resume,
    unpack_status,
    unpack_upload,
)
from .proxies import proxy_of
from .refusals import details, error_of

T = TypeVar("T")

#: What says nothing about the request if the server gave no typed error with it: it is not up, is stopping or busy,
#: has ended this call for a newer one of the same site, or the connection broke.
_RETRIED = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,  # the server's, perhaps; the own one leaves no time to try again
    )
)

#: How long closing waits for what is under way.
_CLOSE_SECONDS = 5.0

_OPTIONS = (
    # A connection of its own: else the sessions of one process share one, and what the server lets a site have on it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.per_message_decompression", 0),  # a small message could unpack to a large one before its size is looked at
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class GrpcLink:
    """A channel to the server; see `secagg.site.Link`.

    Parameters
    ----------
    address : str
        The server's ``host:port``.
    tls : Tls or None
        The site's certificate; None only towards a loopback address.
    project : Project, optional
        The manifest: with `tls`, nothing is sent to a server with another certificate than the one in it.

    Raises
    ------
    ConfigError
        For an address that is none, or no certificate towards another machine.
    IdentityError
        If the manifest has no certificate of the server.
    KeyFileError
        If a file of `tls` cannot be read.
    """

    def __init__(self, address: str, tls: Tls | None, project: Project | None = None) -> None:
        host, _ = parse_address(address)
        if tls is None and not is_loopback(host):
            raise ConfigError(f"without certificates a site connects to a loopback address only, not to {host!r}")
        self._address = address
        self._tls = tls
        self._project = project
        self._proxy = proxy_of(address)  # as gRPC does: what the environment says later does not count
        options = (*_OPTIONS, ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1))
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, channel_credentials(tls, project), options)
        self._calls = pb_grpc.SecureAggregationStub(self._channel)  # type: ignore[no-untyped-call]
        self._closed = False

    def join(self, site: str, seconds: float) -> JoinReply:
        """See `secagg.site.Link`."""
        return unpack_join(self._typed(lambda: self._stub.Join(pb.JoinRequest(site=site), timeout=seconds)))

    def skip(self, request: SkipRequest, seconds: float) -> None:
        """See `secagg.site.Link`."""
        self._typed(lambda: self._stub.Skip(pb.SkipRequest(site=request.site, round=request.round), timeout=seconds))

    def resume(self, head: bytes, seconds: float) -> UploadReply:
        """See `secagg.site.Link`."""
        return unpack_resume(self._typed(lambda: self._stub.Resume(pb.Chunk(data=head), timeout=seconds)))

    def upload(self, chunks: Iterator[Chunk], seconds: float) -> UploadReply:
        """See `secagg.site.Link`."""
        with closing(_Outgoing(chunks)) as outgoing:
            call = self._stub.Upload.future(pack_chunks(outgoing), timeout=seconds)
            try:
                return unpack_upload(self._typed(call.result))
            except (SecAggError, BusyError):
                if outgoing.error is not None:
                    raise outgoing.error from None
                raise
            finally:
                call.cancel()

    def deposit(self, head: bytes, seconds: float) -> DepositReply:
        """See `secagg.site.Link`."""
        return unpack_deposit(self._typed(lambda: self._stub.Deposit(pb.Chunk(data=head), timeout=seconds)))

    def download(self, request: DownloadRequest, seconds: float) -> Generator[Chunk, None, None]:
        """See `secagg.site.Link`."""
        call = self._stub.Download(pack_request(request), timeout=seconds)
        chunks = unpack_chunks(call)
        try:
            while (chunk := self._typed(lambda: next(chunks, None))) is not None:
                yield chunk
        finally:
            call.cancel()

    def status(self, seconds: float) -> ServerStatus:
        """See `secagg.site.Link`."""
        return unpack_status(self._typed(lambda: self._stub.Status(pb.StatusRequest(), timeout=seconds)))

    def close(self) -> None:
        """Close the channel; a call that Ctrl-C has interrupted as it began is waited for no longer than a moment."""
        self._closed = True
        thread = threading.Thread(target=self._channel.close, daemon=True)  # gRPC would wait for that call for ever
        thread.start()
        thread.join(_CLOSE_SECONDS)

    @property
    def _stub(self) -> pb_grpc.SecureAggregationStub:
        """What makes calls; `StateError` when it is closed."""
        if self._closed:
            raise StateError("the session is closed; open another one")
        return self._calls

    def _typed(self, call: Callable[[], T]) -> T:
        """Return what a call returns; what ended it is a typed error, or says that it may come again.

        Raises
        ------
        SecAggError
            The typed error with which the server refused it; `IdentityError` if one side does not accept the other's
            certificate; `TransportError` if there is no use in another try.
        BusyError
            If there may be.
        """
        try:
            return call()
        except grpc.RpcError as error:
            refusal, code, text = error_of(error), error.code(), details(error)
        if refusal is not None:
            raise refusal
        if self._tls is not None and code is grpc.StatusCode.UNAVAILABLE:
            check_handshake(self._address, self._tls, self._project)
        if self._proxy is not None and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            text = f"{text}; the way goes through {self._proxy}: {self._proxy.remedy}"
        if code not in _RETRIED:
            raise TransportError(text)
        raise BusyError(text)


class _Outgoing:
    """The chunks of an upload, which another thread of gRPC reads.

    After `close` nothing of them is read any more. An error in reading them ends the stream early and stays in `error`
    for the thread that waits for the answer.
    """

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._lock = threading.Lock()
        self._closed = False
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._lock:
            if self._closed:
                raise StopIteration
            try:
                chunk = next(self._chunks)
                return Chunk(bytes(chunk.data), chunk.frame)  # a view would change while gRPC still sends it
            except StopIteration:
                raise
            except Exception as error:  # noqa: BLE001  kept for the thread that waits for the answer
                self.error, self._closed = error, True
                raise StopIteration from None

    def close(self) -> None:
        """Stop the stream; returns once nobody reads the update."""
        with self._lock:
            self._closed = True
