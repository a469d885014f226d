"""What the tests' S3 server refuses, keeps and breaks: tests that rely on it would pass without, were it lax."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import urllib3
from botocore.exceptions import ClientError, ConnectionClosedError, IncompleteReadError, ResponseStreamingError
from s3_server import READER, WRITER, S3Server

PART = 5 << 20


def code_of(call: Callable[..., Any], **arguments: Any) -> str:
    """The error that S3 answers a call with."""
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    return str(raised.value.response["Error"]["Code"])


def send(s3: S3Server, method: str, url: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    """Send a request without credentials; return the answer's status and, of an error, its code."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib3.PoolManager(ca_certs=str(s3.tls.ca), retries=False) as pool:
        answer = pool.request(method, url, body=body or None, headers=names)
    return answer.status, answer.data.decode().partition("<Code>")[2].partition("<")[0]


@pytest.fixture(params=["http", "https"])
def secure(request: pytest.FixtureRequest) -> bool:
    return request.param == "https"


def test_objects(s3: S3Server, bucket: str, secure: bool) -> None:
    client = s3.client(secure=secure)
    content = os.urandom(300_000)
    put = client.put_object(Bucket=bucket, Key="a b/ü+x", Body=content)
    for start, end in ((0, 0), (100, 199_999), (299_999, 299_999), (299_999, 400_000)):
        got = client.get_object(Bucket=bucket, Key="a b/ü+x", Range=f"bytes={start}-{end}", IfMatch=put["ETag"])
        assert got["Body"].read() == content[start : end + 1]
        assert got["ContentRange"] == f"bytes {start}-{min(end, 299_999)}/300000"
    assert client.get_object(Bucket=bucket, Key="a b/ü+x")["Body"].read() == content
    client.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert client.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["a b/ü+x", "empty"]
    client.delete_object(Bucket=bucket, Key="empty")
    assert code_of(client.get_object, Bucket=bucket, Key="empty") == "NoSuchKey"
    assert code_of(client.head_object, Bucket=bucket, Key="empty") == "404"
    assert code_of(client.get_object, Bucket="no-bucket", Key="empty") == "NoSuchBucket"
    assert code_of(client.get_object, Bucket=bucket, Key="a b/ü+x", Range="bytes=300000-") == "InvalidRange"
    assert code_of(client.get_object, Bucket=bucket, Key="a b/ü+x", IfMatch='"x"') == "PreconditionFailed"


def test_fsspec_finds_it(s3: S3Server, bucket: str) -> None:
    with fsspec.open(f"s3://{bucket}/a", "wb") as file:
        file.write(b"content")
    filesystem = fsspec.filesystem("s3")
    assert filesystem.cat_file(f"{bucket}/a", start=2, end=5) == b"nte"
    assert s3.client().get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"


@pytest.mark.parametrize(
    ("credentials", "code"),
    [
        ((WRITER[0], "another"), "SignatureDoesNotMatch"),
        (("AKIANOBODY0000000000", WRITER[1]), "InvalidAccessKeyId"),
    ],
    ids=["secret", "key"],
)
def test_bad_credentials(s3: S3Server, bucket: str, credentials: tuple[str, str], code: str) -> None:
    s3.client().put_object(Bucket=bucket, Key="a", Body=b"content")
    client = s3.client(credentials)
    assert code_of(client.get_object, Bucket=bucket, Key="a") == code
    assert code_of(client.put_object, Bucket=bucket, Key="a", Body=b"x") == code
    assert code_of(client.list_objects_v2, Bucket=bucket) == code
    assert code_of(client.create_multipart_upload, Bucket=bucket, Key="a") == code
    assert code_of(client.delete_object, Bucket=bucket, Key="a") == code
    assert send(s3, "GET", f"{s3.http}/{bucket}/a") == (403, "AccessDenied")


def test_a_reader_writes_nothing(s3: S3Server, bucket: str) -> None:
    s3.client().put_object(Bucket=bucket, Key="a", Body=b"content")
    client = s3.client(READER)
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"
    for call in (client.put_object, client.create_multipart_upload, client.delete_object):
        assert code_of(call, Bucket=bucket, Key="a") == "AccessDenied"


def test_a_presigned_url_is_for_one_request(s3: S3Server, bucket: str, secure: bool) -> None:
    client = s3.client(secure=secure)
    parameters = {"Bucket": bucket, "Key": "a", "ContentLength": 7, "IfNoneMatch": "*"}
    url = client.generate_presigned_url("put_object", Params=parameters)
    wrong = (403, "SignatureDoesNotMatch")
    assert send(s3, "PUT", url, b"content") == wrong  # may overwrite
    assert send(s3, "PUT", url, b"longer content", if_none_match="*") == wrong
    assert send(s3, "PUT", url.replace("/a?", "/b?"), b"content", if_none_match="*") == wrong
    assert send(s3, "PUT", url.replace("Expires=3600", "Expires=3601"), b"content", if_none_match="*") == wrong
    assert send(s3, "PUT", url, b"content", if_none_match="*", x_amz_acl="public-read") == (403, "AccessDenied")
    assert send(s3, "DELETE", url) == wrong
    assert send(s3, "GET", url) == wrong
    assert send(s3, "GET", f"{s3.http}/{bucket}/a") == (403, "AccessDenied")
    assert code_of(s3.client().head_object, Bucket=bucket, Key="a") == "404"
    assert send(s3, "PUT", url, b"content", if_none_match="*") == (200, "")
    assert send(s3, "PUT", url, b"another", if_none_match="*") == (412, "PreconditionFailed")
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"


def test_signatures_are_of_a_time(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3.client()
    key = {"Bucket": bucket, "Key": "a"}
    client.put_object(**key, Body=b"content")
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    for hours in (-1, 1):
        at = now + datetime.timedelta(hours=hours)
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda at=at: at)
        lives = [client.generate_presigned_url("get_object", Params=key, ExpiresIn=life) for life in (3595, 4000)]
        expected = [(403, "AccessDenied"), (200, "") if hours < 0 else (403, "AccessDenied")]
        assert [send(s3, "GET", url) for url in lives] == expected
        assert code_of(client.get_object, **key) == "RequestTimeTooSkewed"


def test_multipart_uploads(s3: S3Server, bucket: str, secure: bool) -> None:
    client = s3.client(secure=secure)
    content = os.urandom(PART + 1)
    client.put_object(Bucket=bucket, Key="source", Body=content)
    for key in ("a", "b"):
        upload = {"Bucket": bucket, "Key": key}
        upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
        parts = [client.upload_part(**upload, PartNumber=1, Body=content[:PART])["ETag"]]
        source = {"Bucket": bucket, "Key": "source"}
        copied = {"CopySource": source, "CopySourceRange": f"bytes={PART}-{PART}", "PartNumber": 2}
        assert code_of(client.upload_part_copy, **upload, **copied, CopySourceIfMatch='"x"') == "PreconditionFailed"
        parts.append(client.upload_part_copy(**upload, **copied)["CopyPartResult"]["ETag"])
        assert [part["ETag"] for part in client.list_parts(**upload)["Parts"]] == parts
        assert s3.uploads(bucket) == [key]
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(parts, 1)]
        if key == "a":
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": listed}, IfNoneMatch="*")
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": listed}, IfNoneMatch="*")  # again
        else:
            client.put_object(Bucket=bucket, Key=key, Body=b"first")
            complete = client.complete_multipart_upload
            arguments = upload | {"MultipartUpload": {"Parts": listed}, "IfNoneMatch": "*"}
            assert code_of(complete, **arguments) == "PreconditionFailed"
            client.abort_multipart_upload(**upload)
            assert code_of(complete, **arguments) == "NoSuchUpload"
            assert code_of(client.upload_part, **upload, PartNumber=1, Body=b"") == "NoSuchUpload"
        assert s3.uploads(bucket) == []
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == content
    assert client.get_object(Bucket=bucket, Key="b")["Body"].read() == b"first"


def test_a_body_that_is_cut_off_is_not_stored(s3: S3Server, bucket: str) -> None:
    client = s3.client()
    parameters = {"Bucket": bucket, "Key": "a", "ContentLength": 1000}
    url = urllib3.util.parse_url(client.generate_presigned_url("put_object", Params=parameters))
    connection = urllib3.connection.HTTPConnection(url.host or "", url.port)
    connection.putrequest("PUT", url.request_uri)
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"content")
    connection.close()
    deadline = time.monotonic() + 60
    while not (seen := [line["status"] for line in s3.requests() if line["method"] == "PUT"]) or not seen[0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert seen == ["400"]
    assert code_of(client.head_object, Bucket=bucket, Key="a") == "404"


def test_versions(s3: S3Server) -> None:
    client, bucket = s3.client(), s3.bucket(versioned=True)
    first = client.put_object(Bucket=bucket, Key="a", Body=b"first")["VersionId"]
    client.put_object(Bucket=bucket, Key="a", Body=b"second")
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"second"
    assert client.get_object(Bucket=bucket, Key="a", VersionId=first, Range="bytes=1-2")["Body"].read() == b"ir"
    client.delete_object(Bucket=bucket, Key="a", VersionId=first)
    assert code_of(client.get_object, Bucket=bucket, Key="a", VersionId=first) == "NoSuchVersion"


def test_old_lists(s3: S3Server, bucket: str) -> None:
    client = s3.client()
    client.put_object(Bucket=bucket, Key="a/removed", Body=b"content")
    client.put_object(Bucket=bucket, Key="b/kept", Body=b"content")
    s3.old_lists(bucket, 2)
    client.delete_object(Bucket=bucket, Key="a/removed")
    client.put_object(Bucket=bucket, Key="a/written", Body=b"content")
    lists = [client.list_objects_v2(Bucket=bucket, Prefix="a/")["Contents"] for _ in range(3)]
    assert [[entry["Key"] for entry in entries] for entries in lists] == [["a/removed"], ["a/removed"], ["a/written"]]
    assert client.get_object(Bucket=bucket, Key="a/written")["Body"].read() == b"content"
    assert code_of(client.get_object, Bucket=bucket, Key="a/removed") == "NoSuchKey"


def test_faults(s3: S3Server, bucket: str) -> None:
    client = s3.client()
    key = {"Bucket": bucket, "Key": "a"}
    etag = client.put_object(**key, Body=bytes(1000))["ETag"]

    s3.fault("busy", times=2)
    assert [code_of(client.get_object, **key) for _ in range(2)] == ["SlowDown", "SlowDown"]
    s3.fault("deny", key=f"{bucket}/a")
    assert code_of(client.get_object, **key) == "AccessDenied"
    s3.fault("slow", seconds=0.3)
    start = time.monotonic()
    client.get_object(**key)
    assert time.monotonic() - start >= 0.3
    s3.fault("cut", nbytes=100)
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        client.get_object(**key)["Body"].read()
    s3.fault("flip", nbytes=100)
    flipped = client.get_object(**key)
    assert flipped["ETag"] == etag
    assert flipped["Body"].read() == bytes(100) + b"\1" + bytes(899)
    s3.fault("overwrite", after=1)
    assert client.get_object(**key, IfMatch=etag)["Body"].read() == bytes(1000)
    assert code_of(client.get_object, **key, IfMatch=etag) == "PreconditionFailed"
    assert client.get_object(**key)["Body"].read() == b"\xff" * 1000

    s3.fault("lose", method="PUT")
    with pytest.raises(ConnectionClosedError):
        client.put_object(**key, Body=b"content")
    assert client.get_object(**key)["Body"].read() == b"content"
    s3.fault("redirect", method="PUT", location="https://elsewhere.example/a")
    url = client.generate_presigned_url("put_object", Params=key)
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("PUT", url, body=b"other", redirect=False)
    assert (answer.status, answer.headers["Location"]) == (307, "https://elsewhere.example/a")
    assert client.get_object(**key)["Body"].read() == b"content"
    s3.fault("busy")
    s3.clear()
    client.get_object(**key)
    assert [line["key"] for line in s3.requests()] == [f"{bucket}/a"]


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, s3_server\n"
        "with s3_server.serving_s3(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
