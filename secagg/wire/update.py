"""An update, aggregate or model: a header, its frames and its tail, in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BufferedReader, BytesIO
from types import TracebackType
from typing import BinaryIO, Protocol

from ..errors import FormatError, StateError
from ..scheme.params import QuantisedParams
from ..storage.files import open_regular, os_errors, replace_file
from .container import DIGEST_NBYTES, PREAMBLE_NBYTES, check_digest, digest, frame_digest, head_nbytes
from .header import Frame, Header
from .tail import UNSIGNED, Proof, Tail, body_digest, signed_message

_CLOSED = "the update's file is closed; open it again"
_NEXT_BASE = b"secagg base v1"


class Body(Protocol):
    """Where the frames of an update lie. Offsets count from the end of the head."""

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return `nbytes` bytes; valid until the next call."""

    def stamp(self) -> object:
        """Return what is equal as long as nothing has changed; None if nobody can tell."""

    def close(self) -> None:
        """Give resources back."""


class Update:
    """What a site uploads for one round, or the sum of several; build it with `from_bytes` or `open`.

    Only header and length are checked at first. Frames and tail are read lazily, and each read checks the digest.
    """

    def __init__(self, header: Header, body: Body) -> None:
        self._header = header
        self._body = body
        self._tail: Tail | None = None
        self._verified: object = None  # the stamp under which every digest was checked

    @classmethod
    def from_bytes(cls, blob: bytes) -> Update:
        """Read an update that is in memory; `blob` is kept, and copied only if it is not bytes.

        Raises
        ------
        FormatError
            If header or length are not those of an update (`DigestError` if a byte of the header changed).
        DuplicateError
            If the header lists a site or nonce twice.
        """
        if not isinstance(blob, (bytes, bytearray, memoryview)):
            raise FormatError(f"an update is bytes, not {type(blob).__name__}")
        blob = bytes(blob)  # what can change must not: bytes themselves are not copied by this
        header = _read_header(BytesIO(blob), len(blob))
        return cls(header, MemoryBody(memoryview(blob)[len(header.head) :], blob))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Update:
        """Open an update that is in a file; frames stay there until they are read. Errors as in `from_bytes`.

        The file stays open until `close`, or the end of a ``with`` block.
        """
        with os_errors(FormatError, f"cannot read {os.fspath(path)!r}"):
            file = open_regular(path)
        try:
            header = _read_header(file, os.fstat(file.fileno()).st_size)
        except BaseException:
            file.close()
            raise
        return cls(header, FileBody(file, len(header.head)))

    @property
    def header(self) -> Header:
        """The validated header."""
        return self._header

    @property
    def nbytes(self) -> int:
        """Size in bytes of the whole update."""
        return self._header.nbytes

    @property
    def tail(self) -> Tail:
        """The tail, read and checked.

        Raises
        ------
        DigestError
            If a byte of it changed.
        FormatError
            If it is none of this scheme.
        """
        if self._tail is None:
            header = self._header
            data = bytes(self._body.read(header.tail_offset, header.tail_nbytes))
            tail = Tail.unpack(data, header.head, header.frame_count)
            if tail.tag and not (isinstance(header.params, QuantisedParams) and header.kind != "model"):
                raise FormatError("the tail has a tag, but only sums of exact schemes have one")
            self._tail = tail
        return self._tail

    def digest(self) -> bytes:
        """Return the 32 bytes that name this very update: the digest of the digests of head, frames and tail."""
        header = self._header
        places = [frame.offset + frame.nbytes for frame in header.frames]
        places.append(header.tail_offset + header.tail_nbytes - DIGEST_NBYTES)
        parts = (bytes(self._body.read(place, DIGEST_NBYTES)) for place in places)
        return digest(header.head[-DIGEST_NBYTES:], *parts)

    @property
    def next_base(self) -> bytes | None:
        """What updates of the next round begin from: the base of this aggregate, and then the aggregate itself.

        None if the aggregate has no base. A chain, not a digest of the new model: it is the same at all sites although
        their HE libraries round the decryptions of CKKS differently.
        """
        base = self._header.base
        return None if base is None else digest(_NEXT_BASE, base, self.digest())

    def frames(self) -> Iterator[tuple[Frame, memoryview]]:
        """Yield each frame and its payload, valid until the next, after checking its digest.

        Raises
        ------
        DigestError
            If a byte of the frame changed; after the last frame, if the tail has the digest of another body.
        FormatError
            If the file became shorter, or the tail is none of this scheme; after the last frame, if the file changed
            since its digests were checked, which is not done again as long as it does not.
        """
        stamp = self._body.stamp()
        verified = stamp is not None and stamp == self._verified
        digests = []
        for frame in self._header.frames:
            data = self._body.read(frame.offset, frame.nbytes + DIGEST_NBYTES)
            payload, expected = data[: frame.nbytes], bytes(data[frame.nbytes :])
            if not verified:
                check_digest(expected, frame_digest(self._header.head, frame.index, payload), f"frame {frame.index}")
                digests.append(expected)
            yield frame, payload
        if not verified and self._header.kind != "aggregate":  # what is signed is what was read
            body = body_digest(self._header.head, digests, self.tail.tag)
            check_digest(self.tail.proofs[0].body, body, "the body")
        if verified and self._body.stamp() != stamp:
            raise FormatError("the file changed while it was read")
        self._verified = stamp

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the update as they are sent: the head, each frame with its digest, the tail."""
        yield self._header.head
        for frame in self._header.frames:
            yield self._body.read(frame.offset, frame.nbytes + DIGEST_NBYTES)
        yield self._body.read(self._header.tail_offset, self._header.tail_nbytes)

    def to_bytes(self) -> bytes:
        """Return the whole update; one that is in memory as bytes already is returned as it is."""
        if isinstance(self._body, MemoryBody) and self._body.blob is not None:
            return self._body.blob
        return b"".join(bytes(chunk) for chunk in self.chunks())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the update to a file, frame by frame; the file appears whole or not at all."""
        with replace_file(path) as file:
            for chunk in self.chunks():
                file.write(chunk)

    def close(self) -> None:
        """Close the file of an update that was opened from one."""
        self._body.close()

    def __enter__(self) -> Update:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        header = self._header
        return f"<{header.kind} of round {header.round} from {', '.join(header.sites)}, {self.nbytes} bytes>"


class MemoryBody:
    """Frames in memory: `frames` holds them all; `blob` is the whole update, where it is at hand as bytes."""

    def __init__(self, frames: memoryview, blob: bytes | None = None) -> None:
        self._frames = frames
        self.blob = blob

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Return a view without a copy."""
        return self._frames[offset : offset + nbytes]

    def stamp(self) -> object:
        """Return the same as ever for bytes, which cannot change."""
        return None if self.blob is None else ()

    def close(self) -> None:
        """Do nothing: memory is given back with the object."""


class FileBody:
    """Frames in a file, read one at a time into a buffer that is used again."""

    def __init__(self, file: BufferedReader, start: int) -> None:
        self._file = file
        self._start = start
        self._buffer = bytearray()

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Read from the file; a file that became shorter raises `FormatError`."""
        if self._file.closed:
            raise StateError(_CLOSED)
        if len(self._buffer) < nbytes:
            self._buffer = bytearray(nbytes)
        view = memoryview(self._buffer)[:nbytes]
        self._file.seek(self._start + offset)
        if self._file.readinto(view) != nbytes:
            raise FormatError("the file became shorter while it was read")
        return view

    def stamp(self) -> object:
        """Return size of the file and time of its last change."""
        if self._file.closed:
            raise StateError(_CLOSED)
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class UpdateWriter:
    """Writes an update or model frame by frame to a stream, in the order of the header's frames, then its tail."""

    def __init__(self, stream: BinaryIO, header: Header) -> None:
        self._stream = stream
        self._head = header.head
        self._digests: list[bytes] = []
        stream.write(self._head)

    def write(self, frame: Frame, payload: memoryview) -> None:
        """Write a frame and its digest."""
        self._digests.append(frame_digest(self._head, frame.index, payload))
        self._stream.write(payload)
        self._stream.write(self._digests[-1])

    def finish(self, tag: int, sign: Callable[[bytes], bytes] | None) -> None:
        """Write the tail: the tag, and what `sign` makes of the message that a site signs; zeros without it."""
        body = body_digest(self._head, self._digests, tag)
        signature = sign(signed_message(self._head, body)) if sign else UNSIGNED
        self._stream.write(Tail(tag, (Proof(body, signature),)).pack(self._head, len(self._digests)))


def _read_header(stream: BinaryIO, nbytes: int) -> Header:
    """Read the header from the start of a stream and hold it against the number of bytes that are there."""
    preamble = stream.read(PREAMBLE_NBYTES)
    length = head_nbytes(preamble)
    if nbytes < length:
        raise FormatError(f"truncated: {nbytes} bytes, the head alone takes {length}")
    header = Header.from_head(preamble + stream.read(length - PREAMBLE_NBYTES))
    if nbytes != header.nbytes:
        fault = "truncated" if nbytes < header.nbytes else "trailing bytes"
        raise FormatError(f"{fault}: {nbytes} bytes, the header describes {header.nbytes}")
    return header
