"""Updates by the server's bucket: the sum is that of streamed ones, whatever ends, is lost, or takes their place."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from deposits import LARGE, SCHEMES, SITES, World, world
from s3_server import READER, WRITER, S3Server
from served import Served

import secagg
from secagg.errors import (
    ConfigError,
    FormatError,
    MismatchError,
    QuotaError,
    SecAggError,
    StateError,
    TransportError,
)
from secagg.integrations.grpc import Server
from secagg.protocol import JoinReply
from secagg.server import Limits
from secagg.server.run_folder import RunFolder
from secagg.site.replies import read_joined
from secagg.trust.kit import load_server_kit

#: Of every presigned URL.
SIGNATURE = "X-Amz-Signature"

#: A site that is killed when it has put its first part.
MORTAL = """
import os, signal, sys
from pathlib import Path
from secagg.integrations.grpc import SiteSession
from secagg.trust import Tls
from secagg.trust.kit import load_site_kit

def progress(done, total):
    if done > 9 << 20:
        os.kill(os.getpid(), signal.SIGKILL)

address, folder, update = sys.argv[1:]
kit = load_site_kit(Path(folder))
with SiteSession(address, kit.name, tls=Tls.load(kit.folder), project=kit.project) as session:
    session.join()
    session.upload(update, progress)
"""


class Stopped(Exception):
    """Breaks off a deposit."""


@pytest.fixture
def made(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world(tmp_path, s3, monkeypatch) as made:
        yield made


def stop_at(nbytes: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= nbytes:
            raise Stopped

    return progress


def puts(s3: S3Server) -> list[str]:
    """The numbers of the parts that were put."""
    found = [item for item in s3.requests() if item["method"] == "PUT" and "partNumber" in item["query"]]
    return [item["query"].partition("partNumber=")[2].partition("&")[0] for item in found if item["status"] == "200"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def emptied(made: World, *, over: bool = True) -> None:
    """Wait until what was dropped is deleted; of a round that is `over`, all of it."""
    wait_for(lambda: made.spool == [] and not (over and (made.run / "round-0").exists()))
    assert (made.objects, made.s3.uploads(made.bucket)) == ([], [])


def expected(made: World, *updates: secagg.Update) -> bytes:
    kit = load_server_kit(made.folder / "kits" / "server")
    aggregator = secagg.Aggregator(kit.config, kit.key, 0, project=kit.project)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish().to_bytes()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_sum_is_that_of_streamed_updates(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("secagg", "urllib3", "http"):
        caplog.set_level(logging.DEBUG, name)
    with world(tmp_path, s3, monkeypatch, scheme) as made, made.serving() as server:
        made.join(server, *SITES)
        updates = [made.update(site) for site in SITES]
        for update in updates[:2]:
            assert not made.deposit(server, update)
            assert made.deposit(server, update)  # it has its receipt again
        assert len(made.objects) == 2
        assert server.status().disk_used > updates[0].nbytes + updates[1].nbytes
        with made.session(server, SITES[2]) as session:  # one that does not join streams
            session.upload(updates[2])
            session.join()
            with session.download(0, tmp_path / "aggregate") as aggregate:
                assert aggregate.to_bytes() == expected(made, *updates)
        emptied(made)
    assert SIGNATURE not in caplog.text
    assert s3.https not in caplog.text
    assert not any(SIGNATURE in path.read_text(errors="replace") for path in made.run.rglob("*") if path.is_file())


def test_a_killed_site_goes_on_where_it_was(made: World, s3: S3Server, tmp_path: Path) -> None:
    update = made.update("site-1", LARGE)
    update.save(tmp_path / "update")
    with made.serving() as server:
        s3.clear()
        arguments = [server.address, str(made.folder / "kits" / "site-1"), str(tmp_path / "update")]
        killed = subprocess.run([sys.executable, "-c", MORTAL, *arguments], capture_output=True)
        assert (killed.returncode, killed.stderr) == (-9, b"")
        assert puts(s3) == ["1"]
        assert not made.deposit(server, update)
        assert sorted(puts(s3)) == ["1", "2", "3"]
        assert server.status().added == ("site-1",)


def test_a_killed_server_goes_on_where_it_was(made: World, s3: S3Server, tmp_path: Path) -> None:
    first, second = (made.update(site, LARGE) for site in SITES[:2])
    options = ("--bucket", made.url)
    with Served(made.folder / "kits" / "server", tmp_path, options) as served:
        made.join(served, "site-1", "site-2")
        made.deposit(served, first)

        def progress(done: int, total: int) -> None:
            if done == total:
                served.process.kill()
                raise Stopped

        with pytest.raises(Stopped):
            made.deposit(served, second, progress)
        log = served.log
    assert made.rounds == ["site-1.update"]
    assert made.spool == ["site-2.deposit"]
    s3.clear()
    with Served(made.folder / "kits" / "server", tmp_path, options) as served:
        assert made.deposit(served, first)  # and its receipt again
        assert not made.deposit(served, second)
        assert puts(s3) == []
        with made.session(served, "site-1") as session:
            session.join()
            with session.download(0, tmp_path / "aggregate") as aggregate:
                assert aggregate.to_bytes() == expected(made, first, second)
        emptied(made)
        assert SIGNATURE not in log + served.log


def test_a_server_that_died_when_the_object_was_there_goes_on(
    made: World, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the object and the pointer to it."""
    update = made.update("site-1")

    def killed(url: str) -> None:
        raise KeyboardInterrupt

    with made.serving() as server, monkeypatch.context() as patched:
        patched.setattr("secagg.server.bucket.pin", killed)
        with pytest.raises(TransportError):
            made.deposit(server, update, timeout=1.0)
    assert len(made.objects) == 1
    with made.serving() as server:
        s3.clear()
        assert not made.deposit(server, update)
        assert puts(s3) == []
        assert not any(item["method"] == "POST" for item in s3.requests())  # S3 takes no list of no parts


def test_an_upload_that_the_bucket_has_aborted_begins_anew(made: World, s3: S3Server) -> None:
    update = made.update("site-1")
    with made.serving() as server:
        leave(made, server, update)
        client = s3.client()
        [upload] = client.list_multipart_uploads(Bucket=made.bucket)["Uploads"]
        client.abort_multipart_upload(Bucket=made.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        assert not made.deposit(server, update)


def leave(made: World, server: Server, update: secagg.Update) -> None:
    """Put all parts of an update, and go before the server is told."""
    with pytest.raises(Stopped):
        made.deposit(server, update, stop_at(update.nbytes))


def flipped(update: secagg.Update, place: int) -> bytes:
    blob = bytearray(update.to_bytes())
    blob[place] ^= 1
    return bytes(blob)


@pytest.mark.parametrize("what", ["flipped", "another head", "another site's", "words"])
def test_what_was_put_in_its_place_is_refused(made: World, s3: S3Server, what: str) -> None:
    """By whoever provides the bucket, or has a URL: nothing is added, and the site may put its own again."""
    update, other = made.update("site-1"), made.update("site-2")
    content = {
        "flipped": flipped(update, -40),
        "another head": made.update("site-1").to_bytes(),
        "another site's": other.to_bytes(),
        "words": flipped(update, update.nbytes // 2),
    }[what]
    assert len(content) == update.nbytes
    with made.serving() as server:
        leave(made, server, update)
        client = s3.client()
        [upload] = client.list_multipart_uploads(Bucket=made.bucket)["Uploads"]
        place = {"Bucket": made.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        client.upload_part(**place, PartNumber=1, Body=content)
        with pytest.raises(FormatError):
            made.deposit(server, update)
        assert server.status().added == ()
        emptied(made, over=False)
        assert not made.deposit(server, update)
        assert server.status().added == ("site-1",)


def test_a_part_that_was_cut_is_wanted_again(made: World, s3: S3Server) -> None:
    update = made.update("site-1")
    with made.serving() as server:
        leave(made, server, update)
        client = s3.client()
        [upload] = client.list_multipart_uploads(Bucket=made.bucket)["Uploads"]
        place = {"Bucket": made.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
        client.upload_part(**place, PartNumber=1, Body=update.to_bytes()[:-1])
        s3.clear()
        assert not made.deposit(server, update)
        assert puts(s3) == ["1"]


def test_an_object_that_changes_while_it_is_read_is_refused(made: World, s3: S3Server) -> None:
    update = made.update("site-1")
    with made.serving() as server:
        s3.fault("overwrite", key=f"{made.bucket}/*.secagg", after=2)  # twice its parts are listed
        with pytest.raises(FormatError, match="changed"):
            made.deposit(server, update)
        assert (server.status().added, made.rounds) == ((), [])


@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versioned"])
def test_an_object_that_is_lost_later_is_left_out(made: World, s3: S3Server, versioned: bool) -> None:
    made.bucket = s3.bucket(versioned=versioned)
    kept, lost = made.update("site-1"), made.update("site-2")
    with made.serving() as server:
        made.join(server, *SITES)
        for update in (kept, lost):
            made.deposit(server, update)
    client = s3.client()
    [key] = [key for key in made.objects if "/site-2-" in key]
    for version in client.list_object_versions(Bucket=made.bucket, Prefix=key)["Versions"]:
        client.delete_object(Bucket=made.bucket, Key=key, VersionId=version["VersionId"])
    with made.serving() as server:
        assert server.status().added == ("site-1",)
        assert made.rounds == ["site-1.update", "site-2.refused"]
        assert not made.deposit(server, lost)
        assert server.status().added == ("site-1", "site-2")
        assert not made.deposit(server, made.update("site-3"))
        emptied(made)
        assert "Versions" not in client.list_object_versions(Bucket=made.bucket)


def test_a_bucket_that_is_away_says_nothing_about_what_lies_there(made: World, s3: S3Server) -> None:
    first, second = made.update("site-1"), made.update("site-2")
    with made.serving() as server:
        made.join(server, *SITES)
        made.deposit(server, first)
        s3.fault("deny", key=f"{made.bucket}/*.secagg", times=4)  # the site tries again
        assert not made.deposit(server, second)
    s3.fault("deny", key=f"{made.bucket}/*.secagg", times=1000)
    with pytest.raises(TransportError, match="refuses"):
        made.serving().__enter__()
    s3.clear()
    with made.serving() as server:
        assert server.status().added == ("site-1", "site-2")


def test_a_bucket_that_is_away_between_verification_and_addition(
    made: World, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update was put, and is not put again."""
    keep, update, away = RunFolder.keep_upload, made.update("site-1", 300_000), list[bool]()

    def keep_and_lose(folder: RunFolder, *arguments: Any) -> None:
        keep(folder, *arguments)
        if not away:
            s3.fault("deny", key=f"{made.bucket}/*.secagg", times=2)  # as it is added, and as the sum is made again
            away.append(True)

    monkeypatch.setattr(RunFolder, "keep_upload", keep_and_lose)
    with made.serving() as server:
        s3.clear()
        assert not made.deposit(server, update)
        assert puts(s3) == ["1"]
        assert (made.rounds, made.spool, len(made.objects)) == (["site-1.update"], [], 1)


def test_no_receipt_again_for_what_is_not_there_any_more(made: World, s3: S3Server) -> None:
    update = made.update("site-1")
    with made.serving() as server:
        made.deposit(server, update)
        s3.client().delete_object(Bucket=made.bucket, Key=made.objects[0])
        with pytest.raises(FormatError, match="it is not there"):
            made.deposit(server, update)


def test_another_bucket_begins_anew(made: World, s3: S3Server) -> None:
    first, second = made.update("site-1"), made.update("site-2")
    with made.serving() as server:
        made.join(server, *SITES)
        made.deposit(server, first)
        leave(made, server, second)
    old, made.bucket = made.bucket, s3.bucket()
    with made.serving() as server:
        s3.clear()
        assert not made.deposit(server, second)
        assert {item["key"].partition("/")[0] for item in s3.requests() if item["method"] == "PUT"} == {made.bucket}
        assert server.status().added == ("site-1", "site-2")
        wait_for(lambda: made.spool == [])
        assert s3.uploads(old) == []
        assert not made.deposit(server, made.update("site-3"))
        emptied(made)


def test_what_cannot_be_deleted_keeps_nothing_else_there(
    made: World, s3: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    with made.serving() as server:
        made.join(server, *SITES)
        s3.fault("deny", method="DELETE", key=f"{made.bucket}/brain/round-0/site-1-*", times=1000)
        for site in ("site-1", "site-1", "site-2", "site-2"):  # each second one takes the place of the first
            leave(made, server, made.update(site))
        wait_for(lambda: len(s3.uploads(made.bucket)) == 3)
        assert "cannot clear the bucket of 1 objects" in caplog.text
    s3.clear()
    with made.serving():
        wait_for(lambda: len(s3.uploads(made.bucket)) == 2)


def test_a_server_stops_also_if_its_bucket_does_not_answer(
    made: World, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secagg.server.federation._CLEANING_SECONDS", 0.1)
    with made.serving() as server:
        s3.fault("slow", method="DELETE", seconds=4, times=1)
        for _ in range(2):
            leave(made, server, made.update("site-1"))
        wait_for(lambda: any(item["method"] == "DELETE" for item in s3.requests()))
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3


def test_a_server_without_its_bucket_takes_streams_and_keeps_what_lies_there(made: World) -> None:
    first, second, third = (made.update(site) for site in SITES)
    with made.serving() as server, made.session(server, "site-2") as session:
        made.join(server, *SITES)
        made.deposit(server, first)
        assert session.join().deposits
        port = server.address
        server.stop()
        with made.serving(bucket=False, address=port) as again:
            assert not session.upload(second).already_added
            assert again.status().added == ("site-1", "site-2")
            with made.session(again, "site-3") as other:
                assert not other.join().deposits
                other.upload(third)
                with other.download(0, made.folder / "aggregate") as aggregate:
                    assert aggregate.to_bytes() == expected(made, first, second, third)
            emptied(made)


def test_quotas_hold_for_what_lies_in_the_bucket(made: World) -> None:
    first, second = made.update("site-1", 50_000), made.update("site-2", 50_000)
    room = Limits(disk_quota=int(2.7 * first.nbytes))  # two lie there, the sum beside them, and not three
    with made.serving(limits=room) as server:
        made.join(server, *SITES)
        made.deposit(server, first)
        with pytest.raises(QuotaError, match="--disk-quota"):
            made.deposit(server, second)
        assert len(made.objects) == 1
    with made.serving(limits=Limits(max_upload_nbytes=1000)) as server:
        assert made.deposit(server, first)
    assert made.s3.uploads(made.bucket) == []


def test_the_largest_first_update_is_that_of_the_limits(made: World) -> None:
    with made.serving(limits=Limits(max_upload_nbytes=1000)) as server, pytest.raises(QuotaError, match="--max-upload"):
        made.deposit(server, made.update("site-1"))
    assert (made.s3.uploads(made.bucket), made.spool) == ([], [])


def test_uploads_under_way_end_with_their_round(made: World, s3: S3Server) -> None:
    with made.serving() as server:
        made.join(server, *SITES)
        leave(made, server, made.update("site-3"))
        assert len(s3.uploads(made.bucket)) == 1
        with made.session(server, "site-3") as session:
            session.skip(0)
        for site in SITES[:2]:
            made.deposit(server, made.update(site))
        wait_for(lambda: server.status().aggregates == (0,))
        emptied(made)


def test_only_updates_go_by_the_bucket(made: World) -> None:
    model = made.folder / "model"
    with made.serving() as server, made.session(server, "site-1") as session:
        session.join()
        client = made.client("site-1")
        client.encrypt_model(model, {"w": made.state("site-1", 100)}, round=0)
        with secagg.Update.open(model) as update, pytest.raises(MismatchError, match="upload it to the server"):
            session._link.deposit(update.header.head, 10.0)
        assert session.save_model(model)


def test_a_server_does_not_start_with_a_bucket_that_is_of_no_use(
    made: World, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[SecAggError] = ConfigError) -> str:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(kind) as caught:
            made.serving().__enter__()
        assert type(caught.value) is kind
        assert not any(secret in str(caught.value) for secret in (*WRITER, *READER, "X-Amz"))
        return str(caught.value)

    with monkeypatch.context() as patched:
        patched.setenv("AWS_SECRET_ACCESS_KEY", "another")  # the store may be mended, so the server be started again
        assert "credentials" in refused(TransportError)
    with monkeypatch.context() as patched:
        patched.delenv("AWS_SECRET_ACCESS_KEY")
        patched.delenv("AWS_ACCESS_KEY_ID")
        assert "credentials" in refused(TransportError)
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", s3.http)
        assert "https" in refused()
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", s3.https.replace("127.0.0.1", "localhost"))
        assert f"storage: [{s3.https.replace('127.0.0.1', 'localhost').removeprefix('https://')}]" in refused()
    with monkeypatch.context() as patched:
        patched.setattr(made, "bucket", "no-such-bucket")
        assert "NoSuchBucket" in refused()
    with monkeypatch.context() as patched:
        patched.setattr(type(made), "url", "gs://bucket/x")
        assert "s3://" in refused()


def test_a_site_goes_by_a_bucket_only_if_its_manifest_names_one(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for storage in (True, False):
        folder = tmp_path / str(storage)
        folder.mkdir()
        with world(folder, s3, monkeypatch, storage=storage) as made:
            project = made.kit("site-1").project
            said = JoinReply(0, 2, 4, 10.0, project.key, project.epoch, project.signed, deposits=True)
            assert read_joined(said, project, "site-1").deposits is storage
            assert not read_joined(replace(said, deposits=False), project, "site-1").deposits
            assert not read_joined(said, None, "site-1").deposits
    with pytest.raises(ConfigError, match="storage: .127.0.0.1:"):
        made.serving().__enter__()
    with made.serving(bucket=False) as server, made.session(server, "site-1") as session:
        assert not session.join().deposits
        with pytest.raises(StateError, match="has no bucket"):
            session._link.deposit(made.update("site-1").header.head, 10.0)


def test_a_round_is_void_also_in_the_bucket(made: World, s3: S3Server) -> None:
    with made.serving() as server:
        made.join(server, *SITES)
        for site in SITES[:2]:
            made.deposit(server, made.update(site))
        leave(made, server, made.update("site-3"))
    made.remove("site-2")
    with made.serving() as server:
        assert (server.status().round, server.status().attempt, server.status().added) == (0, 2, ())
        wait_for(lambda: made.spool == ["site-3.deposit"])  # it was not whole: its site, or the round's end, drops it
        assert made.objects == []
        with made.session(server, "site-1") as session:
            manifest = session.join().manifest
        made.kit("site-1").store_manifest(manifest)
        assert not made.deposit(server, made.update("site-1"))
        assert server.status().added == ("site-1",)
    [voided] = [line for line in (made.run / "rounds.jsonl").read_text().splitlines() if '"voided"' in line]
    assert [upload["nbytes"] for upload in json.loads(voided)["uploads"]] == [made.update("site-1").nbytes] * 2
