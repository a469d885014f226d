"""What sites may use of a server: bytes, seconds, uploads at a time. Whoever takes more is told, and takes no harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import SMALL, STATE, Running, make_signed, serving, wait_until
from signed import Signed

import secagg
from secagg.errors import LayoutError, MismatchError, QuotaError
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.server import Limits


@pytest.fixture(scope="module")
def signed() -> Signed:
    return make_signed()


@pytest.fixture(scope="module")
def updates(signed: Signed) -> dict[str, secagg.Update]:
    """Of each site, for round 0; the tests only send them."""
    return {name: signed.site(name).encrypt(STATE, round=0) for name in signed.names}


def assert_untouched(running: Running) -> None:
    status = running.server.status()
    assert (status.added, running.spool()) == ((), [])


# Bytes.


def test_a_disk_quota(signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path) -> None:
    update = updates["site-1"]
    with serving(signed, tmp_path / "run", limits=Limits(disk_quota=3 * update.nbytes)) as running:
        ballast = running.folder / "ballast"
        ballast.write_bytes(bytes(update.nbytes))
        with pytest.raises(QuotaError, match=rf"announces {update.nbytes} bytes; the server has room for \d+ bytes: "):
            running.resume(update)
        with pytest.raises(QuotaError, match=r"free its disk, or raise --disk-quota \(disk_quota\) there"):
            running.send(update)
        with running.session("site-1") as session:
            with pytest.raises(QuotaError):
                session.upload(update)
            assert_untouched(running)
            status = session.status()
            assert status.disk_quota == 3 * update.nbytes
            assert status.disk_free is not None
            assert status.disk_free > 0
            assert update.nbytes <= status.disk_used < 2 * update.nbytes
            ballast.unlink()
            assert not session.upload(update).already_added
            assert session.status().disk_used >= update.nbytes


def test_what_an_upload_announces_is_taken(signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path) -> None:
    """Uploads that begin at the same time cannot take the same room, nor that of the aggregate."""
    nbytes = updates["site-1"].nbytes
    with serving(signed, tmp_path / "run", limits=Limits(disk_quota=int(3.5 * nbytes))) as running:
        for name in ("site-1", "site-2"):
            assert running.resume(updates[name]).frame == 0
            assert running.server.status().disk_used >= nbytes
        with pytest.raises(QuotaError):
            running.resume(updates["site-3"])
        for name in ("site-1", "site-2"):
            running.send(updates[name])
        with running.session("site-1") as session:  # whoever has no room is waited for until the round timeout
            assert session.status().added == ("site-1", "site-2")
            assert session.status().waiting_for == ("site-3",)


def test_a_quota_without_room_for_the_aggregate(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path
) -> None:
    update = updates["site-1"]
    limits = Limits(disk_quota=2 * update.nbytes)
    with serving(signed, tmp_path / "run", limits=limits) as running, pytest.raises(QuotaError):
        running.resume(update)


def test_a_model_counts_too(signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path) -> None:
    site = signed.site()
    site.encrypt_model(tmp_path / "model", STATE, round=0, base=site.base(STATE))
    nbytes = (tmp_path / "model").stat().st_size
    with (
        serving(signed, tmp_path / "run", limits=Limits(disk_quota=nbytes - 1)) as running,
        running.session("site-1") as session,
        pytest.raises(QuotaError, match="the model of 'site-1'"),
    ):
        session.save_model(tmp_path / "model")
    with (
        serving(signed, tmp_path / "run", limits=Limits(disk_quota=nbytes + 4096)) as running,
        running.session("site-1") as session,
    ):
        assert session.save_model(tmp_path / "model")


def test_the_first_upload_of_a_model_that_is_not_known(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path
) -> None:
    site, update = signed.site(), updates["site-1"]
    site.encrypt_model(tmp_path / "model", STATE, round=0, base=site.base(STATE))
    limits = Limits(max_upload_nbytes=update.nbytes - 1)
    with serving(signed, tmp_path / "run", limits=limits) as running, running.session("site-1") as session:
        with pytest.raises(
            QuotaError, match=rf"takes {update.nbytes - 1} bytes while .* raise --max-upload \(max_upload_nbytes"
        ):
            session.upload(update)
        with pytest.raises(QuotaError, match="raise --max-upload"):
            session.save_model(tmp_path / "model")
        assert_untouched(running)
        assert not session.upload(site.encrypt(SMALL, round=0)).already_added


def test_a_project_that_knows_its_model(signed: Signed, tmp_path: Path) -> None:
    """Then its size counts, and no limit; what is of another model is refused from its head alone."""
    knowing = replace(signed, project=signed.reissue(layout=signed.site().layout(STATE)))
    update = knowing.site().encrypt(STATE, round=0)
    with serving(knowing, tmp_path / "run", limits=Limits(max_upload_nbytes=1)) as running:
        for other in ({"w": STATE["w"][:-1]}, {"v": STATE["w"]}, {"w": STATE["w"].reshape(2, -1)}):
            unfit = signed.site().encrypt(other, round=0)
            with pytest.raises(LayoutError):
                running.resume(unfit)
            with pytest.raises(LayoutError):
                running.send(unfit, [unfit.header.head])
        knowing.site().encrypt_model(tmp_path / "model", SMALL, round=0, base=bytes(32))
        with running.session("site-1") as session:
            with pytest.raises(LayoutError):
                session.save_model(tmp_path / "model")
            assert_untouched(running)
            assert not session.upload(update).already_added


# Uploads at a time.


def test_an_upload_that_gets_no_slot_comes_again(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path
) -> None:
    limits = Limits(uploads_in_flight=1, slot_seconds=0.2)
    with serving(signed, tmp_path / "run", limits=limits) as running:
        with running.paused(updates["site-1"], 2) as upload:
            assert running.server.status().uploads_in_flight == 1
            with pytest.raises(grpc.RpcError, match="uploads are under way: try again") as caught:
                running.send(updates["site-2"])
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert running.server.status().added == ()
            upload.go_on()
            assert not upload.call.result().already_added
        with running.session("site-2") as session:
            assert not session.upload(updates["site-2"]).already_added


def test_an_upload_waits_for_a_slot(signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path) -> None:
    limits = Limits(uploads_in_flight=1)
    with (
        serving(signed, tmp_path / "run", limits=limits) as running,
        running.paused(updates["site-1"], 2) as first,
        running.paused(updates["site-2"], 0) as second,
    ):
        second.go_on()
        with running.session("site-3") as session:  # other calls need no slot
            session.join()
            assert session.status().uploads_in_flight == 1
        assert not second.call.done()
        first.go_on()
        for upload in (first, second):
            assert not upload.call.result().already_added
        assert running.server.status().added == ("site-1", "site-2")


def test_one_who_waits_for_a_slot_and_goes_gives_it_up(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path
) -> None:
    limits = Limits(uploads_in_flight=1)
    with (
        serving(signed, tmp_path / "run", limits=limits) as running,
        running.paused(updates["site-1"], 2) as first,
    ):
        with running.paused(updates["site-2"], 0) as second:
            turns = running.server._federation._turns._turns
            wait_until(lambda: ("site-2", "update") in turns)  # it is the only one of its site, and waits for a slot
            second.call.cancel()
        first.go_on()
        assert not first.call.result().already_added
        with running.session("site-3") as session:
            assert not session.upload(updates["site-3"]).already_added


# Seconds.


def unless_cancelled(call: Callable[[], Any]) -> Any:
    """Make a call until it is not cancelled: on a machine that stands still for a moment any of them may be idle."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                raise


@pytest.mark.parametrize("limits", [Limits(idle_seconds=0.5), Limits(upload_seconds=2.0)], ids=["idle", "in all"])
def test_an_upload_that_does_not_move_is_cancelled(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path, limits: Limits
) -> None:
    """Its slot is free again, and what it had sent is there still."""
    update = updates["site-1"]
    with serving(signed, tmp_path / "run", limits=replace(limits, uploads_in_flight=1)) as running:
        with running.paused(update, 3) as silent:
            assert silent.call.code() is grpc.StatusCode.CANCELLED
            wait_until(lambda: running.server.status().uploads_in_flight == 0)
            sent = running.frames_in(update)  # fewer than 3 if it was late with one of them
            with running.session("site-2") as session:
                session.upload(updates["site-2"])
        assert running.server.status().added == ("site-2",)
        assert unless_cancelled(lambda: running.resume(update).frame) == sent <= 3
        with running.session("site-1") as session:
            session.upload(update)
        wait_until(lambda: running.server.status().aggregates == (0,))


def begun(call: Any) -> Any:
    """A stream whose first message is there."""
    next(call)
    return call


def test_a_download_that_nobody_reads_is_cancelled(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path
) -> None:
    with serving(signed, tmp_path / "run", limits=Limits(idle_seconds=0.5)) as running:
        for name in ("site-1", "site-2"):
            with running.session(name) as session:
                session.join()
        for name in ("site-1", "site-2"):
            with running.session(name) as session:
                session.upload(updates[name])
        with running.channel("site-3", ("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)) as channel:
            download = channel.unary_stream(
                "/secagg.v1.SecureAggregation/Download",
                request_serializer=pb.DownloadRequest.SerializeToString,
                response_deserializer=pb.Chunk.FromString,
            )
            call = unless_cancelled(lambda: begun(download(pb.DownloadRequest(round=0), timeout=120.0)))
            streams = running.server._federation._turns._streams
            wait_until(lambda: not streams)
            with pytest.raises(grpc.RpcError) as caught:  # what it had sent was not all
                for _ in call:
                    pass
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        with running.session("site-3") as session:
            session.download(0, tmp_path / "aggregate").close()


def test_waiting_for_a_round_is_not_idle(signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path) -> None:
    """Who waits for the others is bound by the deadline of its call only."""
    limits = Limits(idle_seconds=1.5, upload_seconds=1.5)  # enough for the one message of a call
    with serving(signed, tmp_path / "run", limits=limits) as running, running.stub() as stub:
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Download(pb.DownloadRequest(round=0), timeout=3.0))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_another_base_is_refused_from_the_head_alone(
    signed: Signed, updates: dict[str, secagg.Update], tmp_path: Path
) -> None:
    """The first update says which global model the round begins from."""
    first, second = (signed.site(name).base(state) for name, state in (("site-1", SMALL), ("site-2", STATE)))
    with serving(signed, tmp_path / "run") as running:
        running.send(signed.site().encrypt(SMALL, round=0, base=first))
        assert running.server.status().base == first
        for base, message in ((second, "began from the global model"), (None, "names no global model")):
            with pytest.raises(MismatchError, match=message):
                running.resume(signed.site("site-2").encrypt(SMALL, round=0, base=base))
        assert running.spool() == []
