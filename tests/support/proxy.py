"""A TCP proxy that spoils connections: cuts, stalls and slows them, and sends segments twice, late or never.

TCP itself would not do the last three. Under TLS they show what an attacker on the way can do; without it, what happens
to a server or site whose other side sends rubbish.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SEGMENT_NBYTES = 1400
FOREVER_SECONDS = 3600.0

#: What leaves the bytes as they are, and what does not.
BREAKS = ("drop", "reset", "stall", "slow")
DISORDER = ("duplicate", "reorder", "lose")


@dataclass(frozen=True)
class Fault:
    """What happens to one direction of one connection.

    Parameters
    ----------
    kind : str
        "drop": the connection is closed. "reset": it is reset. "stall": nothing goes on for `seconds`. "slow": each of
        the next segments waits `seconds`. "duplicate", "reorder", "lose": a segment is sent twice, after the next one,
        or never.
    upwards : bool
        Whether it strikes what the site sends, or what it gets.
    offset : int
        Behind how many bytes.
    seconds : float
        See `kind`.
    """

    kind: str
    upwards: bool
    offset: int
    seconds: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random, kinds: tuple[str, ...], nbytes: int) -> Fault:
        """Return a fault in an exchange of `nbytes`: in any of its frames, or in what comes before the first."""
        offset = rng.randrange(nbytes) if rng.random() < 0.7 else int(nbytes ** rng.random())
        kind, upwards = rng.choice(kinds), rng.random() < 0.7
        if kind == "stall":
            seconds = rng.choice([0.1, 0.3, 0.5, 1.0, 2.0, 3.0, FOREVER_SECONDS])
        else:
            seconds = rng.uniform(0.005, 0.02) if kind == "slow" else 0.0
        return cls(kind, upwards, offset, seconds)


class Proxy:
    """Forwards connections to a server, from the beginning to the end of the block.

    Parameters
    ----------
    port : int
        The server's, on the loopback.
    record : Path, optional
        Folder for all bytes forwarded, a file for each direction of each connection.

    Attributes
    ----------
    faults : deque of Fault
        Each new connection takes the first of them; without any, it is a good one.
    """

    def __init__(self, port: int, record: Path | None = None) -> None:
        self.faults: deque[Fault] = deque()
        self.struck: list[Fault] = []
        self.connections = 0
        self._port, self._record = port, record
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._closed = threading.Event()
        self._links: set[_Link] = set()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def spoil(self, faults: Iterable[Fault]) -> None:
        """Let these faults happen, in this order, and none that waited until now."""
        self.faults.clear()
        self.faults.extend(faults)

    def cut(self) -> None:
        """Close all connections."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                site, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port), 5)
            except OSError:
                site.close()
                continue
            server.settimeout(None)
            try:
                fault = self.faults.popleft()
            except IndexError:
                fault = None
            link = _Link(self, self.connections, site, server, fault)
            self.connections += 1
            with self._lock:
                self._links.add(link)
            link.start()


class _Link:
    """One connection: two threads that forward."""

    def __init__(
        self, proxy: Proxy, number: int, site: socket.socket, server: socket.socket, fault: Fault | None
    ) -> None:
        self._proxy, self._number, self._site, self._server, self._fault = proxy, number, site, server, fault
        self._closed = threading.Event()
        for end in (site, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        for upwards in (True, False):
            threading.Thread(target=self._forward, args=(upwards,), daemon=True).start()

    def close(self, reset: bool = False) -> None:
        self._closed.set()
        for end in (self._site, self._server):
            try:
                if reset:  # what lingers for no time is reset
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
        with self._proxy._lock:
            self._proxy._links.discard(self)

    def _forward(self, upwards: bool) -> None:
        source, sink = (self._site, self._server) if upwards else (self._server, self._site)
        fault = self._fault if self._fault is not None and self._fault.upwards == upwards else None
        done = 0
        try:
            while data := source.recv(1 << 16):
                self._record(upwards, data)
                if fault is not None and done + len(data) > fault.offset:
                    place = fault.offset - done
                    sink.sendall(data[:place])
                    self._proxy.struck.append(fault)
                    self._strike(fault, source, sink, data[place:])
                    fault = None
                else:
                    sink.sendall(data)
                done += len(data)
        except OSError:
            pass
        self.close()

    def _strike(self, fault: Fault, source: socket.socket, sink: socket.socket, data: bytes) -> None:
        segment, rest = data[:SEGMENT_NBYTES], data[SEGMENT_NBYTES:]
        if fault.kind in ("drop", "reset"):
            self.close(reset=fault.kind == "reset")
            raise ConnectionError
        if fault.kind == "stall":
            self._closed.wait(fault.seconds)
            sink.sendall(data)
        elif fault.kind == "slow":
            for start in range(0, len(data), SEGMENT_NBYTES):
                self._closed.wait(fault.seconds)
                sink.sendall(data[start : start + SEGMENT_NBYTES])
        elif fault.kind == "duplicate":
            sink.sendall(segment + segment + rest)
        elif fault.kind == "reorder":
            following = rest[:SEGMENT_NBYTES] or source.recv(SEGMENT_NBYTES)
            sink.sendall(following + segment + rest[SEGMENT_NBYTES:])
        else:
            assert fault.kind == "lose"
            sink.sendall(rest)

    def _record(self, upwards: bool, data: bytes) -> None:
        if self._proxy._record is not None:
            with (self._proxy._record / f"{self._number}-{'up' if upwards else 'down'}").open("ab") as file:
                file.write(data)
