"""What goes wrong between a client and an S3 server, when a test orders it."""

from __future__ import annotations

import fnmatch
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from s3_signatures import App, Environ, Refused, StartResponse, read_body


@dataclass
class Fault:
    """It strikes the `times` requests that it fits after the first `after` of them.

    Parameters
    ----------
    kind : str
        ``busy``: 503 SlowDown. ``deny``: 403 AccessDenied. ``slow``: the answer comes after `seconds`. ``cut``: the
        connection closes after `nbytes` of the body. ``flip``: the byte at `nbytes` of the body is another, and nothing
        else says so. ``whole``: the object comes whole, whatever range was asked for. ``overwrite``: another writer
        has replaced the object just before. ``redirect``: 307 to `location`. ``lose``: the request is carried out, and
        the connection closes without an answer.
    method, key : str
        Which requests it fits; `key` is ``bucket/key`` and may have ``*``.
    """

    kind: str
    method: str = "GET"
    key: str = "*"
    after: int = 0
    times: int = 1
    seconds: float = 0.0
    nbytes: int = 0
    location: str = ""
    met: int = field(default=0, init=False)

    def strikes(self, method: str, key: str) -> bool:
        if self.method != method or not fnmatch.fnmatchcase(key, self.key):
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times


class Faults:
    """Strikes as `orders` say, and keeps a line of each request: method, ``bucket/key``, query, range and status.

    Parameters
    ----------
    app : WSGI application
    overwrite : callable
        Replaces the content of a bucket's key.
    """

    def __init__(self, app: App, overwrite: Callable[[str, str], None]) -> None:
        self._app, self._overwrite = app, overwrite
        self._lock = threading.Lock()
        self.orders: list[Fault] = []
        self.requests: list[dict[str, str]] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path, _, query = environ["RAW_URI"].partition("?")
        method, key = environ["REQUEST_METHOD"], unquote(path).lstrip("/")
        line = {"method": method, "key": key, "query": query, "range": environ.get("HTTP_RANGE", ""), "status": ""}
        with self._lock:
            faults = [fault for fault in self.orders if fault.strikes(method, key)]
            self.requests.append(line)

        def note(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            line["status"] = status[:3]
            if any(fault.kind == "flip" for fault in faults):
                headers = [header for header in headers if not header[0].lower().startswith("x-amz-checksum-")]
            return start_response(status, headers, *rest)

        try:
            read_body(environ)
            for fault in faults:
                self._before(fault, environ, key)
        except Refused as refused:
            return refused.answer(environ, note)
        body = self._app(environ, note)
        for fault in faults:
            if fault.kind == "lose":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            if fault.kind in ("cut", "flip"):
                body = (_cut if fault.kind == "cut" else _flip)(body, fault.nbytes)
        return body

    def _before(self, fault: Fault, environ: Environ, key: str) -> None:
        if fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault.kind == "busy":
            raise Refused(503, "SlowDown", "Please reduce your request rate.")
        elif fault.kind == "deny":
            raise Refused(403, "AccessDenied", "Access Denied")
        elif fault.kind == "redirect":
            raise Refused(307, "TemporaryRedirect", "Please re-send this request to", Location=fault.location)
        elif fault.kind == "whole":
            environ["s3.whole"] = True
        elif fault.kind == "overwrite":
            bucket, _, name = key.partition("/")
            self._overwrite(bucket, name)


def _cut(body: Iterable[bytes], nbytes: int) -> Iterator[bytes]:
    for chunk in body:
        yield chunk[:nbytes]
        nbytes -= len(chunk)
        if nbytes <= 0:
            raise ConnectionError


def _flip(body: Iterable[bytes], nbytes: int) -> Iterator[bytes]:
    for chunk in body:
        if 0 <= nbytes < len(chunk):
            chunk = chunk[:nbytes] + bytes([chunk[nbytes] ^ 1]) + chunk[nbytes + 1 :]
        nbytes -= len(chunk)
        yield chunk
