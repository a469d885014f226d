"""Bodies of objects by range, and multipart uploads: the layer in front of moto that mends what moto does with them.

For each range moto reads the whole object into memory, and when an upload is complete holds it there several times. It
fails where an upload is no more, and copies from an object whatever x-amz-copy-source-if-match says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeBucket, FakeKey, FakeMultipart, S3Backend, s3_backends
from s3_signatures import App, Environ, Refused, StartResponse

_CHUNK_NBYTES = 1 << 20


def backend() -> S3Backend:
    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


def bucket_of(name: str) -> FakeBucket:
    return backend().buckets[name]


class Bodies:
    """What a GET of an object answers is what moto says to a HEAD, and the bytes from the file where moto keeps them.

    An object that is replaced meanwhile stays open until it is sent, as S3 keeps it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        names = {name for name in query if name[:6] != "X-Amz-"}
        bucket, _, key = unquote(environ["RAW_URI"].partition("?")[0]).lstrip("/").partition("/")
        if bucket not in backend().buckets:
            return self._app(environ, start_response)
        method = environ["REQUEST_METHOD"]
        if method == "GET" and key and names <= {"versionId", "x-id"}:
            return self._get(environ, start_response, bucket, key)
        if "uploadId" in names and method in ("PUT", "POST", "DELETE"):
            try:
                _check_upload(environ, bucket, key, query["uploadId"][0])
            except Refused as refused:
                return refused.answer(environ, start_response)
        return self._app(environ, start_response)

    def _get(self, environ: Environ, start_response: StartResponse, bucket: str, key: str) -> Iterable[bytes]:
        if environ.get("s3.whole"):
            environ = {name: value for name, value in environ.items() if name != "HTTP_RANGE"}
        version = parse_qs(environ["QUERY_STRING"]).get("versionId", [None])[0]
        while True:
            found = backend().get_object(bucket, key, version_id=version)
            status, headers = self._head(environ)
            if status[:3] not in ("200", "206") or not isinstance(found, FakeKey):
                return self._app(environ, start_response)
            if headers["etag"] != found.etag or (file := _open(found)) is None:
                continue  # it was replaced meanwhile
            start = int(headers.get("content-range", "bytes 0-").split()[1].split("-")[0])
            start_response(status, list(headers.items()))
            return _read(file, start, int(headers["content-length"]))

    def _head(self, environ: Environ) -> tuple[str, dict[str, str]]:
        answers: list[tuple[str, dict[str, str]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            answers.append((status, {name.lower(): value for name, value in headers}))

        for _ in self._app(environ | {"REQUEST_METHOD": "HEAD"}, start_response):
            pass
        return answers[0]


def _upload_of(bucket: str, key: str) -> FakeMultipart | None:
    """The upload that made an object."""
    found = backend().get_object(bucket, key)
    return found.multipart if isinstance(found, FakeKey) else None


def _check_upload(environ: Environ, bucket: str, key: str, upload: str) -> None:
    made = _upload_of(bucket, key)
    if upload not in bucket_of(bucket).multiparts and (made is None or made.id != upload):
        raise Refused(404, "NoSuchUpload", "The specified upload does not exist.")
    etag = environ.get("HTTP_X_AMZ_COPY_SOURCE_IF_MATCH")
    if etag is None:
        return
    path, _, query = environ["HTTP_X_AMZ_COPY_SOURCE"].partition("?")
    source, _, name = unquote(path).lstrip("/").partition("/")
    found = backend().get_object(source, name, version_id=parse_qs(query).get("versionId", [None])[0])
    if isinstance(found, FakeKey) and etag.strip('"') != found.etag.strip('"'):
        raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")


def _open(key: FakeKey) -> int | None:
    """A descriptor of the file that an object lies in, or None if the object is gone."""
    with key.lock:
        try:
            key._value_buffer.flush()
            return os.dup(key._value_buffer.fileno())  # what lies in memory goes to a file
        except ValueError:  # it was closed
            return None


def keep_in_files() -> None:
    """Let moto store what is uploaded in files, and join their parts there, in the memory of a chunk."""
    get, complete = FakeKey.value.fget, FakeMultipart.complete

    def value(key: FakeKey) -> bytes:
        return b"" if hasattr(key, "joined") else get(key)

    def store(key: FakeKey, content: bytes | list[int]) -> None:
        file = key._value_buffer
        file.seek(0)
        file.truncate()
        file.rollover()
        if isinstance(content, list):
            for part in content:
                with open(part, "rb") as source:
                    source.seek(0)
                    shutil.copyfileobj(source, file, _CHUNK_NBYTES)
        else:
            file.write(content)
        key.contentsize = file.tell()

    def join(upload: FakeMultipart, listed: Iterable[tuple[int, str]]) -> Any:
        if upload.metadata.get("x-amz-checksum-algorithm"):
            return complete(upload, listed)
        parts: list[FakeKey] = []

        def note() -> Iterator[tuple[int, str]]:
            for number, etag in listed:
                if number in upload.parts:
                    parts.append(upload.parts[number])
                    parts[-1].joined = True
                yield number, etag

        _, etag, checksums = complete(upload, note())
        return [_open(part) for part in parts], etag, checksums

    FakeKey.value = property(value, store)
    FakeMultipart.complete = join


def _read(file: int, start: int, nbytes: int) -> Iterator[bytes]:
    try:
        while nbytes > 0:
            data = os.pread(file, min(nbytes, _CHUNK_NBYTES), start)
            assert data, "an object is shorter than moto says"
            yield data
            start, nbytes = start + len(data), nbytes - len(data)
    finally:
        os.close(file)
