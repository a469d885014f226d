"""A transport of threads and queues: what a new one has to write. (A real one takes no certificate on trust.)"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from secagg.errors import SecAggError
from secagg.protocol import (
    BrokenOffError,
    BusyError,
    Chunk,
    DepositReply,
    DownloadRequest,
    JoinReply,
    Refusal,
    ServerStatus,
    SkipRequest,
    UploadReply,
)
from secagg.server import Federation

_END = object()


class Pipe:
    """One call: messages in both directions, which either side can break off."""

    def __init__(self, certificate: bytes, name: str, argument: Any, seconds: float) -> None:
        self.certificate, self.name, self.argument = certificate, name, argument
        self._deadline = time.monotonic() + seconds
        self.up: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.down: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._broken = threading.Event()

    def is_active(self) -> bool:
        return not self._broken.is_set() and time.monotonic() < self._deadline

    def cancel(self) -> None:
        self._broken.set()

    def get(self, place: queue.SimpleQueue[Any], gone: type[Exception]) -> Any:
        while True:
            try:
                return place.get(timeout=0.05)
            except queue.Empty:
                if not self.is_active():
                    raise gone("too late") from None

    def coming(self) -> Iterator[Chunk]:
        """What a server receives."""
        while (message := self.get(self.up, BrokenOffError)) is not _END:
            yield message

    def told(self) -> Any:
        """What a site is answered."""
        answer = self.get(self.down, BusyError)
        if isinstance(answer, Refusal):
            raise answer.error() or BusyError(answer.message)
        return answer


class ToyServer:
    """Takes calls from a queue, each in a thread of its own. A context manager."""

    def __init__(self, federation: Federation) -> None:
        self.calls: queue.Queue[Pipe | None] = queue.Queue()
        self._federation = federation
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> ToyServer:
        self._federation.start()
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._federation.release()
        self.calls.put(None)
        for thread in self._threads:
            thread.join()
        self._federation.close()

    def _accept(self) -> None:
        while (pipe := self.calls.get()) is not None:
            self._threads.append(threading.Thread(target=self._answer, args=(pipe,)))
            self._threads[-1].start()

    def _answer(self, pipe: Pipe) -> None:
        try:
            with self._federation.call((pipe.certificate,), pipe, "a thread") as call:
                if pipe.name == "upload":
                    answer = call.upload(pipe.coming())
                elif pipe.name == "download":
                    for chunk in call.download(pipe.argument):
                        pipe.down.put(Chunk(bytes(chunk.data), chunk.frame))
                    answer = _END
                else:
                    answer = getattr(call, pipe.name)(*pipe.argument)
        except SecAggError as error:
            answer = Refusal.of(error)
        except (BusyError, BrokenOffError) as error:
            answer = Refusal("", str(error))  # no type: it may come again
        pipe.down.put(answer)


class ToyLink:
    """The calls of a site; see `secagg.site.Link`. An upload breaks off after `cuts[0]` chunks, then …"""

    def __init__(self, server: ToyServer, certificate: bytes, cuts: tuple[int, ...] = ()) -> None:
        self._server, self._certificate, self.cuts = server, certificate, list(cuts)

    def join(self, site: str, seconds: float) -> JoinReply:
        return self._call("join", (site,), seconds).told()

    def skip(self, request: SkipRequest, seconds: float) -> None:
        self._call("skip", (request,), seconds).told()

    def resume(self, head: bytes, seconds: float) -> UploadReply:
        return self._call("resume", (head,), seconds).told()

    def deposit(self, head: bytes, seconds: float) -> DepositReply:
        return self._call("deposit", (head,), seconds).told()

    def status(self, seconds: float) -> ServerStatus:
        return self._call("status", (), seconds).told()

    def upload(self, chunks: Iterator[Chunk], seconds: float) -> UploadReply:
        pipe = self._call("upload", None, seconds)
        cut = self.cuts.pop(0) if self.cuts else None
        try:
            for number, chunk in enumerate(chunks):
                if number == cut:
                    raise BusyError("the toy broke")
                pipe.up.put(Chunk(bytes(chunk.data), chunk.frame))
            pipe.up.put(_END)
            return pipe.told()
        finally:
            pipe.cancel()

    def download(self, request: DownloadRequest, seconds: float) -> Generator[Chunk, None, None]:
        pipe = self._call("download", request, seconds)
        try:
            while (answer := pipe.told()) is not _END:
                yield answer
        finally:
            pipe.cancel()

    def close(self) -> None:
        pass

    def _call(self, name: str, argument: Any, seconds: float) -> Pipe:
        self._server.calls.put(pipe := Pipe(self._certificate, name, argument, seconds))
        return pipe
