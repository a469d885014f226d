"""Uploads to S3 in parts: they go on where they stopped, overwrite nothing, and a URL is for one part of one size."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import fsspec
import pytest
from s3_server import READER, WRITER, S3Server

from secagg.errors import SecAggError, StorageError, TransportError
from secagg.storage.multipart import (
    MultipartUpload,
    Piece,
    TakenError,
    UploadGoneError,
    delete,
    pieces_of,
    upload,
)
from secagg.storage.objects import pin, read

MIB = 1 << 20


@pytest.fixture(autouse=True)
def secure(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.https)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three parts."""
    path = tmp_path_factory.mktemp("file") / "update"
    path.write_bytes(random.Random(1).randbytes(17 * MIB))
    return path


def put(s3: S3Server, url: str, data: bytes, nbytes: int | None = None) -> int:
    """Put bytes at a URL, announced as so many; return the status."""
    target = url.removeprefix(s3.https)
    assert target != url
    context = ssl.create_default_context(cafile=str(s3.tls.ca))
    connection = HTTPSConnection("127.0.0.1", s3.ports[1], context=context, timeout=20)
    connection.request("PUT", target, data, {"Content-Length": str(len(data) if nbytes is None else nbytes)})
    status = connection.getresponse().status
    connection.close()
    return status


def numbers(s3: S3Server) -> list[str]:
    """Those of the parts that were put."""
    found = [item["query"] for item in s3.requests() if item["method"] == "PUT" and item["status"] == "200"]
    return [query.partition("partNumber=")[2].partition("&")[0] for query in found if "partNumber" in query]


@pytest.mark.parametrize("nbytes", [1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 5 * 10**9, 8001 * MIB, 5 << 40])
def test_parts_tile_the_object(nbytes: int) -> None:
    pieces = pieces_of(nbytes)
    assert len(pieces) <= 1000
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    assert [piece.offset for piece in pieces] == [sum(p.nbytes for p in pieces[:i]) for i in range(len(pieces))]
    assert sum(piece.nbytes for piece in pieces) == nbytes
    assert all(8 * MIB <= piece.nbytes <= 6 << 30 for piece in pieces[:-1])
    assert len({piece.nbytes for piece in pieces[:-1]}) <= 1


def chunks(file: Path) -> list[bytes]:
    """As an update has them: of other sizes than parts."""
    data = file.read_bytes()
    return [data[start : start + 999_983] for start in range(0, len(data), 999_983)]


def test_an_upload_goes_on_where_it_stopped(s3: S3Server, bucket: str, file: Path) -> None:
    url, done = f"s3://{bucket}/a/update", list[int]()

    def stop(nbytes: int, total: int) -> None:
        done.append(nbytes)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(chunks(file), 17 * MIB, url, stop)
    assert s3.uploads(bucket) == ["a/update"]
    assert "Contents" not in s3.client().list_objects_v2(Bucket=bucket)
    [left] = MultipartUpload.find(url)
    left.put(Piece(1, 0, 8 * MIB), bytes(8 * MIB))  # of another file, as it seems
    s3.clear()
    upload(chunks(file), 17 * MIB, url, lambda nbytes, total: done.append(nbytes))
    pinned = pin(url)
    assert sorted(numbers(s3)) == ["1", "3"]
    assert done == [8 * MIB, 16 * MIB, 8 * MIB, 16 * MIB, 17 * MIB]
    assert read(pinned, 0, 17 * MIB) == file.read_bytes()
    assert s3.uploads(bucket) == []


def test_nothing_is_overwritten_unless_it_is_wanted(s3: S3Server, bucket: str, file: Path) -> None:
    url = f"s3://{bucket}/update"
    s3.client().put_object(Bucket=bucket, Key="update", Body=b"mine")
    theirs = MultipartUpload.start(url)
    etag = theirs.put(Piece(1, 0, 4), b"thei")
    with pytest.raises(TakenError):
        theirs.complete([etag])
    assert read(pin(url), 0, 4) == b"mine"
    theirs.abort()
    upload(chunks(file), 17 * MIB, url)
    assert read(pin(url), 0, 17 * MIB) == file.read_bytes()
    assert s3.uploads(bucket) == []


def test_who_may_not_look_for_uploads_under_way_writes(s3: S3Server, bucket: str, file: Path) -> None:
    left = MultipartUpload.start(f"s3://{bucket}/update")
    s3.fault("deny", key=bucket, times=99)
    upload(chunks(file), 17 * MIB, f"s3://{bucket}/update")
    assert read(pin(f"s3://{bucket}/update"), 0, 17 * MIB) == file.read_bytes()
    left.abort()


def test_an_upload_that_somebody_else_ends(bucket: str, file: Path) -> None:
    url = f"s3://{bucket}/update"

    def end(done: int, total: int) -> None:
        for under_way in MultipartUpload.find(url):
            under_way.abort()

    with pytest.raises(StorageError, match="was removed: try again"):
        upload(chunks(file), 17 * MIB, url, end)


def test_a_url_takes_its_part_and_nothing_else(s3: S3Server, bucket: str) -> None:
    open_one = MultipartUpload.start(f"s3://{bucket}/update")
    url = open_one.presign(Piece(1, 0, 1000))
    assert "X-Amz-Expires=900&X-Amz-SignedHeaders=content-length%3Bhost&" in url
    for other, data in (
        (url, bytes(999)),
        (url, bytes(1001)),
        (url.replace("partNumber=1", "partNumber=2"), bytes(1000)),
        (url.replace("/update?", "/other?"), bytes(1000)),
        (url.replace("Expires=900", "Expires=9000"), bytes(1000)),
    ):
        assert put(s3, other, data) == 403
    assert open_one.parts() == {}
    assert put(s3, url, bytes(1000)) == 200
    assert put(s3, url, b"x" * 1000) == 200  # the upload is open, and who has the URL may
    parts = open_one.parts()
    assert parts[1][0] == 1000
    open_one.complete([parts[1][1]])
    assert read(pin(f"s3://{bucket}/update"), 0, 1000) == b"x" * 1000


def test_an_upload_that_is_gone(s3: S3Server, bucket: str) -> None:
    gone = MultipartUpload.start(f"s3://{bucket}/update")
    assert MultipartUpload.find(f"s3://{bucket}/update") == [gone]
    assert MultipartUpload.find(f"s3://{bucket}/upd") == []
    gone.abort()
    gone.abort()
    with pytest.raises(UploadGoneError):
        gone.parts()
    assert MultipartUpload.find(f"s3://{bucket}/update") == []
    delete(f"s3://{bucket}/update")


def told(kind: type[SecAggError]) -> str:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(kind) as caught:
        MultipartUpload.start("s3://bucket-0/update")
    assert not any(secret in str(caught.value) for secret in (*WRITER, *READER, "127.0.0.1"))
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_a_store_that_refuses(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="names no object"):
        MultipartUpload.start("s3://bucket")
    assert "NoSuchBucket" in told(StorageError)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "SignatureDoesNotMatch" in told(TransportError)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "NoCredentialsError" in told(TransportError)
