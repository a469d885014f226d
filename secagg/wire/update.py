"""An update, aggregate or model: a header, its frames and its tail, in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import SEEK_END, BytesIO
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

from ..errors import FormatError, StateError
from ..storage.files import (
    Contents,
    Readable,
    Source,
    Writable,
    check_readable,
    is_path,
    name_of,
    open_regular,
    os_errors,
    read_stream,
)
from ..storage.objects import ObjectStream, is_url, pin, save
from ..storage.pinned import Pinned
from .body import FIXED, Body, FileBody, MemoryBody, StreamBody
from .container import DIGEST_NBYTES, PREAMBLE_NBYTES, as_bytes, check_digest, digest, frame_digest, head_nbytes
from .header import Contribution, Frame, Header
from .tail import UNSIGNED, Proof, Tail, body_digest, signed_message

#: A larger one that lies in a file is not pickled: it would be read into memory, here and wherever it goes.
MAX_PICKLED_FILE_NBYTES = 64 << 20

_NEXT_BASE = b"secagg base v1"


class Update:
    """What a site uploads for one round, or the sum of several; build it with `from_bytes` or `open`.

    Only header and length are checked at first. Frames and tail are read lazily, and each read checks the digest.

    Two updates are equal if they are the same container: headers and digests are equal. One that is in memory can be
    pickled, and so can one of at most 64 MiB that lies in a file; it is in memory when it comes back.
    """

    def __init__(self, header: Header, body: Body) -> None:
        self._header = header
        self._body = body
        self._tail: Tail | None = None
        self._verified: object = None  # the stamp under which every digest was checked
        self._digests: list[bytes] = []  # those of the frames, as they were read first

    @classmethod
    def from_bytes(cls, blob: Contents) -> Update:
        """Read an update that is in memory; `blob` is kept, and copied only if it is not bytes.

        Raises
        ------
        FormatError
            If header or length are not those of an update (`DigestError` if a byte of the header changed).
        DuplicateError
            If the header lists a site or nonce twice.
        """
        blob = as_bytes(blob, "an update")
        header = _read_header(BytesIO(blob), len(blob))
        return cls(header, MemoryBody(memoryview(blob)[len(header.head) :], blob))

    @classmethod
    def written(cls, header: Header, blob: bytes) -> Update:
        """Return the update that has just been written to `blob` under `header`, whole."""
        return cls(header, MemoryBody(memoryview(blob)[len(header.head) :], blob))

    @classmethod
    def received(cls, path: Path, header: Header, digests: Sequence[bytes], stamp: object) -> Update:
        """Open the file of an update whose frames were checked, one after another, before they were written to it.

        Parameters
        ----------
        path : Path
            The file; it begins with the head.
        header : Header
            Its header.
        digests : sequence of bytes
            Those of all frames.
        stamp : object
            Of the file, `secagg.wire.body.stamp_of`, when it was whole: as long as it is, digests are not computed
            again.

        Raises
        ------
        FormatError
            If the file cannot be read (`DigestError` if the tail is damaged, or has the digest of another body).
        """
        with os_errors(FormatError, f"cannot read {name_of(path)}"):
            update = cls(header, FileBody(open_regular(path), len(header.head)))
        try:
            update._check_body(digests)
        except BaseException:
            update.close()
            raise
        update._digests, update._verified = list(digests), stamp
        return update

    @classmethod
    def open(cls, source: Source | Pinned) -> Update:
        """Open an update that is in a file, in a store or in a stream; frames stay there until they are read.

        Parameters
        ----------
        source : path, URL, Pinned, binary stream, bytes, bytearray or memoryview
            A file stays open until `close`, or the end of a ``with`` block. A URL, as ``"s3://bucket/key"``, is of an
            object that fsspec reaches: the one that is there now, and no other that takes its place. A stream must be
            able to seek; the update is what it holds from where it stands to its end. It belongs to the update as long
            as that is in use, and is not closed with it. Of contents, this is `from_bytes`.

        Raises
        ------
        FormatError
            As `from_bytes`; if `source` cannot be read, or is something else.
        DuplicateError
            As `from_bytes`.
        TransportError
            If a store cannot be reached, or refuses.
        """
        if is_url(source):
            source = pin(source)
        if isinstance(source, Pinned):
            return cls._open_stream(ObjectStream(source))
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls.from_bytes(source)
        if not is_path(source):
            return cls._open_stream(check_readable(source, FormatError, "an update"))
        with os_errors(FormatError, f"cannot read {name_of(source)}"):
            file = open_regular(source)
        try:
            header = _read_header(file, os.fstat(file.fileno()).st_size)
        except BaseException:
            file.close()
            raise
        return cls(header, FileBody(file, len(header.head)))

    @classmethod
    def _open_stream(cls, stream: Any) -> Update:
        try:
            start = stream.tell()
            nbytes = stream.seek(0, SEEK_END) - start
            stream.seek(start)
        except (AttributeError, TypeError, OSError, ValueError) as error:  # of a pipe, a socket, what is compressed
            raise FormatError(
                "the stream cannot seek, and frames are read from it more than once: read it whole, by "
                "Update.from_bytes(stream.read())"
            ) from error
        with os_errors(FormatError, "cannot read the stream"):
            header = _read_header(stream, nbytes)
        return cls(header, StreamBody(stream, start + len(header.head)))

    @property
    def header(self) -> Header:
        """The validated header."""
        return self._header

    @property
    def round(self) -> int:
        """Round of the federation; of a model the round that begins from it."""
        return self._header.round

    @property
    def site(self) -> str:
        """Site of an update, or of the model that it has stored; `StateError` of an aggregate, which has several."""
        return self._contribution("site").site

    @property
    def nonce(self) -> bytes:
        """The 32 random bytes of this encryption; `StateError` of an aggregate, which has several."""
        return self._contribution("nonce").nonce

    def _contribution(self, what: str) -> Contribution:
        if self._header.summed:
            raise StateError(f"a sum has more than one {what}: see its header.contributions")
        return self._header.contributions[0]

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
            self._tail = Tail.unpack(data, header.head, header.frame_count, header.tag_count)
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

    def frames(self, *, recheck: bool = False) -> Iterator[tuple[Frame, memoryview]]:
        """Yield each frame and its payload, valid until the next, after checking its digest.

        Parameters
        ----------
        recheck : bool
            Whether digests are checked again of a file that was read whole and whose size and time are as they were:
            who has verified its words must meet no others, and time can be set.

        Raises
        ------
        DigestError
            If a byte of the frame changed; after the last frame, if the tail has the digest of another body.
        FormatError
            If the file became shorter, or the tail is none of this scheme; after the last frame, if the file changed
            since its digests were checked, which is not done again as long as it does not; before it, if a frame is
            another than at the first reading.
        """
        stamp = self._body.stamp()
        verified = self.verified and (stamp == FIXED or not recheck)
        first, digests = self._digests, []
        for frame in self._header.frames:
            data = self._body.read(frame.offset, frame.nbytes + DIGEST_NBYTES)
            payload, expected = data[: frame.nbytes], bytes(data[frame.nbytes :])
            if not verified:
                check_digest(expected, frame_digest(self._header.head, frame.index, payload), f"frame {frame.index}")
                digests.append(expected)
                if first and first[frame.index] != expected:
                    raise FormatError("the file changed while it was read")
            yield frame, payload
        if not verified:
            self._check_body(digests)
        if verified and self._body.stamp() != stamp:
            raise FormatError("the file changed while it was read")
        if not verified:
            self._digests = digests
        self._verified = stamp

    @property
    def verified(self) -> bool:
        """Whether every digest has been checked, and nothing has changed since."""
        stamp = self._body.stamp()
        return stamp is not None and stamp == self._verified

    def _check_body(self, digests: Sequence[bytes]) -> None:
        """Hold the digests of all frames against the tail: what is signed is what was read."""
        if not self._header.summed:
            check_digest(self.tail.proofs[0].body, body_digest(self._header.head, digests), "the body")

    def chunks(self, first: int = 0) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the update as they are sent: the head, frames from `first` on with digests, the tail."""
        yield self._header.head
        for frame in islice(self._header.frames, first, None):
            yield self._body.read(frame.offset, frame.nbytes + DIGEST_NBYTES)
        yield self._body.read(self._header.tail_offset, self._header.tail_nbytes)

    def to_bytes(self) -> bytes:
        """Return the whole update; one that is in memory as bytes already is returned as it is."""
        if isinstance(self._body, MemoryBody) and self._body.blob is not None:
            return self._body.blob
        whole = BytesIO()  # where joining would hold a copy of each chunk beside the whole
        for chunk in self.chunks():
            whole.write(chunk)
        return whole.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the update to a file or a URL, frame by frame; it appears there whole or not at all.

        An upload to S3 that was killed goes on where it stopped, if the same update is saved there again.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        save(self.chunks(), self.nbytes, path)

    def close(self) -> None:
        """Close the file of an update that was opened from one."""
        self._body.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Update):
            return NotImplemented
        return self is other or (self._header.head == other._header.head and self.digest() == other.digest())

    def __hash__(self) -> int:
        return hash(self._header.head[-DIGEST_NBYTES:])

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[[bytes], Update], tuple[bytes]]:
        if not isinstance(self._body, MemoryBody) and self.nbytes > MAX_PICKLED_FILE_NBYTES:
            raise StateError(
                f"this update lies in a file and has {self.nbytes} bytes; more than {MAX_PICKLED_FILE_NBYTES} are not "
                "pickled: send the path, and Update.open it there, or pickle what to_bytes() returns"
            )
        return type(self).from_bytes, (self.to_bytes(),)

    def __enter__(self) -> Update:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        header = self._header
        return f"<{header.kind} of round {header.round} from {', '.join(header.sites)}, {self.nbytes} bytes>"


class UpdateWriter:
    """Writes an update or model frame by frame to a stream, in the order of the header's frames, then its tail."""

    def __init__(self, stream: Writable, header: Header) -> None:
        self._stream = stream
        self._head = header.head
        self._digests: list[bytes] = []
        stream.write(self._head)

    def write(self, frame: Frame, payload: memoryview) -> None:
        """Write a frame and its digest."""
        self._digests.append(frame_digest(self._head, frame.index, payload))
        self._stream.write(payload)
        self._stream.write(self._digests[-1])

    def finish(
        self, authenticate: Callable[[bytes], tuple[int, ...]] | None, sign: Callable[[bytes], bytes] | None
    ) -> None:
        """Write the tail.

        Parameters
        ----------
        authenticate : callable or None
            Returns the tags, given the digest of the body; None: there are none.
        sign : callable or None
            Returns the signature of a message; None: zeros stand in its place.
        """
        body = body_digest(self._head, self._digests)
        tags = authenticate(body) if authenticate else ()
        signature = sign(signed_message(self._head, body)) if sign else UNSIGNED
        self._stream.write(Tail(tags, (Proof(body, signature),)).pack(self._head, len(self._digests)))


def check_update(value: object) -> Update:
    """Return an update; `FormatError` of anything else, which says what to pass.

    Nothing that is not in the form of a container has been encrypted, whatever it is.
    """
    if isinstance(value, Update):
        return value
    if isinstance(value, Mapping):
        remedy = "tensors must be encrypted first, by Client.encrypt(state, …)"
    elif isinstance(value, (bytes, bytearray, memoryview)):
        remedy = "pass Update.from_bytes(…) of these bytes"
    elif is_path(value) or callable(getattr(value, "read", None)):
        remedy = "pass Update.open(…) of it"
    elif isinstance(value, Header):
        remedy = "a header alone has no frames; pass the whole update"
    else:
        remedy = "pass what Client.encrypt, Update.from_bytes or Update.open returns"
    raise FormatError(f"an Update is needed, got {type(value).__name__}: {remedy}")


def _read_header(stream: Readable, nbytes: int) -> Header:
    """Read the header from the start of a stream and hold it against the number of bytes that are there."""
    preamble = read_stream(stream, PREAMBLE_NBYTES, FormatError)
    length = head_nbytes(preamble)
    if nbytes < length:
        raise FormatError(f"truncated: {nbytes} bytes, the head alone takes {length}")
    header = Header.from_head(preamble + read_stream(stream, length - PREAMBLE_NBYTES, FormatError))
    if nbytes != header.nbytes:
        fault = "truncated" if nbytes < header.nbytes else "trailing bytes"
        raise FormatError(f"{fault}: {nbytes} bytes, the header describes {header.nbytes}")
    return header
