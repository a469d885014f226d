"""Uploads that break off, and go on: with what lies in the spool, whatever became of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from running import SMALL, STATE, Running, chunks_of, make_signed, serving, typed, wait_until
from signed import Signed

import secagg
from secagg.errors import DigestError, FormatError, RoundMismatchError, SecAggError, StateError
from secagg.integrations.grpc import secagg_pb2 as pb


@pytest.fixture(scope="module")
def signed() -> Signed:
    return make_signed()


@pytest.fixture(scope="module")
def update(signed: Signed) -> secagg.Update:
    """Of site-1, for round 0; the tests only send it."""
    update = signed.site().encrypt(STATE, round=0)
    assert update.header.frame_count == 7
    return update


@pytest.fixture
def running(signed: Signed, tmp_path: Path) -> Iterator[Running]:
    with serving(signed, tmp_path / "run") as running:
        yield running


def broken_off(running: Running, update: secagg.Update, frames: int) -> None:
    with running.paused(update, frames):
        pass
    wait_until(lambda: running.server.status().uploads_in_flight == 0)


def assert_goes_well(running: Running, update: secagg.Update) -> None:
    """The round ends with the update in it, and the mean is right."""
    signed = running.signed
    with running.session("site-2") as session, running.session("site-1") as first:
        session.join()
        receipt = first.upload(update).receipt
        assert receipt is not None
        session.upload(signed.site("site-2").encrypt(STATE, round=0))
        with session.download(0, running.folder.parent / "aggregate") as aggregate:
            assert aggregate.header.sites == ("site-1", "site-2")
            mean = signed.site().decrypt(aggregate, round=0, receipt=receipt)
    assert np.abs(mean["w"] - STATE["w"]).max() < 1e-4
    assert running.spool() == []


def test_it_goes_on_where_it_broke_off(running: Running, update: secagg.Update) -> None:
    broken_off(running, update, 3)
    assert running.spool() == ["site-1.part"]
    reply = running.resume(update)
    assert (reply.already_added, reply.frame) == (False, 3)
    assert running.server.status().waiting_for == ("site-1",)
    assert_goes_well(running, update)


def offset_of(update: secagg.Update, frame: int) -> int:
    return len(update.header.head) + list(update.header.frames)[frame].offset


def rubbish(path: Path, update: secagg.Update) -> None:
    """A power failure kept the length, and not the bytes."""
    with path.open("r+b") as file:
        file.seek(offset_of(update, 3) + 1000)
        file.write(np.random.default_rng(5).bytes(path.stat().st_size - file.tell()))


def zeros(path: Path, update: secagg.Update) -> None:
    with path.open("r+b") as file:
        file.truncate(offset_of(update, 2) + 7)
        file.truncate(update.nbytes)


def shorter(path: Path, update: secagg.Update) -> None:
    os.truncate(path, offset_of(update, 4))


def longer(path: Path, update: secagg.Update) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def another_head(path: Path, update: secagg.Update) -> None:
    with path.open("r+b") as file:
        file.write(b"rubbish")


def nothing(path: Path, update: secagg.Update) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("damage", "frame"), [(rubbish, 3), (zeros, 2), (shorter, 0), (longer, 0), (another_head, 0), (nothing, 0)]
)
def test_what_a_power_failure_leaves(
    signed: Signed,
    update: secagg.Update,
    tmp_path: Path,
    damage: Callable[[Path, secagg.Update], None],
    frame: int,
) -> None:
    with serving(signed, tmp_path / "run") as running:
        broken_off(running, update, 5)
        part = running.part(update)
    damage(part, update)
    with serving(signed, tmp_path / "run") as running:
        assert running.resume(update).frame == frame
        assert part.stat().st_size == update.nbytes
        assert_goes_well(running, update)


def test_only_the_tail_is_missing(signed: Signed, update: secagg.Update, tmp_path: Path) -> None:
    with serving(signed, tmp_path / "run") as running:
        broken_off(running, update, 7)
    with serving(signed, tmp_path / "run") as running:
        assert running.resume(update).frame == 7
        assert_goes_well(running, update)


def test_another_encryption_begins_anew(running: Running, update: secagg.Update) -> None:
    broken_off(running, update, 5)
    other = running.signed.site().encrypt(STATE, round=0)
    assert running.resume(other).frame == 0
    assert running.resume(update).frame == 0  # there is one part a site
    assert_goes_well(running, other)


def test_an_upload_without_asking_first(running: Running, update: secagg.Update) -> None:
    assert not running.send(update).already_added
    assert running.server.status().added == ("site-1",)
    reply = running.send(update)
    assert reply.already_added
    secagg.Receipt.from_bytes(reply.receipt).check(update, running.signed.project)


@pytest.mark.parametrize("first", [0, 2, 5])
def test_frames_that_are_there_may_be_sent_again(running: Running, update: secagg.Update, first: int) -> None:
    broken_off(running, update, 5)
    head, *rest = chunks_of(update)
    assert not running.send(update, [head, *rest[first:]], frame=first).already_added
    assert running.server.status().added == ("site-1",)


@pytest.mark.parametrize("first", [6, 8, 2**63])
def test_frames_must_not_be_left_out(running: Running, update: secagg.Update, first: int) -> None:
    broken_off(running, update, 5)
    head, *rest = chunks_of(update)
    with pytest.raises(grpc.RpcError, match="wants frame 5 next") as caught:
        running.send(update, [head, *rest[first:]], frame=first)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # no typed error: ask again
    assert running.server.status().added == ()
    assert running.resume(update).frame == 5


SPOILT: dict[str, tuple[Callable[[list[bytes]], list[bytes]], type[SecAggError], str]] = {
    "frames swapped": (lambda chunks: [*chunks[:3], chunks[4], chunks[3], *chunks[5:]], DigestError, "frame 2"),
    "a frame twice": (lambda chunks: [*chunks[:3], chunks[2], *chunks[4:]], DigestError, "frame 2"),
    "a frame more": (lambda chunks: [*chunks[:3], *chunks[2:]], DigestError, "frame 2"),
    "a frame more at the end": (lambda chunks: [*chunks[:-1], *chunks[-2:]], FormatError, "the tail has"),
    "a frame cut": (lambda chunks: [*chunks[:3], chunks[3][:-1], *chunks[4:]], FormatError, "frame 2 has"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_what_is_refused_is_not_kept(running: Running, update: secagg.Update, fault: str) -> None:
    """A site whose upload is damaged begins anew: going on would never end well."""
    spoil, error, match = SPOILT[fault]
    with pytest.raises(error, match=match) as caught:
        running.send(update, spoil(chunks_of(update)))
    assert type(caught.value) is error
    assert running.spool() == []
    assert running.server.status().added == ()
    assert_goes_well(running, update)


@pytest.mark.parametrize(("frames", "missing"), [(0, "frame 0"), (3, "frame 3"), (7, "the tail")])
def test_a_stream_that_ends_early_has_broken_off(
    running: Running, update: secagg.Update, frames: int, missing: str
) -> None:
    """Whoever stopped it, it says nothing against the update: what was sent is kept."""
    with pytest.raises(grpc.RpcError, match=f"the stream ended before {missing}") as caught:
        running.send(update, chunks_of(update)[: 1 + frames])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert running.server.status().added == ()
    assert running.resume(update).frame == frames
    assert_goes_well(running, update)


def test_the_same_update_at_the_same_time(running: Running, update: secagg.Update) -> None:
    """Two processes of a site, say: it is added once, and both get the receipt."""

    def upload(_: int) -> secagg.Receipt | None:
        with running.session("site-1") as session:
            return session.upload(update).receipt

    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(upload, range(4)))
    assert receipts[0] is not None
    assert set(receipts) == {receipts[0]}
    assert running.server.status().added == ("site-1",)
    assert_goes_well(running, update)
    [record] = map(json.loads, (running.folder / "rounds.jsonl").read_text().splitlines())
    assert [upload["site"] for upload in record["uploads"]] == ["site-1", "site-2"]


def test_a_newer_upload_of_a_site_displaces_the_older(running: Running, update: secagg.Update) -> None:
    """The site's connection broke, and the server has not noticed yet."""
    with running.paused(update, 4) as older:
        with running.session("site-1") as session:
            steps: list[int] = []
            assert not session.upload(update, lambda done, total: steps.append(done)).already_added
        assert older.call.code() is grpc.StatusCode.CANCELLED
    assert steps[0] >= offset_of(update, 4)  # it went on with what the older one had sent
    assert running.server.status().added == ("site-1",)


def test_a_round_that_ends_while_an_update_is_received(signed: Signed, update: secagg.Update, tmp_path: Path) -> None:
    with serving(signed, tmp_path / "run", round_timeout=2.0) as running, running.paused(update, 4) as late:
        for name in ("site-2", "site-3"):
            running.send(signed.site(name).encrypt(STATE, round=0))
        wait_until(lambda: running.server.status().aggregates == (0,))
        late.go_on()
        with pytest.raises(RoundMismatchError, match="the updates of round 0 ended without that of 'site-1'"):
            typed(late.call.result)
        wait_until(lambda: running.spool() == [])


def test_who_asks_first_and_uploads_then(running: Running, update: secagg.Update) -> None:
    """A download may begin before the upload; one that names an update which is not there is told so."""
    request = pb.DownloadRequest(round=0, kind="aggregate", nonce=update.header.contributions[0].nonce)
    with running.stub() as stub:
        early = stub.Download(pb.DownloadRequest(round=0), timeout=120.0)
        with pytest.raises(StateError, match="upload it again"):
            typed(lambda: next(stub.Download(request, timeout=120.0)))
        assert_goes_well(running, update)
        for call in (early, stub.Download(request, timeout=120.0)):
            blob = b"".join(message.data for message in call)
            assert secagg.Update.from_bytes(blob).header.sites == ("site-1", "site-2")


def test_a_download_of_what_there_is_not(running: Running) -> None:
    with running.stub() as stub:
        with pytest.raises(FormatError, match="'update' cannot be downloaded"):
            typed(lambda: next(stub.Download(pb.DownloadRequest(round=0, kind="update"), timeout=120.0)))
        with pytest.raises(RoundMismatchError, match="not begun"):
            typed(lambda: next(stub.Download(pb.DownloadRequest(round=1), timeout=120.0)))


@pytest.mark.parametrize("frame", [1, 6, 7, 8])
def test_a_download_goes_on(running: Running, update: secagg.Update, frame: int) -> None:
    assert_goes_well(running, update)
    with running.stub() as stub:
        whole = [message.data for message in stub.Download(pb.DownloadRequest(round=0), timeout=120.0)]
        request = pb.DownloadRequest(round=0, frame=frame, head=whole[0][-32:])
        head, *rest = stub.Download(request, timeout=120.0)
        first = min(frame, len(whole) - 2)
        assert (head.data, head.frame) == (whole[0], first)
        assert [message.data for message in rest] == whole[1 + first :]
        request.head = bytes(32)  # of another file: from the beginning
        assert [message.data for message in stub.Download(request, timeout=120.0)] == whole


def test_a_model_goes_on_too(running: Running, tmp_path: Path) -> None:
    signed = running.signed
    signed.site().encrypt_model(tmp_path / "model", STATE, round=0, base=signed.site().base(STATE))
    with secagg.Update.open(tmp_path / "model") as model:
        broken_off(running, model, 2)
        assert running.spool() == ["site-1.model"]
        assert running.resume(model).frame == 2
        update = signed.site().encrypt(SMALL, round=0)  # beside the model of the site
        with running.paused(update, 1) as other:
            with running.session("site-1") as session:
                assert session.save_model(tmp_path / "model")
            other.go_on()
            other.call.result()
    assert running.server.status().models == (0,)
    assert running.spool() == []
