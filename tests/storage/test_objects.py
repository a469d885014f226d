"""Objects: one contract over files, fsspec's memory and an S3 server, and what goes wrong with S3 alone."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import pickle
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_server import READER, WRITER, S3Server, forget_stores

from secagg.errors import BackendUnavailableError, FormatError, StorageError, TransportError
from secagg.storage import objects, remote
from secagg.storage.objects import Pinned

#: What is written goes to S3 in parts of a window, which is as small here as S3 takes them; copies too, at least.
PART_NBYTES = 5 << 20
SIZES = (0, 1, PART_NBYTES - 1, PART_NBYTES, PART_NBYTES + 1)


class Place:
    """Where the objects of a test lie, and how another writer sees them."""

    def __init__(self, root: str, filesystem: Any, s3: S3Server | None = None) -> None:
        self.root, self._filesystem, self._s3 = root, filesystem, s3

    def url(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, content: bytes) -> str:
        self._filesystem.pipe_file(self.url(name), content)
        return self.url(name)

    def get(self, name: str) -> bytes:
        return bytes(self._filesystem.cat_file(self.url(name)))

    def remove(self, name: str) -> None:
        self._filesystem.rm_file(self.url(name))

    def names(self) -> list[str]:
        """All that lies there; nothing lies there half written."""
        gc.collect()
        assert self._s3 is None or self._s3.uploads(self.root.removeprefix("s3://")) == []
        return sorted(path.rpartition("/")[2] for path in self._filesystem.ls(self.root, detail=False))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WINDOW_NBYTES", PART_NBYTES)


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "folder":
        yield Place(str(tmp_path), fsspec.filesystem("file"))
    elif request.param == "memory":
        filesystem = fsspec.filesystem("memory")
        root = f"memory://{tmp_path}"
        filesystem.makedirs(root)
        yield Place(root, filesystem)
        filesystem.rm(root, recursive=True)
    else:
        s3 = request.getfixturevalue("s3")
        yield Place(f"s3://{s3.bucket()}", fsspec.filesystem("s3", use_listings_cache=False), s3)


@pytest.fixture
def in_s3(s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Of a client that asks once, and so learns soon what does not go away; fsspec asks again all the same."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_stores()
    return Place(f"s3://{bucket}", fsspec.filesystem("s3", use_listings_cache=False), s3)


def content_of(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def write(url: str, content: bytes, error: type[BaseException] | None = None) -> None:
    """Write an object in pieces; with `error`, fail before its end."""
    with objects.write(url) as file:
        for start in range(0, len(content), 3_000_001):
            file.write(content[start : start + 3_000_001])
        if error is not None:
            raise error


def whole(pinned: Pinned) -> bytes:
    return objects.read(pinned, 0, pinned.nbytes)


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_is_written_is_read(place: Place, nbytes: int) -> None:
    content = content_of(nbytes)
    write(place.url("a"), content)
    assert place.names() == ["a"]
    pinned = objects.pin(place.url("a"))
    assert (pinned.url, pinned.nbytes) == (place.url("a"), nbytes)
    assert whole(pinned) == content
    for offset, length in ((0, 1), (nbytes // 3, nbytes // 2), (nbytes - 1, 1), (nbytes, 0), (0, 0)):
        if offset >= 0 and offset + length <= nbytes:
            assert objects.read(pinned, offset, length) == content[offset : offset + length]
    with pytest.raises(FormatError, match="became shorter"):
        objects.read(pinned, nbytes, 1)
    with pytest.raises(FormatError, match="became shorter"):
        objects.read(pinned, max(0, nbytes - 10), 11)


def test_what_is_written_takes_the_place_of_what_was_there(place: Place) -> None:
    place.put("a", b"first")
    write(place.url("a"), b"second")
    assert place.get("a") == b"second"


@pytest.mark.parametrize(
    ("nbytes", "error"),
    [(0, ValueError), (10, ValueError), (PART_NBYTES, ValueError), (PART_NBYTES + 1, KeyboardInterrupt)],
)
def test_a_write_that_fails_leaves_nothing(place: Place, nbytes: int, error: type[BaseException]) -> None:
    place.put("before", b"first")
    for name in ("new", "before"):
        with pytest.raises(error):
            write(place.url(name), bytes(nbytes), error)
    assert place.names() == ["before"]
    assert place.get("before") == b"first"


def test_an_object_that_is_not_there(place: Place) -> None:
    place.put("other", b"content")
    with pytest.raises(FormatError, match="cannot read"):
        objects.pin(place.url("a"))
    pinned = objects.pin(place.put("a", b"content"))
    place.remove("a")
    with pytest.raises(FormatError, match="cannot read"):
        whole(pinned)


@pytest.mark.parametrize("other", [b"tnetnoc", b"cont", b"longer content", b""])
def test_an_object_that_is_another_one_by_now(place: Place, other: bytes) -> None:
    pinned = objects.pin(place.put("a", b"content"))
    assert whole(pinned) == b"content"
    place.remove("a")
    place.put("a", other)
    with pytest.raises(FormatError, match="changed|shorter"):
        objects.read(pinned, 0, 4)
    assert whole(objects.pin(place.url("a"))) == other


def test_a_pin_goes_to_another_process(place: Place) -> None:
    pinned = objects.pin(place.put("a", b"content"))
    again = pickle.loads(pickle.dumps(pinned))
    assert again == pinned
    assert whole(again) == b"content"
    with pytest.raises(dataclasses.FrozenInstanceError):
        pinned.nbytes = 5  # type: ignore[misc]


def test_lists(place: Place) -> None:
    urls = [place.put(name, b"") for name in ("b.secagg", "a.secagg", "c.other")]
    assert objects.list_objects(place.url("*.secagg")) == [urls[1], urls[0]]
    assert objects.list_objects(place.url("*.none")) == []
    assert objects.list_objects(place.url("missing")) == [place.url("missing")]


def test_what_is_removed_is_gone(place: Place) -> None:
    urls = [place.put(name, b"") for name in ("a", "b", "c")]
    objects.remove([urls[0], place.url("missing"), urls[2]])
    assert place.names() == ["b"]
    objects.remove([])


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (1,), (7, 0, 9), (PART_NBYTES, 3), (PART_NBYTES, PART_NBYTES - 1, 1), (PART_NBYTES,) * 2],
    ids=lambda sizes: "-".join(map(str, sizes)) or "none",
)
def test_parts_become_one_object(place: Place, sizes: tuple[int, ...]) -> None:
    contents = [content_of(nbytes, seed) for seed, nbytes in enumerate(sizes)]
    parts = [objects.pin(place.put(f"part-{index}", content)) for index, content in enumerate(contents)]
    place.put("joined", b"what was there")
    objects.concatenate(parts, place.url("joined"))
    assert place.get("joined") == b"".join(contents)
    assert place.names() == ["joined", *(f"part-{index}" for index in range(len(sizes)))]


@pytest.mark.parametrize("gone", [False, True], ids=["another", "gone"])
@pytest.mark.parametrize("nbytes", [5, PART_NBYTES])
def test_a_part_that_is_another_one_by_now(place: Place, nbytes: int, gone: bool) -> None:
    parts = [objects.pin(place.put(name, content_of(nbytes, 1))) for name in ("a", "b")]
    place.remove("b")
    if not gone:
        place.put("b", content_of(nbytes, 2))
    with pytest.raises((FormatError, StorageError)):
        objects.concatenate(parts, place.url("joined"))
    assert place.names() == (["a"] if gone else ["a", "b"])


def test_urls_of_files(tmp_path: Path) -> None:
    root = f"file://{tmp_path}"
    write(f"{root}/a", b"content")
    write(f"{root}/b", b"")
    assert (tmp_path / "a").read_bytes() == b"content"
    pinned = objects.pin(f"{root}/a")
    assert whole(pinned) == b"content"
    assert objects.list_objects(f"{root}/*") == [f"{root}/a", f"{root}/b"]
    objects.concatenate([pinned, pinned], f"{root}/b")
    objects.remove([f"{root}/a"])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_stream_of_an_object(place: Place) -> None:
    content = content_of(1 << 20)
    stream = objects.ObjectStream(objects.pin(place.put("a", content)))
    assert stream.read(10) == content[:10]
    assert stream.seek(-10, os.SEEK_END) == len(content) - 10
    assert stream.read(100) == content[-10:]
    assert stream.read(1) == b""
    stream.seek(5)
    pieces = iter(lambda: stream.read(99_999), b"")
    assert b"".join(pieces) == content[5:]


# What only S3 does.


def test_a_version_outlives_what_takes_its_place(s3: S3Server) -> None:
    place = Place(f"s3://{s3.bucket(versioned=True)}", fsspec.filesystem("s3"), s3)
    pinned = objects.pin(place.put("a", b"content"))
    place.put("a", b"another")
    assert pinned.version
    assert whole(pinned) == b"content"
    objects.concatenate([pinned, objects.pin(place.url("a"))], place.url("joined"))
    assert place.get("joined") == b"contentanother"


def test_s3_copies_parts_itself(s3: S3Server, in_s3: Place) -> None:
    parts = [objects.pin(in_s3.put(name, content_of(PART_NBYTES))) for name in ("a", "b")]
    s3.clear()
    objects.concatenate(parts, in_s3.url("joined"))
    assert "GET" not in [line["method"] for line in s3.requests()]


@pytest.mark.parametrize(
    "credentials", [(WRITER[0], "another"), ("AKIANOBODY0000000000", "another"), None], ids=["secret", "key", "none"]
)
def test_credentials_that_are_refused(
    in_s3: Place, credentials: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pinned = objects.pin(in_s3.put("a", b"content"))
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), credentials or (None, None), strict=True):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    forget_stores()
    for call in (lambda: objects.pin(pinned.url), lambda: whole(pinned), lambda: objects.list_objects(in_s3.url("*"))):
        with pytest.raises(TransportError, match="credentials") as refused:
            call()
        assert "another" not in str(refused.value)
    for call in (
        lambda: write(pinned.url, b""),
        lambda: objects.remove([pinned.url]),
        lambda: objects.concatenate([dataclasses.replace(pinned, nbytes=PART_NBYTES)] * 2, pinned.url),
    ):
        with pytest.raises(StorageError, match="credentials"):
            call()
    assert in_s3.names() == ["a"]
    assert in_s3.get("a") == b"content"


def test_a_reader_may_not_write(s3: S3Server, in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    url = in_s3.put("a", b"content")
    for name, value in s3.environment(READER).items():
        monkeypatch.setenv(name, value)
    forget_stores()
    assert whole(objects.pin(url)) == b"content"
    for nbytes in (5, PART_NBYTES + 1):
        with pytest.raises(StorageError, match="credentials"):
            write(in_s3.url("b"), bytes(nbytes))
    assert in_s3.names() == ["a"]


def test_a_bucket_that_is_not_there(in_s3: Place) -> None:
    with pytest.raises(FormatError, match="not there"):
        objects.pin("s3://no-such-bucket/a")
    with pytest.raises(StorageError, match="no such bucket"):
        write("s3://no-such-bucket/a", b"content")
    with pytest.raises(FormatError, match="names no object"):
        objects.pin("s3://bucket")


def test_a_store_that_cannot_be_reached(in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = objects.pin(in_s3.put("a", b"content"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_stores()
    for call in (lambda: objects.pin(pinned.url), lambda: whole(pinned), lambda: objects.list_objects(in_s3.url("*"))):
        with pytest.raises(TransportError, match="cannot be reached"):
            call()
    with pytest.raises(StorageError, match="cannot be reached"):
        write(pinned.url, b"")


def test_a_certificate_that_nobody_knows(s3: S3Server, in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    url = in_s3.put("a", b"content")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.https)
    forget_stores()
    assert whole(objects.pin(url)) == b"content"
    monkeypatch.delenv("AWS_CA_BUNDLE")
    forget_stores()
    with pytest.raises(TransportError, match="cannot be reached"):
        objects.pin(url)


def test_faults_that_pass(s3: S3Server, bucket: str) -> None:
    url, content = f"s3://{bucket}/a", content_of(100_000)
    for method in ("POST", "PUT", "HEAD", "GET"):
        s3.fault("busy", method=method)
        s3.fault("slow", method=method, seconds=0.1)
    s3.fault("cut", after=1, times=2, nbytes=50_000)
    write(url, content)
    assert whole(objects.pin(url)) == content
    assert [line["status"] for line in s3.requests()].count("503") == 4


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_an_answer_that_is_lost(s3: S3Server, in_s3: Place, method: str) -> None:
    content = content_of(PART_NBYTES + 1)
    s3.fault("lose", method=method, times=2, after=1)
    write(in_s3.url("a"), content)
    assert in_s3.get("a") == content
    assert in_s3.names() == ["a"]


@pytest.mark.parametrize(("kind", "says"), [("cut", "cannot be reached"), ("busy", "SlowDown")])
def test_faults_that_stay_while_reading(s3: S3Server, in_s3: Place, kind: str, says: str) -> None:
    pinned = objects.pin(in_s3.put("a", content_of(100_000)))
    s3.fault(kind, times=1000, nbytes=50_000)
    with pytest.raises(TransportError, match=says):
        whole(pinned)


@pytest.mark.parametrize("nbytes", [5, PART_NBYTES + 1])
def test_faults_that_stay_while_writing(s3: S3Server, in_s3: Place, nbytes: int) -> None:
    in_s3.put("a", b"first")
    s3.fault("busy", method="PUT", times=1000)
    with pytest.raises(StorageError, match="SlowDown"):
        write(in_s3.url("a"), bytes(nbytes))
    assert in_s3.names() == ["a"]
    assert in_s3.get("a") == b"first"


def test_an_upload_that_cannot_be_completed(s3: S3Server, in_s3: Place) -> None:
    s3.fault("deny", method="POST", after=1, times=1000)
    with pytest.raises(StorageError, match="credentials"):
        write(in_s3.url("a"), bytes(PART_NBYTES + 1))
    parts = [objects.pin(in_s3.put(name, content_of(PART_NBYTES))) for name in ("b", "c")]
    s3.clear()
    s3.fault("deny", method="POST", after=1, times=1000)
    with pytest.raises(StorageError, match="credentials"):
        objects.concatenate(parts, in_s3.url("a"))
    assert in_s3.names() == ["b", "c"]


def test_an_object_that_is_replaced_between_two_reads(s3: S3Server, in_s3: Place) -> None:
    pinned = objects.pin(in_s3.put("a", b"content"))
    s3.fault("overwrite", after=1)
    assert objects.read(pinned, 0, 3) == b"con"
    with pytest.raises(FormatError, match="has changed"):
        objects.read(pinned, 3, 4)


def test_a_store_that_sends_more_than_was_asked_for(s3: S3Server, in_s3: Place) -> None:
    pinned = objects.pin(in_s3.put("a", content_of(1000)))
    s3.fault("whole", times=1000)
    with pytest.raises(TransportError, match="sends more than it was asked for"):
        objects.read(pinned, 0, 100)


@pytest.mark.parametrize("versioned", [False, True])
def test_a_read_is_one_request(s3: S3Server, versioned: bool) -> None:
    url, content = f"s3://{s3.bucket(versioned=versioned)}/a b/ä+c.secagg", content_of(100_000)
    write(url, content)
    pinned = objects.pin(url)
    assert bool(pinned.version) is versioned
    if versioned:
        write(url, b"another")
    s3.clear()
    assert objects.read(pinned, 10, 50_000) == content[10:50_010]
    assert [(line["method"], line["status"]) for line in s3.requests()] == [("GET", "206")]


def test_settings_of_fsspec_go_with_every_request(in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    url, owner = in_s3.put("a", b"content"), {"ExpectedBucketOwner": "123456789012", "ACL": "private"}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"s3_additional_kwargs": owner, "requester_pays": True})
    forget_stores()
    seen: list[dict[str, str]] = []
    client = remote._reader(fsspec.filesystem("s3", use_listings_cache=False))
    client.meta.events.register("before-call.s3", lambda params, **_: seen.append(params["headers"]))
    assert whole(objects.pin(url)) == b"content"
    assert len(seen) == 2
    for headers in seen:
        assert headers["x-amz-expected-bucket-owner"] == "123456789012"
        assert headers["x-amz-request-payer"] == "requester"


def test_a_store_that_does_not_say_how_much_it_sends(in_s3: Place) -> None:
    pinned = objects.pin(in_s3.put("a", b"content"))
    client = remote._reader(fsspec.filesystem("s3", use_listings_cache=False))

    def chunked(parsed: dict[str, Any], **_: Any) -> None:
        parsed["ResponseMetadata"]["HTTPHeaders"]["transfer-encoding"] = "chunked"

    client.meta.events.register("after-call.s3.GetObject", chunked)
    with pytest.raises(TransportError, match="sends more than it was asked for"):
        whole(pinned)


def test_what_is_written_is_on_its_way_while_more_is_made(s3: S3Server, in_s3: Place) -> None:
    content = content_of(3 * PART_NBYTES)
    s3.fault("slow", method="PUT", seconds=1.5)
    with objects.write(in_s3.url("a")) as file:
        began = time.monotonic()
        file.write(content[:PART_NBYTES])
        assert time.monotonic() - began < 1
        file.write(content[PART_NBYTES : PART_NBYTES + 1])
        assert time.monotonic() - began < 1
        file.write(content[PART_NBYTES + 1 :])
        assert time.monotonic() - began > 1
    assert in_s3.get("a") == content


def test_ctrl_c_does_not_wait_for_a_slow_store(s3: S3Server, in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_STOP_SECONDS", 0.2)
    s3.fault("slow", method="POST", seconds=3)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        write(in_s3.url("a"), bytes(PART_NBYTES + 1), KeyboardInterrupt)
    assert time.monotonic() - began < 2
    while len([line for line in s3.requests() if line["method"] == "DELETE"]) < 1:
        assert time.monotonic() - began < 20  # the upload, once it is begun, is aborted
        time.sleep(0.1)
    assert in_s3.names() == []


def test_ctrl_c_twice_leaves_nothing(in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(in_s3.url("a"), bytes(PART_NBYTES + 1), KeyboardInterrupt)
    time.sleep(1)  # what was on its way has come, and is dropped
    assert in_s3.names() == []


def test_no_thread_can_be_started(in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "secagg-write":
            raise RuntimeError("can't start new thread")
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(StorageError, match=r"cannot write .*\(RuntimeError\)"):
        write(in_s3.url("a"), b"a")
    assert in_s3.names() == []


def test_a_store_that_lists_late(s3: S3Server, in_s3: Place) -> None:
    removed = in_s3.put("removed", b"content")
    bucket = in_s3.root.removeprefix("s3://")
    s3.old_lists(bucket, 1000)
    objects.remove([removed])
    write(in_s3.url("written"), b"content")
    assert objects.list_objects(in_s3.url("*")) == [removed]
    assert whole(objects.pin(in_s3.url("written"))) == b"content"
    with pytest.raises(FormatError, match="not there"):
        objects.pin(removed)
    s3.old_lists(bucket, 0)
    assert objects.list_objects(in_s3.url("*")) == [in_s3.url("written")]


def test_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="nowhere://"):
        objects.pin("nowhere://a/b")
    with pytest.raises(BackendUnavailableError, match=r"secagg\[fsspec\]"):
        objects.pin("gs://a/b")
    assert [
        objects.is_url(value) for value in ("s3://a/b", "gs+x://a", "/a/b", "a", "://a", Path("/a"), b"s3://a")
    ] == [
        *itertools.repeat(True, 2),
        *itertools.repeat(False, 5),
    ]


@pytest.mark.parametrize("url", ["webhdfs://host/a", "zip://a", "dir://a", "reference://a"])
def test_what_fsspec_finds_by_more_than_a_scheme(url: str) -> None:
    with pytest.raises(FormatError, match="by more than its scheme"):
        objects.pin(url)


def test_what_cannot_be_reached_over_http_is_not_missing() -> None:
    """fsspec says of both that there is no such file; and no secret of a URL is in a message."""
    url = "http://user:password@127.0.0.1:9/a?X-Amz-Signature=signature"
    with pytest.raises(TransportError, match=r"read http://127.0.0.1:9/a: the store cannot be reached") as raised:
        objects.pin(url)
    assert not {word for word in ("password", "signature") if word in str(raised.value)}
    assert objects.list_objects(url) == [url]  # the "?" begins a query, and no pattern


def test_s3_under_its_other_name(in_s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [objects.pin(in_s3.put(name, content_of(PART_NBYTES, seed))) for seed, name in enumerate("ab")]
    other = in_s3.url("c").replace("s3://", "s3a://")
    objects.concatenate(parts, other)
    assert whole(objects.pin(other)) == content_of(PART_NBYTES, 0) + content_of(PART_NBYTES, 1)
    objects.remove([other])
    monkeypatch.setattr(remote, "_MAX_COPY_NBYTES", PART_NBYTES - 1)  # S3 refuses to copy more: it goes through here
    monkeypatch.setattr(remote.MultipartUpload, "copy", pytest.fail)
    objects.concatenate(parts, other)
    assert in_s3.get("c") == content_of(PART_NBYTES, 0) + content_of(PART_NBYTES, 1)
