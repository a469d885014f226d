"""Putting an update into the server's bucket, part by part, at the URLs that the server hands out: one try of it.

The server may name any URL, and the bucket's provider may answer anything. So an update goes only to hosts that the
signed manifest names, over TLS with their certificates checked, and nowhere else that an answer points to. Whoever has
a URL can put a part in the site's place: none is in a log or an error. For that it is Python's own client that sends;
urllib3 writes URLs to its log, also as a warning, when an answer is malformed.
"""

from __future__ import annotations

import ssl
import threading
import time
from base64 import b64encode
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPSConnection
from socket import SHUT_RDWR
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import secagg

from ..errors import FormatError, TransportError
from ..protocol.address import is_loopback
from ..protocol.chunks import Progress
from ..protocol.messages import BusyError, DepositReply, PartTarget
from ..trust.storage_hosts import parse_place, split_url
from .link import Link

#: What S3 takes at most.
_MOST_PARTS = 10_000

#: How often one part is put at most: a server that asks for it again and again makes no progress.
_MOST_PUTS = 3

#: How long a store may be silent.
_IDLE_SECONDS = 60.0

#: Of an answer that is read, so that the connection can be used again; nothing in it counts.
_MAX_ANSWER_NBYTES = 64 << 10

#: Of a URL that has expired: by itself, or with the credentials that have signed it.
_EXPIRED = frozenset((400, 403))

#: Statuses beside those from 500 on that say nothing about the part: another try, perhaps with another URL, may do.
_TRANSIENT = frozenset((404, 408, 409, 425, 429))


class Depositor:
    """Puts an update into the server's bucket; each call is one try, and goes on where the one before broke off.

    Parameters
    ----------
    link : Link
        The server.
    update : secagg.Update
        The update.
    hosts : tuple of str
        Where it may go: `secagg.Project.storage`.
    progress : callable, optional
        Called with the bytes that were sent and in all.

    Attributes
    ----------
    nbytes : int
        Bytes of the parts that were put.
    """

    def __init__(
        self, link: Link, update: secagg.Update, hosts: tuple[str, ...], progress: Progress | None = None
    ) -> None:
        self.nbytes = 0
        self._link = link
        self._update = update
        self._hosts = hosts
        self._progress = progress
        self._size = 0  # of parts, once the server has named some
        self._puts: Counter[int] = Counter()
        header = update.header
        places = [frame.offset for frame in header.frames] + [header.tail_offset]
        self._starts = [0, *(len(header.head) + place for place in places)]  # of the chunks of the update

    def __call__(self, seconds: float) -> tuple[bool, bytes]:
        """Put what the bucket does not have yet, and have the server add it.

        Parameters
        ----------
        seconds : float
            How long it may take.

        Returns
        -------
        bool
            Whether the update had been added before.
        bytes
            The server's receipt; empty if it gave none.

        Raises
        ------
        SecAggError, BusyError
            As of `Link`.
        FormatError
            If the server names a URL that is not for sites of this federation, or parts that are none of the update.
        TransportError
            If a store refuses a part, or sends it elsewhere; if its certificate is not trusted.
        Exception
            What `progress` raised, or reading the update.
        """
        deadline = time.monotonic() + seconds
        stores = _Stores(deadline)
        try:
            while True:
                reply = self._link.deposit(self._update.header.head, max(0.0, deadline - time.monotonic()))
                if reply.already_added or reply.done:
                    return reply.already_added, reply.receipt
                self._put(self._checked(reply), stores)
        finally:
            stores.close()

    def _checked(self, reply: DepositReply) -> tuple[PartTarget, ...]:
        """Return the parts that the server asks for; each must be one of the update's, and go to a host of these."""
        if not reply.parts:
            raise FormatError("the server has not added the update, and names no part that is missing")
        total, before = self._update.nbytes, 0
        for part in reply.parts:
            size = part.offset // (part.number - 1) if part.number > 1 else part.nbytes
            self._size = self._size or size
            offset = (part.number - 1) * self._size
            if (
                part.number <= before
                or not 0 < self._size <= total <= self._size * _MOST_PARTS
                or not part.offset == offset < total
                or part.nbytes != min(self._size, total - offset)
            ):
                raise FormatError(
                    f"the server asks for part {part.number}, {part.nbytes} bytes from {part.offset} on: that is none "
                    f"of an update of {total} bytes"
                )
            before = part.number
            place, _ = split_url(part.url)
            if place not in self._hosts:
                raise FormatError(
                    f"the server names a URL on {place}; the manifest names {', '.join(self._hosts)}: nothing was sent"
                )
        return reply.parts

    def _put(self, parts: tuple[PartTarget, ...], stores: _Stores) -> None:
        for index, part in enumerate(parts):
            if self._puts[part.number] == _MOST_PUTS:
                raise TransportError(
                    f"the server asks for part {part.number} again, which was put {_MOST_PUTS} times: is its bucket "
                    "losing parts?"
                )
            place, target = split_url(part.url)
            status = stores.put(place, target, self._bytes_of(part), part.nbytes)
            if status in _EXPIRED and index:  # on a slow link
                return
            if status in _TRANSIENT or status >= 500:
                raise BusyError(f"the store at {place} answers {status}")
            if 300 <= status < 400:
                raise TransportError(
                    f"the store at {place} sends the update elsewhere ({status}); it goes nowhere else"
                )
            if not 200 <= status < 300:
                raise TransportError(f"the store at {place} refuses a part of the update ({status})")
            self._puts[part.number] += 1
            self.nbytes += part.nbytes
            if self._progress is not None:
                self._progress(part.offset + part.nbytes, self._update.nbytes)

    def _bytes_of(self, part: PartTarget) -> Iterator[memoryview]:
        """Yield the bytes of a part, a frame of the update at a time."""
        first = bisect_right(self._starts, part.offset) - 1
        chunks = self._update.chunks(max(0, first - 1))
        if first:
            next(chunks)  # the head
        end = part.offset + part.nbytes
        for start, chunk in zip(self._starts[first:], chunks, strict=True):
            if start >= end:
                return
            if self._progress is not None:
                self._progress(max(start, part.offset), self._update.nbytes)
            yield memoryview(chunk)[max(0, part.offset - start) : end - start]


class _Stores:
    """Connections to stores, kept from part to part."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._connections: dict[str, HTTPSConnection] = {}
        self._context = ssl.create_default_context()

    def put(self, place: str, target: str, body: Iterator[memoryview], nbytes: int) -> int:
        """Send bytes to a host, `target` being the rest of the URL; return the status of the answer.

        Raises
        ------
        BusyError
            If the store cannot be reached, or breaks off.
        TransportError
            If its certificate is not trusted.
        """
        connection = self._connections.pop(place, None) or self._connect(place)
        own, fault, untrusted = _Own(body), "", ""
        left = self._deadline - time.monotonic()
        timer = threading.Timer(max(0.0, left), _shut, (connection,))
        timer.daemon = True
        timer.start()
        try:
            connection.timeout = max(0.001, min(left, _IDLE_SECONDS))
            if connection.sock is None:
                connection.connect()
                if time.monotonic() >= self._deadline:  # the timer has met no connection yet
                    raise TimeoutError
            connection.request("PUT", target, own, {"Content-Length": str(nbytes)})
            with connection.getresponse() as response:
                status = response.status
                if len(response.read(_MAX_ANSWER_NBYTES)) < _MAX_ANSWER_NBYTES and not response.will_close:
                    self._connections[place] = connection
                return status
        except ssl.SSLCertVerificationError as error:
            untrusted = str(error.verify_message)
        except (OSError, HTTPException, UnicodeError) as error:  # the last: a proxy's name that is none
            fault = type(error).__name__
        finally:
            timer.cancel()
            if place not in self._connections:
                connection.close()
        # Raised here, so that nothing is chained to what a library knows of the URL.
        if own.error is not None:
            raise own.error
        if untrusted:
            raise TransportError(
                f"the certificate of the store at {place} is not trusted ({untrusted}): set SSL_CERT_FILE to a file "
                "with its authority, if it has one of its own"
            )
        raise BusyError(f"the store at {place} cannot be reached, or broke off ({fault})")

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()

    def _connect(self, place: str) -> HTTPSConnection:
        """Return a connection, perhaps by the proxy that the environment names."""
        host, port = parse_place(place)
        proxy = "" if is_loopback(host) or proxy_bypass(place) else getproxies().get("https", "")
        if not proxy:
            return HTTPSConnection(host, port, context=self._context)
        try:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            if parts.scheme != "http" or not parts.hostname:
                raise ValueError
            connection, headers = HTTPSConnection(parts.hostname, parts.port or 80, context=self._context), {}
        except (ValueError, HTTPException):
            raise TransportError("the proxy that https_proxy names is none: write http://host:port") from None
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        connection.set_tunnel(host, port, headers)
        return connection


class _Own:
    """A body; an error in reading it is ours, and none of the connection."""

    def __init__(self, body: Iterator[memoryview]) -> None:
        self._body = body
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        try:
            return next(self._body)
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001  kept for who waits for the answer
            self.error = error
            raise OSError from None


def _shut(connection: HTTPSConnection) -> None:
    """End what is under way: whoever sends a byte a minute, or answers without an end, holds a site no longer."""
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(SHUT_RDWR)
