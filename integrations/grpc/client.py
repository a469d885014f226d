"""A site's side of the network: joins, uploads, downloads; waits, retries, and gives up at its deadline."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc

import secagg
from secagg.errors import ConfigError, FormatError, RoundMismatchError, StateError, TransportError

from . import secagg_pb2 as pb
from . import secagg_pb2_grpc as pb_grpc
from .address import is_loopback, parse_address
from .chunks import MAX_MESSAGE_NBYTES, Outgoing, Progress, receive, replacing
from .handshake import check_handshake
from .rounds import MAX_TIMEOUT_SECONDS
from .status import error_of, transport_error
from .tls import Tls, check_name

T = TypeVar("T")

#: The server is not up, is stopping, has too many calls, or has ended this one for a newer of the same site.
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_MAX_EXCHANGES = 5

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True)
class Membership:
    """What the server answers to a site that joins.

    Parameters
    ----------
    round : int
        The open round: updates must be of this round.
    min_clients, max_clients : int
        Of the server's configuration.
    round_timeout : float
        Seconds after which a round ends without the missing sites.
    key : str
        Fingerprint of the server key, to be held against the site's own.
    """

    round: int
    min_clients: int
    max_clients: int
    round_timeout: float
    key: str


@dataclass(frozen=True)
class RoundStatus:
    """How the open round stands; `seconds_left` is None while its clock stands still (state ``"idle"``)."""

    round: int
    attempt: int
    state: str
    added: tuple[str, ...]
    waiting_for: tuple[str, ...]
    seconds_left: float | None
    aggregates: tuple[int, ...]


class SiteSession:
    """A site's connection to the server. Use it from one thread, as a context manager or with `close`.

    A call that finds the server away or breaks off is tried again, whole, with growing pauses, until it has taken
    `timeout` seconds. That is safe: an update is known by its nonce and added once.

    Parameters
    ----------
    address : str
        The server's ``host:port``.
    site_name : str
        Common name of the site's certificate, and the site's name in its updates.
    tls : Tls or None
        The site's certificate; None only towards a loopback address.
    timeout : float
        Seconds that one call may take, retries included. Waiting for the other sites in `download` comes on top: up
        to the server's round timeout, which `join` learns.

    Raises
    ------
    ConfigError
        For an address that is none, no certificate towards another machine, or an unusable name or timeout.
    KeyFileError
        If a file of `tls` cannot be read.
    """

    def __init__(self, address: str, site_name: str, *, tls: Tls | None, timeout: float = 600.0) -> None:
        host, _ = parse_address(address)
        if tls is None and not is_loopback(host):
            raise ConfigError(f"without certificates a site connects to a loopback address only, not to {host!r}")
        if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
            raise ConfigError(f"the timeout is {timeout} s; use more than 0 and at most {MAX_TIMEOUT_SECONDS:g} s")
        self.site_name = check_name(site_name)
        self._address = address
        self._tls = tls
        self._timeout = timeout
        self._round_timeout = 0.0
        self._nonces: dict[int, bytes] = {}
        options = (*_OPTIONS, ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1))
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, tls.channel_credentials(), options)
        self._stub = pb_grpc.SecureAggregationStub(self._channel)  # type: ignore[no-untyped-call]

    def join(self) -> Membership:
        """Join the federation: the open round now waits for this site.

        Raises
        ------
        IdentityError
            If the server does not accept the certificate, or it bears another name.
        CapacityError
            If the federation is full.
        TransportError
            If the server cannot be reached in time.
        """
        request = pb.JoinRequest(site=self.site_name)
        reply = self._call("joining", lambda seconds: self._stub.Join(request, timeout=seconds))
        self._round_timeout = reply.round_timeout
        return Membership(reply.round, reply.min_clients, reply.max_clients, reply.round_timeout, reply.key)

    def status(self) -> RoundStatus:
        """Ask how the open round stands.

        Raises
        ------
        TransportError
            If the server cannot be reached in time.
        """
        reply = self._call(
            "asking for the status", lambda seconds: self._stub.Status(pb.StatusRequest(), timeout=seconds)
        )
        return RoundStatus(
            round=reply.round,
            attempt=reply.attempt,
            state=reply.state,
            added=tuple(reply.added),
            waiting_for=tuple(reply.waiting_for),
            seconds_left=reply.seconds_left if reply.HasField("seconds_left") else None,
            aggregates=tuple(reply.aggregates),
        )

    def upload(self, update: secagg.Update | str | os.PathLike[str], progress: Progress | None = None) -> bool:
        """Upload an update; returns once it is in the sum.

        Parameters
        ----------
        update : Update or path
            An update, or the file of one.
        progress : callable, optional
            Called with the bytes sent and in all; from zero again when the upload is tried again. It runs in
            another thread.

        Returns
        -------
        bool
            False if this very update had been added before, by an earlier upload.

        Raises
        ------
        SecAggError
            Whatever makes the update unfit for the open round: `RoundMismatchError`, `KeyMismatchError`,
            `LayoutError`, `FormatError`, `DuplicateError`, `IdentityError` …; nothing was added.
        TransportError
            If it could not be sent in time.
        """
        if not isinstance(update, secagg.Update):
            with secagg.Update.open(update) as opened:
                return self.upload(opened, progress)

        def send(seconds: float) -> bool:
            with closing(Outgoing(update, progress)) as outgoing:
                call = self._stub.Upload.future((pb.Chunk(data=chunk) for chunk in outgoing), timeout=seconds)
                try:
                    return not call.result().already_added
                except grpc.RpcError:
                    if outgoing.error is not None:
                        raise outgoing.error from None
                    raise
                finally:
                    call.cancel()

        added = self._call("the upload", send)
        self._nonces = {update.header.round: update.header.contributions[0].nonce}
        return added

    def download(self, round: int, path: str | os.PathLike[str], progress: Progress | None = None) -> secagg.Update:
        """Wait for the end of a round and download its aggregate.

        Parameters
        ----------
        round : int
            Which round. If this session uploaded an update for it, the aggregate waited for is the one with it.
        path : path
            File to write; it appears whole or not at all.
        progress : callable, optional
            Called with the bytes received and in all.

        Returns
        -------
        Update
            The aggregate, opened from the file; close it after use.

        Raises
        ------
        QuorumError
            If the round ended below `min_clients`; it is open again.
        StateError
            If the server lost the update that this session uploaded, by starting anew: upload it again.
        RoundMismatchError
            If the round has not begun, or its aggregate is not kept any more.
        TransportError
            If the server cannot be reached, or the round does not end, in time.
        """
        request = pb.DownloadRequest(round=round, nonce=self._nonces.get(round, b""))
        target = Path(path)

        def fetch(seconds: float) -> None:
            call = self._stub.Download(request, timeout=seconds)
            try:
                chunks = (message.data for message in call)
                head = next(chunks, b"")
                header = secagg.Header.from_head(head)
                if header.kind != "aggregate":
                    raise FormatError(f"the server sent an {header.kind} where an aggregate was asked for")
                if header.round != round:
                    raise RoundMismatchError(f"the server sent the aggregate of round {header.round}, not of {round}")
                with replacing(target) as file:
                    receive(file, head, chunks, header.nbytes, progress)
            finally:
                call.cancel()

        self._call(f"the download of round {round}", fetch, self._round_timeout)
        return secagg.Update.open(target)

    def exchange(
        self,
        update: secagg.Update | str | os.PathLike[str],
        path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> secagg.Update:
        """Upload an update, wait for the round, and download its aggregate to `path`.

        If the server starts anew in between, the update is uploaded again. Parameters, result and errors are those
        of `upload` and `download`.
        """
        if not isinstance(update, secagg.Update):
            with secagg.Update.open(update) as opened:
                return self.exchange(opened, path, progress)
        for _ in range(_MAX_EXCHANGES):
            self.upload(update, progress)
            try:
                return self.download(update.header.round, path, progress)
            except StateError:
                continue
        raise TransportError(
            f"the server lost the update of {self.site_name!r} {_MAX_EXCHANGES} times; is it restarting?"
        )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> SiteSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, what: str, call: Callable[[float], T], extra: float = 0.0) -> T:
        """Return what `call` returns, given the seconds that are left; try again while that may help."""
        deadline = time.monotonic() + self._timeout + extra
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return call(deadline - time.monotonic())
            except grpc.RpcError as error:
                refusal = error_of(error)
                if refusal is not None:
                    raise refusal from None
                if self._tls is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
                    check_handshake(self._address, self._tls)
                # Sites that were cut off together do not come back together.
                wait = pause * random.uniform(0.5, 1.0)
                if error.code() not in _RETRIED or time.monotonic() + wait >= deadline:
                    raise transport_error(error, what) from None
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
