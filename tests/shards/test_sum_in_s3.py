"""The sum of updates that lie in a bucket, over HTTP, and what a bucket may do meanwhile."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
from federation import State, federate, random_states
from s3_server import READER, S3Server
from sharded import kit_of, lay, summed
from signed import ROUND, Signed, sign_federation

import secagg
from secagg import errors
from secagg.shards import Report, SumJob, ThreadPool, aggregate
from secagg.storage import objects


@cache
def signed() -> Signed:
    return sign_federation(federate("flashe", max_abs=1.0))


@cache
def states() -> Sequence[State]:
    """Of a sum of 12 frames: two parts of 6 MiB, which S3 can copy."""
    return random_states(3, {"w": (12 * 6 * 131072 - 50_000,)})


@cache
def updates() -> Sequence[secagg.Update]:
    return signed().encrypt(states())


@cache
def small() -> Sequence[secagg.Update]:
    return signed().encrypt(random_states(3, {"w": (1000,)}))


def add(bucket: str, tmp_path: Path, pattern: str = "in/*", **changes: object) -> Report:
    arguments = {"round": ROUND, "pool": ThreadPool(2), **changes}
    kit, target = kit_of(signed(), tmp_path), f"s3://{bucket}/sum"
    return aggregate(kit, [f"s3://{bucket}/{pattern}"], target, **arguments)  # type: ignore[arg-type]


def content(url: str) -> bytes:
    pinned = objects.pin(url)
    return objects.read(pinned, 0, pinned.nbytes)


@pytest.mark.parametrize(("shards", "versioned"), [(1, False), (2, False), (2, True), (12, False)])
def test_is_that_of_an_aggregator(
    s3: S3Server, versioned: bool, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket(versioned=versioned)
    lay(updates(), f"s3://{bucket}/in")
    s3.clear()
    report = add(bucket, tmp_path, shards=shards)
    assert (report.left_out, report.passes) == ({}, 1)
    assert content(f"s3://{bucket}/sum") == summed(signed(), updates())
    assert objects.list_objects(f"s3://{bucket}/*") == [f"s3://{bucket}/in", f"s3://{bucket}/sum"]
    assert s3.uploads(bucket) == []
    copied = [line for line in s3.requests() if line["method"] == "PUT" and "partNumber" in line["query"]]
    ours = [line for line in copied if line["key"] == f"{bucket}/sum"]
    assert (len(ours) == shards) == (shards < 12)  # parts of 1 MiB are too small to be copied within the store
    with secagg.Update.open(f"s3://{bucket}/sum") as aggregate:
        signed().site().decrypt(aggregate)


def test_sites_write_to_a_bucket_and_read_from_it(bucket: str, tmp_path: Path) -> None:
    for name, state in zip(signed().names, states(), strict=True):
        signed().site(name).encrypt_to(f"s3://{bucket}/in/{name}", state, round=ROUND)
    add(bucket, tmp_path)
    with secagg.Update.open(f"s3://{bucket}/sum") as aggregate:
        signed().federation.assert_mean(signed().site().decrypt(aggregate, like=states()[0]), states())
        aggregate.save(tmp_path / "sum")
    assert (tmp_path / "sum").read_bytes() == content(f"s3://{bucket}/sum")


@pytest.mark.parametrize(
    ("kind", "method", "key"),
    [("busy", "GET", "in/*"), ("cut", "GET", "in/*"), ("lose", "PUT", "sum.*"), ("busy", "PUT", "sum.*")],
)
def test_faults_that_pass(s3: S3Server, bucket: str, kind: str, method: str, key: str, tmp_path: Path) -> None:
    lay(small(), f"s3://{bucket}/in")
    s3.fault(kind, method=method, key=f"{bucket}/{key}", times=2, nbytes=1000)
    assert add(bucket, tmp_path).left_out == {}
    assert content(f"s3://{bucket}/sum") == summed(signed(), small())
    assert sum(line["status"] in ("206", "200") for line in s3.requests()) > 3


def test_a_store_that_refuses_to_be_read(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    lay(small(), f"s3://{bucket}/in")
    s3.fault("deny", method="GET", key=f"{bucket}/in/site-2.secagg", times=99)
    with pytest.raises(errors.TransportError, match=r"cannot read s3://.*site-2.secagg: the store refuses"):
        add(bucket, tmp_path)
    s3.clear()
    assert add(bucket, tmp_path).left_out == {}


def test_bad_credentials(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(small(), f"s3://{bucket}/in")
    secret = uuid4().hex
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    _forget()
    with pytest.raises(errors.TransportError, match="refuses these credentials") as raised:
        add(bucket, tmp_path)
    assert secret not in "".join(traceback.format_exception(raised.value))


def test_who_may_only_read(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(small(), f"s3://{bucket}/in")
    for name, value in s3.environment(READER).items():
        monkeypatch.setenv(name, value)
    _forget()
    with pytest.raises(errors.StorageError, match=r"cannot write s3://.*sum"):
        add(bucket, tmp_path)
    assert content(f"s3://{bucket}/in/site-1.secagg") == small()[0].to_bytes()


def test_a_flipped_bit_on_the_way_is_nobody_else_s(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    lay(updates(), f"s3://{bucket}/in")
    s3.fault("flip", key=f"{bucket}/in/site-2.secagg", after=2, nbytes=5000)
    report = add(bucket, tmp_path)
    assert isinstance(report.left_out[f"s3://{bucket}/in/site-2.secagg"], errors.DigestError)
    assert content(f"s3://{bucket}/sum") == summed(signed(), [updates()[0], updates()[2]])


@pytest.mark.parametrize("versioned", [False, True])
def test_an_object_that_is_replaced_between_head_and_frames(s3: S3Server, versioned: bool, tmp_path: Path) -> None:
    bucket = s3.bucket(versioned=versioned)
    lay(updates(), f"s3://{bucket}/in")

    def swap(job: SumJob) -> None:
        if len(job.sources) == 3:
            updates()[1].save(f"s3://{bucket}/in/site-1.secagg")

    report = add(bucket, tmp_path, began=swap)
    if versioned:  # the one that was looked at is still there
        assert report.left_out == {}
        expected = updates()
    else:
        assert "changed since it was looked at" in str(report.left_out[f"s3://{bucket}/in/site-1.secagg"])
        expected = updates()[1:]
    assert content(f"s3://{bucket}/sum") == summed(signed(), expected)


def test_an_object_that_is_removed_meanwhile(bucket: str, tmp_path: Path) -> None:
    urls = lay(updates(), f"s3://{bucket}/in")
    report = add(bucket, tmp_path, began=lambda job: objects.remove(urls[:1]))
    assert "it is not there" in str(report.left_out[urls[0]])
    assert content(f"s3://{bucket}/sum") == summed(signed(), updates()[1:])


def test_a_list_that_lags(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    urls = lay(small()[:2], f"s3://{bucket}/in")
    s3.old_lists(bucket, times=99)
    lay(small()[2:], f"s3://{bucket}/in")
    assert add(bucket, tmp_path).header.sites == ("site-1", "site-2")  # says who is in it; who was not listed is not
    s3.clear()
    objects.remove([f"s3://{bucket}/sum"])
    s3.old_lists(bucket, times=99)
    objects.remove(urls[:1])
    report = add(bucket, tmp_path)
    assert list(report.left_out) == urls[:1]
    assert content(f"s3://{bucket}/sum") == summed(signed(), small()[1:])


def test_a_sum_that_cannot_be_put_together(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """All or nothing; and another call goes on with what was added."""
    lay(updates(), f"s3://{bucket}/in")
    s3.fault("deny", method="PUT", key=f"{bucket}/sum", after=1, times=99)
    with pytest.raises(errors.StorageError, match=r"cannot write s3://.*/sum: .* AccessDenied"):
        add(bucket, tmp_path, shards=2)
    with pytest.raises(errors.FormatError, match="it is not there"):
        objects.pin(f"s3://{bucket}/sum")
    assert s3.uploads(bucket) == []
    s3.clear()
    add(bucket, tmp_path, shards=2)
    assert content(f"s3://{bucket}/sum") == summed(signed(), updates())
    read = [line for line in s3.requests() if line["key"].startswith(f"{bucket}/in/") and line["method"] == "GET"]
    assert sum(1 for line in read if line["status"] == "206") <= 3 * 2  # heads and tails alone


def _forget() -> None:
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
