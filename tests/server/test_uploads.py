"""Uploads without a transport: what one of them may do to another one of its site."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secagg
from secagg.errors import FormatError, KeyMismatchError, LayoutError, RoundMismatchError
from secagg.protocol import BrokenOffError, Chunk, UploadReply
from secagg.protocol.chunks import chunks_from
from secagg.server import Call, Federation

STATE = {"w": np.full(5, 0.5, np.float32)}


class Line:
    """A connection, and whether the server has ended it."""

    def __init__(self) -> None:
        self.cancelled = False

    def is_active(self) -> bool:
        return not self.cancelled

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def federation(provision: Any, tmp_path: Path) -> Iterator[Federation]:
    federation = Federation(provision.config, provision.keys.server, tmp_path, round_timeout=1000.0, certified=False)
    yield federation
    federation.close()


@contextmanager
def called(federation: Federation, line: Line | None = None) -> Iterator[Call]:
    with federation.call((), line or Line(), "here") as call:
        yield call


def unfit(provision: Any) -> list[tuple[secagg.Update, type[secagg.SecAggError]]]:
    """Updates of site-1 that are none of the open round, and why."""
    site = provision.clients["site-1"]
    other = secagg.Client(provision.config, secagg.generate_keys(provision.config).client, name="site-1")
    return [
        (site.encrypt(STATE, weight=1.0, round=1), RoundMismatchError),
        (other.encrypt(STATE, weight=1.0), KeyMismatchError),
        (site.encrypt({**STATE, "v": STATE["w"]}, weight=1.0), LayoutError),
    ]


def test_what_is_unfit_breaks_off_no_earlier_upload(provision: Any, federation: Federation) -> None:
    with called(federation) as call:  # from here on the layout is known
        call.upload(chunks_from(provision.clients["site-2"].encrypt(STATE, weight=1.0), 0))
    good, line = provision.clients["site-1"].encrypt(STATE, weight=1.0), Line()
    chunks: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
    head, *rest = (Chunk(bytes(chunk.data), chunk.frame) for chunk in chunks_from(good, 0))

    def come() -> Iterator[Chunk]:
        while (chunk := chunks.get()) is not None:
            asked.put(None)
            yield chunk

    def upload() -> UploadReply:
        with called(federation, line) as call:
            return call.upload(come())

    asked: queue.SimpleQueue[None] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(upload)
        try:
            for chunk in (head, rest[0]):
                chunks.put(chunk)
                asked.get(timeout=60.0)
            for update, kind in unfit(provision):
                with pytest.raises(kind), called(federation) as call:
                    call.resume(update.header.head)
                with pytest.raises(kind), called(federation) as call:
                    call.upload(chunks_from(update, 0))
                assert not line.cancelled
        finally:
            for chunk in rest[1:]:
                chunks.put(chunk)
            chunks.put(None)
        assert not future.result(timeout=60.0).already_added


@pytest.mark.parametrize("frame", [-1, 0.5, float("nan")])
def test_a_frame_that_there_cannot_be_spoils_no_part(provision: Any, federation: Federation, frame: Any) -> None:
    """The site itself, or whoever says that it is, sends it after an upload that broke off."""
    update = provision.clients["site-1"].encrypt(STATE, weight=1.0)

    def broken() -> Iterator[Chunk]:
        head, first, *_ = (Chunk(bytes(chunk.data), chunk.frame) for chunk in chunks_from(update, 0))
        yield head
        yield first
        raise BrokenOffError

    def odd() -> Iterator[Chunk]:
        yield Chunk(update.header.head, frame)

    with pytest.raises(BrokenOffError), called(federation) as call:
        call.upload(broken())
    with pytest.raises(FormatError, match="names frame"), called(federation) as call:
        call.upload(odd())
    with called(federation) as call:
        wanted = call.resume(update.header.head).frame
    assert wanted == 1
    with called(federation) as call:
        assert not call.upload(chunks_from(update, wanted)).already_added


def test_an_error_of_the_transport_is_none_of_the_disk(provision: Any, federation: Federation) -> None:
    """What came before it stays for the next try."""
    update = provision.clients["site-1"].encrypt(STATE, weight=1.0)

    def reset() -> Iterator[Chunk]:
        head, first, *_ = (Chunk(bytes(chunk.data), chunk.frame) for chunk in chunks_from(update, 0))
        yield head
        yield first
        raise ConnectionResetError("by the peer")

    with pytest.raises(BrokenOffError), called(federation) as call:
        call.upload(reset())
    with called(federation) as call:
        assert call.resume(update.header.head).frame == 1
