"""Objects of S3 in parts: a multipart upload that goes on where an earlier one stopped, and overwrites only if told to.

Whoever has credentials puts the parts; or somebody else does, who has none, by presigned URLs: each for one part of one
upload, of a fixed size, for some minutes. The object appears whole, when the upload is completed, or not at all.

Credentials and endpoints come from fsspec's configuration and the variables of AWS's tools.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import BackendUnavailableError, SecAggError, StorageError, TransportError, one_line, show
from .pinned import Pinned, shown

#: How long a presigned URL can be used: that long one part may take to begin, since S3 looks when it begins.
PRESIGNED_SECONDS = 900

_LEAST_PART_NBYTES = 8 << 20
_MOST_PARTS = 1000

#: Error codes: the upload is not there, or no more; something lies under the name already; try again.
_GONE = frozenset(("NoSuchUpload", "NoSuchKey", "404"))
_TAKEN = frozenset(("PreconditionFailed", "412"))
_BUSY = frozenset(("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "409", "429"))

#: To put together the parts of a large object takes S3 a while.
_ANSWER_SECONDS = 60

#: Of botocore's client: the size of a part is signed only by the fourth version, and no checksum that is computed here
#: may be demanded of who has the URL alone.
_CONFIG = {"signature_version": "s3v4", "request_checksum_calculation": "when_required"}


class UploadGoneError(StorageError):
    """The multipart upload is not there: it was completed, or aborted."""


class TakenError(StorageError):
    """An object has the name already, and is not overwritten."""


@dataclass(frozen=True)
class Piece:
    """One part of an object, numbers from 1."""

    number: int
    offset: int
    nbytes: int


def pieces_of(nbytes: int) -> list[Piece]:
    """Return the parts of an object of so many bytes: 8 MiB or more each, and at most 1000."""
    size = max(_LEAST_PART_NBYTES, -(-nbytes // _MOST_PARTS))
    return [Piece(index + 1, offset, min(size, nbytes - offset)) for index, offset in enumerate(range(0, nbytes, size))]


@dataclass(frozen=True)
class MultipartUpload:
    """A multipart upload of S3 that has been started; `start` makes one.

    Each call raises `StorageError` if the store refuses it, `TransportError` if it cannot be reached or refuses the
    credentials, and `UploadGoneError` if the upload is not there any more.

    Parameters
    ----------
    url : str
        Of the object, ``s3://bucket/key``.
    id : str
        The store's name for the upload.
    """

    url: str
    id: str

    @classmethod
    def start(cls, url: str) -> MultipartUpload:
        """Begin an upload; nothing of it can be seen until it is completed."""
        return cls(url, _call(url, "create_multipart_upload")["UploadId"])

    @classmethod
    def find(cls, url: str) -> list[MultipartUpload]:
        """Return the uploads to this very name that are under way, the latest last."""
        bucket, key = bucket_and_key(url)
        found, markers = [], dict[str, str]()
        while True:
            with _translated(url):
                reply = _file_system().call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key, **markers)
            found += [item for item in reply.get("Uploads", ()) if item["Key"] == key]
            if not reply.get("IsTruncated"):
                return [cls(url, item["UploadId"]) for item in sorted(found, key=lambda item: item["Initiated"])]
            markers = {"KeyMarker": reply["NextKeyMarker"], "UploadIdMarker": reply["NextUploadIdMarker"]}

    def parts(self) -> dict[int, tuple[int, str]]:
        """Return the parts that are there: their sizes and ETags by their numbers."""
        parts, marker = dict[int, tuple[int, str]](), 0
        while True:
            reply = self._call("list_parts", PartNumberMarker=marker)
            parts |= {item["PartNumber"]: (item["Size"], item["ETag"]) for item in reply.get("Parts", ())}
            if not reply.get("IsTruncated"):
                return parts
            marker = reply["NextPartNumberMarker"]

    def presign(self, piece: Piece) -> str:
        """Return a URL that takes one PUT of this part, of just its size, for `PRESIGNED_SECONDS`."""
        with _translated(self.url):
            url = _file_system().url(
                "/".join(bucket_and_key(self.url)),
                expires=PRESIGNED_SECONDS,
                client_method="upload_part",
                UploadId=self.id,
                PartNumber=piece.number,
                ContentLength=piece.nbytes,
            )
        return str(url)

    def put(self, piece: Piece, data: bytes) -> str:
        """Put a part; return its ETag."""
        return str(self._call("upload_part", PartNumber=piece.number, Body=data)["ETag"])

    def copy(self, number: int, source: Pinned) -> str:
        """Make a part of an object of the store, which copies it itself; return its ETag."""
        bucket, key = bucket_and_key(source.url)
        version = {"VersionId": source.version} if source.version else {}
        done = self._call(
            "upload_part_copy",
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": key, **version},
            CopySourceIfMatch=source.etag,
        )
        return str(done["CopyPartResult"]["ETag"])

    def complete(self, etags: list[str], *, replace: bool = False) -> None:
        """Let the object appear, made of the parts with these ETags, from the first one on.

        Raises
        ------
        TakenError
            If there is an object of that name, which stays as it is, unless it is to be replaced.
        """
        parts = [{"PartNumber": index + 1, "ETag": etag} for index, etag in enumerate(etags)]
        condition = {} if replace else {"IfNoneMatch": "*"}
        self._call("complete_multipart_upload", MultipartUpload={"Parts": parts}, **condition)

    def abort(self) -> None:
        """Give the upload up, with the parts that are there; nothing if it is not there any more."""
        with suppress(UploadGoneError):
            self._call("abort_multipart_upload")

    def _call(self, method: str, **arguments: Any) -> Any:
        return _call(self.url, method, UploadId=self.id, **arguments)


def delete(url: str, version: str | None = None) -> None:
    """Delete an object, or one version of it; nothing if it is not there."""
    with suppress(UploadGoneError):
        _call(url, "delete_object", **({} if version is None else {"VersionId": version}))


def upload(
    chunks: Iterable[bytes | memoryview],
    nbytes: int,
    url: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write an object whose size is known, part by part, and go on where an earlier process has stopped.

    Of an upload to this name that is under way the parts are kept whose size and MD5 are those of these bytes, if this
    machine's credentials allow to look. Memory holds one part.

    Parameters
    ----------
    chunks : iterable of bytes or memoryview
        What is written.
    nbytes : int
        How much all of them are.
    url : str
        ``s3://bucket/key``. What is there is replaced when all is written.
    progress : callable, optional
        Called with the bytes that are there and in all.

    Raises
    ------
    StorageError
        If the store refuses a call, or cannot be reached; another call goes on where this one broke off.
    """
    with writing(url):
        under_way, there = _under_way(url)
        etags = []
        for piece, data in _cut(chunks, nbytes):
            etag = there.get(piece.number, (0, ""))[1]
            if etag.strip('"') != hashlib.md5(data, usedforsecurity=False).hexdigest():
                etag = under_way.put(piece, data)
            etags.append(etag)
            progress(piece.offset + piece.nbytes, nbytes)
        under_way.complete(etags, replace=True)


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Turn whatever keeps an object from being written into `StorageError`."""
    try:
        yield
    except TransportError as error:
        raise StorageError(f"cannot write {url}: {error}") from None
    except (UploadGoneError, TakenError):
        raise StorageError(f"cannot write {url}: what it is made of has changed, or was removed: try again") from None


def _under_way(url: str) -> tuple[MultipartUpload, dict[int, tuple[int, str]]]:
    """Return the latest upload to this name and its parts, or a new one."""
    with suppress(StorageError, TransportError):  # who may write need not be allowed to look
        found = MultipartUpload.find(url)
        if found:
            return found[-1], found[-1].parts()
    return MultipartUpload.start(url), {}


def _cut(chunks: Iterable[bytes | memoryview], nbytes: int) -> Iterator[tuple[Piece, bytes]]:
    """Yield the parts of an object of so many bytes, and what is in them."""
    pieces, buffer = iter(pieces_of(nbytes)), bytearray()
    piece = next(pieces)
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= piece.nbytes:
            yield piece, bytes(buffer[: piece.nbytes])
            del buffer[: piece.nbytes]
            following = next(pieces, None)
            if following is None:
                return
            piece = following


def bucket_and_key(url: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``, or ``s3a://``; `StorageError` if it is none."""
    scheme, separator, place = url.partition("://")
    bucket, _, key = place.partition("/")
    if scheme not in ("s3", "s3a") or not separator or not bucket or not key:
        raise StorageError(f"{show(shown(url))} names no object of S3; write s3://bucket/name")
    return bucket, key


def _call(url: str, method: str, **arguments: Any) -> Any:
    bucket, key = bucket_and_key(url)
    with _translated(url):
        return _file_system().call_s3(method, Bucket=bucket, Key=key, **arguments)


def _file_system() -> Any:
    """Return s3fs's connection, which fsspec keeps: the same one for the same configuration."""
    try:
        import fsspec

        kind = fsspec.get_filesystem_class("s3")
    except ImportError as error:
        raise BackendUnavailableError(f"a bucket needs more: pip install 'secagg[s3fs]' ({error})") from error
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return kind(config_kwargs={"read_timeout": _ANSWER_SECONDS, **own, **_CONFIG})


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn errors of s3fs and botocore into ours: their texts may tell addresses and names of keys, ours do not."""
    try:
        yield
    except SecAggError:
        raise
    except Exception as error:  # noqa: BLE001  each layer has its own
        raise _error_of(error, url) from None


def _error_of(error: Exception, url: str) -> Exception:
    cause = error if hasattr(error, "response") else error.__cause__
    response = getattr(cause, "response", None)
    if not isinstance(response, dict):  # it came from the way, or there are no credentials
        return TransportError(
            f"cannot reach the store of {url}: {type(error).__name__}; look at AWS_ENDPOINT_URL and "
            "the credentials of this machine"
        )
    code = one_line(str(response.get("Error", {}).get("Code", "?")))[:80]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _GONE:
        return UploadGoneError(f"what was asked of the store of {url} is not there")
    if code in _TAKEN:
        return TakenError(f"there is something at {url} already")
    if code in _BUSY or status in (401, 403) or status >= 500:
        return TransportError(
            f"the store of {url} refuses the call: {code}; look at the credentials of this machine, and what they allow"
        )
    return StorageError(f"the store of {url} refuses the call: {code}")
