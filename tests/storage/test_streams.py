"""Paths, contents and streams: what is read from each is the same, and so is what is written."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import socket
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import federate
from signed import sign_federation

import secagg
from secagg.errors import ConfigError, FormatError, KeyFileError, LayoutError, RangeError, SecAggError, StorageError
from secagg.storage.files import read_source

SIGNED = sign_federation(federate("flashe"))
STATE = {"w": np.linspace(-1, 1, 9000, dtype=np.float32)}
BASE = bytes(range(32))


class Dripping(io.RawIOBase):
    """A stream as a socket is: each call moves a few bytes, and it cannot seek."""

    def __init__(self, blob: bytes = b"", step: int = 1000) -> None:
        self.blob, self.step = bytearray(blob), step

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = bytes(self.blob[: min(self.step, len(buffer))])
        del self.blob[: len(part)]
        buffer[: len(part)] = part
        return len(part)

    def write(self, data: Any) -> int:
        taken = bytes(data)[: self.step]
        self.blob += taken
        return len(taken)


class OnlyRead:
    """The least that can be read."""

    def __init__(self, blob: bytes) -> None:
        self.read = io.BytesIO(blob).read


class ReadsText:
    """A stream of text that is no `io.TextIOBase`, as those of `codecs` are."""

    def tell(self) -> int:
        return 0

    def seek(self, *_: int) -> int:
        return 4

    def read(self, size: int) -> str:
        return "text"


class OnlyWritten:
    """The least that can be written; as many such objects, it says nothing of how much it takes."""

    def __init__(self) -> None:
        self.blob = b""

    def write(self, data: Any) -> None:
        self.blob += bytes(data)


class Named(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


#: What is read: the loader, a file of it as bytes, what of it is compared, its error, a limit of bytes.
LOADERS: dict[str, tuple[Callable[[Any], Any], Callable[[Path], None], Callable[[Any], Any], type[SecAggError]]] = {
    "client key": (secagg.load_key, SIGNED.federation.keys.client.save, lambda key: key.fingerprint, KeyFileError),
    "server key": (secagg.load_key, SIGNED.federation.keys.server.save, lambda key: key, KeyFileError),
    "identity": (
        secagg.Identity.load,
        SIGNED.identities["site-1"].save,
        lambda identity: identity.public,
        KeyFileError,
    ),
    "config": (
        secagg.Config.load,
        lambda path: path.write_text("he: {preset: exact}\n") and None,
        lambda config: config,
        ConfigError,
    ),
    "project": (
        secagg.Project.load,
        lambda path: SIGNED.project.save(path, SIGNED.authority),
        lambda project: (project, project.signed),
        KeyFileError,
    ),
    "update": (
        secagg.Update.open,
        lambda path: SIGNED.site().encrypt_to(path, STATE),
        lambda update: update.to_bytes(),
        FormatError,
    ),
}

SOURCES: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": lambda path: path,
    "path-like": Named,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "raw file": lambda path: path.open("rb", buffering=0),
    "memory": lambda path: io.BytesIO(path.read_bytes()),
    "behind its beginning": lambda path: _behind(path),
    "compressed": lambda path: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(path.read_bytes()))),
}
ENDLESS = {
    "what drips": lambda path: Dripping(path.read_bytes()),
    "the least": lambda path: OnlyRead(path.read_bytes()),
}

NO_SOURCES: dict[str, Any] = {
    "nothing": None,
    "a number": 7,
    "a list": [1, 2],
    "tensors": STATE,
    "an array": STATE["w"],
    "text": io.StringIO("he: {preset: exact}"),
    "what reads text": type(
        "Reader", (), {"read": lambda self, size: "text", "seek": lambda *_: 4, "tell": lambda _: 0}
    )(),
    "closed": io.BytesIO(b""),
    "what cannot be read": OnlyWritten(),
    "open for writing": io.BufferedWriter(Dripping()),
}
NO_SOURCES["closed"].close()


def _behind(path: Path) -> io.BytesIO:
    stream = io.BytesIO(b"something else" + path.read_bytes())
    stream.seek(len(b"something else"))
    return stream


@pytest.fixture(params=LOADERS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, Any, type[SecAggError]]:
    load, save, look, error = LOADERS[request.param]
    path = tmp_path / "some.file"
    save(path)
    return path, load, look, error


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_is_the_same(kind: Any, source: Callable[[Path], Any]) -> None:
    path, load, look, _ = kind
    given = source(path)
    found = load(given)
    expected = load(path)
    assert look(found) == look(expected)
    for opened in (found, expected):
        if isinstance(opened, secagg.Update):
            opened.close()
    if hasattr(given, "read"):
        assert not given.closed  # it is whoever opened it who closes it
        given.close()


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_streams_that_cannot_seek_to_their_end(kind: Any, source: Callable[[Path], Any]) -> None:
    path, load, look, _ = kind
    given = source(path)
    if load == secagg.Update.open:
        with pytest.raises(FormatError, match=r"cannot seek.*Update\.from_bytes\(stream\.read\(\)\)"):
            load(given)
        given = io.BytesIO(path.read_bytes())
    assert look(load(given)) == look(load(path.read_bytes()))
    given = given if hasattr(given, "close") else None
    if given:
        given.close()


def test_a_socket(kind: Any) -> None:
    path, load, look, _ = kind
    if load == secagg.Update.open:
        return  # it cannot seek
    blob = path.read_bytes()
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb", buffering=0) as stream:
        assert len(blob) < 50_000  # what the buffer takes
        theirs.sendall(blob)
        theirs.shutdown(socket.SHUT_WR)
        assert look(load(stream)) == look(load(blob))


@pytest.mark.parametrize("source", NO_SOURCES.values(), ids=NO_SOURCES)
def test_what_is_no_source(kind: Any, source: Any) -> None:
    *_, load, _, error = kind
    with pytest.raises(
        error, match=r"binary|closed: open it again|the stream returns str|open for writing: open it by"
    ):
        load(source)


def test_text_is_a_path_and_bytes_are_contents(kind: Any) -> None:
    path, load, _, error = kind
    with pytest.raises(error, match="cannot read"):
        load("he: {preset: exact}")
    with pytest.raises(error) as caught:
        load(os.fsencode(path))
    assert "cannot read" not in str(caught.value)


def test_caps_hold_before_anything_is_allocated() -> None:
    class Endless:
        asked = 0

        def read(self, size: int) -> bytes:
            self.asked += size
            return bytes(size)

    for load, limit, error in (
        (secagg.load_key, 64 << 20, KeyFileError),
        (secagg.Identity.load, 4096, KeyFileError),
        (secagg.Config.load, 1 << 20, ConfigError),
        (secagg.Project.load, 8 << 20, KeyFileError),
    ):
        stream = Endless()
        with pytest.raises(error, match=f"has more than {limit} bytes"):
            load(stream)
        assert stream.asked == limit + 1
        large = memoryview(bytearray(limit + 1))
        tracemalloc.start()
        with pytest.raises(error, match=f"has more than {limit} bytes"):
            load(large)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16  # nothing is copied
        tracemalloc.stop()


def test_a_limit_is_reached_and_not_passed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    for source in SOURCES.values():
        given = source(path)
        assert read_source(given, 100, ConfigError, "it") == bytes(100)
        if hasattr(given, "close"):
            given.close()
        given = source(path)
        with pytest.raises(ConfigError, match="more than 99 bytes"):
            read_source(given, 99, ConfigError, "it")
        if hasattr(given, "close"):
            given.close()


def test_an_update_in_a_stream_is_read_a_frame_at_a_time(tmp_path: Path) -> None:
    """The aggregator's memory is one sum and two frames, whatever lies behind the stream."""
    path = tmp_path / "update"
    sites = ["site-1", "site-2"]
    state = {"w": np.zeros(4_000_000, np.float32)}
    for site in sites:
        SIGNED.site(site).encrypt_to(path.with_suffix(f".{site}"), state)
    size = path.with_suffix(".site-1").stat().st_size
    assert size > 4 << 20
    aggregator = SIGNED.aggregator(0)
    tracemalloc.start()
    for site in sites:
        with path.with_suffix(f".{site}").open("rb") as stream, secagg.Update.open(stream) as update:
            aggregator.add(update)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size + (2 << 20) + (1 << 19)
    assert aggregator.finish().header.sites == ("site-1", "site-2")


def test_a_stream_that_changes_or_closes_meanwhile() -> None:
    blob = SIGNED.site().encrypt(STATE).to_bytes()
    stream = io.BytesIO(blob)
    update = secagg.Update.open(stream)
    aggregator = SIGNED.aggregator(0)

    def change() -> None:
        stream.seek(len(blob) - 5000)
        stream.write(bytes(100))

    with pytest.raises(FormatError):
        aggregator.add(update, change)
    assert aggregator.closed  # the sum is lost, not wrong
    stream.truncate(len(blob) - 1000)
    with pytest.raises(FormatError, match="became shorter"):
        list(update.frames())
    update.close()
    assert not stream.closed
    for close in (lambda: None, stream.close):
        close()
        with pytest.raises(SecAggError, match="closed; open it again"):
            update.to_bytes()
    stream = io.BytesIO(blob)
    update = secagg.Update.open(stream)
    stream.close()
    with pytest.raises(SecAggError, match="closed; open it again"):
        list(update.frames())


# What is written


def write_update(target: Any) -> None:
    SIGNED.site().encrypt_to(target, STATE)


def write_model(target: Any) -> None:
    SIGNED.site().encrypt_model(target, STATE, round=3, base=BASE)


def read_update(blob: bytes) -> None:
    update = secagg.Update.from_bytes(blob)
    other = SIGNED.site("site-2").encrypt(STATE)
    aggregator = SIGNED.aggregator(0)
    for item in (update, other):
        aggregator.add(item)
    np.testing.assert_allclose(SIGNED.site().decrypt(aggregator.finish())["w"], STATE["w"], atol=0.02)


def read_model(blob: bytes) -> None:
    np.testing.assert_array_equal(SIGNED.site().decrypt_model(secagg.Update.from_bytes(blob))["w"], STATE["w"])


WRITERS = {"encrypt_to": (write_update, read_update), "encrypt_model": (write_model, read_model)}


@pytest.mark.parametrize(("write", "read"), WRITERS.values(), ids=WRITERS)
def test_every_target_is_the_same(write: Any, read: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for target in (path, str(path), Named(path)):
        write(target)
        read(path.read_bytes())
        path.unlink()
    with path.open("wb") as file:
        write(file)
        assert not file.closed
    read(path.read_bytes())
    memory, dripping, least = io.BytesIO(), Dripping(), OnlyWritten()
    for stream in (memory, dripping, least):
        write(stream)
    for blob in (memory.getvalue(), bytes(dripping.blob), least.blob):
        read(blob)
    with tempfile.SpooledTemporaryFile() as spooled:  # it is no io.IOBase everywhere
        write(spooled)
        spooled.seek(0)
        read(spooled.read())


@pytest.mark.parametrize(("write", "read"), WRITERS.values(), ids=WRITERS)
def test_what_is_no_target(write: Any, read: Any, tmp_path: Path) -> None:
    closed = io.BytesIO()
    closed.close()
    for target, message in (
        (None, "cannot write to NoneType; pass a path or a binary stream"),
        (7, "cannot write to int"),
        (b"some.file", "cannot write to bytes"),
        (io.StringIO(), "a stream of text takes no bytes: open it in binary mode"),
        (closed, "closed: open it again"),
        ("a\0b", "cannot write 'a.*b'"),
    ):
        with pytest.raises(StorageError, match=message):
            write(target)
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as stream, pytest.raises(StorageError, match="is open for reading: open it by"):
        write(stream)

    class Text:
        def write(self, text: str) -> int:
            return len(text + "")

    with pytest.raises(StorageError, match="the stream takes no bytes"):
        write(Text())


@pytest.mark.parametrize(("write", "read"), WRITERS.values(), ids=WRITERS)
def test_a_stream_that_fails(write: Any, read: Any) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(StorageError, match="No space left"):
        write(full)


class Taking(io.RawIOBase):
    """A raw stream that always says the same of how much it takes."""

    def __init__(self, taken: int | None) -> None:
        self.taken, self.calls = taken, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        self.calls += 1
        assert self.calls < 100, "it would go on for ever"
        return self.taken


@pytest.mark.parametrize(
    ("taken", "message"),
    [(0, "took 0 of"), (-1, "took -1 of"), (1 << 40, "took 1099511627776 of"), (None, "takes nothing now")],
)
@pytest.mark.parametrize(("write", "read"), WRITERS.values(), ids=WRITERS)
def test_a_stream_that_takes_nothing(write: Any, read: Any, taken: int | None, message: str) -> None:
    stream = Taking(taken)
    with pytest.raises(StorageError, match=message):
        write(stream)
    assert stream.calls == 1


def test_a_pipe_that_is_full() -> None:
    """It does not block, so that its writer would have to wait; nobody does that here."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb"), open(writer, "wb", buffering=0) as stream:
        with contextlib.suppress(BlockingIOError):
            while stream.write(bytes(1 << 16)):
                pass
        with pytest.raises(StorageError, match="it does not block, and takes nothing now"):
            write_update(stream)


def test_nothing_is_written_before_all_values_are_checked() -> None:
    stream = io.BytesIO()
    with pytest.raises(RangeError):
        SIGNED.site().encrypt_to(stream, {"w": np.full(3, np.nan)})
    with pytest.raises(LayoutError):
        SIGNED.site().encrypt_to(stream, {"w": "no tensor"})
    assert stream.getvalue() == b""
