"""Downloads: they go on where they broke off, and a server cannot fill a site's disk with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from federation import Federation
from signed import Signed, sign_federation

import secagg
from secagg.errors import FormatError, LayoutError, MismatchError, RoundMismatchError, TransportError
from secagg.integrations.grpc import Server as RealServer
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc import secagg_pb2_grpc as pb_grpc
from secagg.integrations.grpc.messages import pack_chunks
from secagg.protocol.chunks import chunks_from
from secagg.protocol.expected import MAX_UNKNOWN_NBYTES

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 16}},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0},
}
#: Seven frames.
STATE = {"w": np.linspace(-1, 1, 2_500_000, dtype=np.float32)}


@pytest.fixture(scope="module")
def signed() -> Signed:
    config = secagg.Config.from_dict(CONFIG)
    return sign_federation(Federation(config, secagg.generate_keys(config)))


@pytest.fixture(scope="module")
def aggregate(signed: Signed) -> secagg.Update:
    aggregate = signed.add(signed.encrypt([STATE, STATE], round=0))
    assert aggregate.header.frame_count == 7
    return aggregate


class Server(pb_grpc.SecureAggregationServicer):
    """Sends `container`; `cuts` are the numbers of chunks after which downloads break off, then no more do.

    The last of them ends with `end`.
    """

    def __init__(self, container: secagg.Update) -> None:
        self.container = container
        self.cuts: list[int] = []
        self.end = grpc.StatusCode.UNAVAILABLE
        self.requests: list[pb.DownloadRequest] = []
        self.frame: int | None = None  # to go on from, whatever is asked for
        self.sent: list[int] = []
        self.address = ""

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        self.requests.append(request)
        known = request.head == self.container.header.head[-32:]
        frame = (request.frame if known else 0) if self.frame is None else self.frame
        cut = self.cuts.pop(0) if self.cuts else math.inf
        code = grpc.StatusCode.UNAVAILABLE if self.cuts else self.end
        self.sent.append(0)
        chunks = chunks_from(self.container, min(frame, self.container.header.frame_count))
        for index, chunk in enumerate(pack_chunks(chunks)):
            chunk.frame = 0 if index else frame
            if self.sent[-1] == cut:
                context.abort(code, "broke off")
            self.sent[-1] += 1
            yield chunk


@pytest.fixture
def server(aggregate: secagg.Update) -> Iterator[Server]:
    servicer = Server(aggregate)
    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_SecureAggregationServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()


def session_of(server: Server | RealServer, signed: Signed | None = None, **options: object) -> SiteSession:
    project = None if signed is None else signed.project
    return SiteSession(server.address, "site-1", tls=None, timeout=120.0, project=project, **options)


def only_file(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def test_a_download_goes_on_where_it_broke_off(server: Server, aggregate: secagg.Update, tmp_path: Path) -> None:
    server.cuts = [3, 1, 5]  # two frames; the head alone; four more
    steps: list[tuple[int, int]] = []
    with (
        session_of(server) as session,
        session.download(0, tmp_path / "aggregate", lambda *step: steps.append(step)) as whole,
    ):
        assert whole.to_bytes() == aggregate.to_bytes()
    assert [request.frame for request in server.requests] == [0, 2, 2, 6]
    assert server.sent == [3, 1, 5, 3]
    assert only_file(tmp_path).name == "aggregate"
    assert steps[-1] == (aggregate.nbytes, aggregate.nbytes)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})  # no byte came twice


def test_only_the_tail_is_missing(server: Server, aggregate: secagg.Update, tmp_path: Path) -> None:
    server.cuts = [8]
    with session_of(server) as session, session.download(0, tmp_path / "aggregate") as whole:
        assert whole.to_bytes() == aggregate.to_bytes()
    assert server.sent == [8, 2]


def broken_off(server: Server, folder: Path, frames: int) -> Path:
    """The part of a download that another session had to leave."""
    server.cuts = [1 + frames, 0, 0]
    server.end = grpc.StatusCode.PERMISSION_DENIED  # not tried again
    with session_of(server) as session, pytest.raises(TransportError, match="PERMISSION_DENIED"):
        session.download(0, folder / "aggregate")
    assert [request.frame for request in server.requests] == [0, frames, frames]
    server.requests.clear()
    return only_file(folder)


def test_another_session_goes_on_with_it(server: Server, aggregate: secagg.Update, tmp_path: Path) -> None:
    part = broken_off(server, tmp_path, 4)
    assert part.stat().st_mode & 0o777 == 0o600
    with session_of(server) as session, session.download(0, tmp_path / "aggregate") as whole:
        assert whole.to_bytes() == aggregate.to_bytes()
    assert [request.frame for request in server.requests] == [4]


def test_what_a_power_failure_has_left_is_cut_to_whole_frames(
    server: Server, aggregate: secagg.Update, tmp_path: Path
) -> None:
    part = broken_off(server, tmp_path, 4)
    blob = bytearray(part.read_bytes())
    blob[len(blob) // 4] ^= 1  # in frame 1
    part.write_bytes(blob)
    with session_of(server) as session, session.download(0, tmp_path / "aggregate") as whole:
        assert whole.to_bytes() == aggregate.to_bytes()
    assert [request.frame for request in server.requests] == [1]


@pytest.mark.parametrize("left", [b"", b"garbage", b"SECAGG" * 100])
def test_what_is_no_part(server: Server, aggregate: secagg.Update, tmp_path: Path, left: bytes) -> None:
    (tmp_path / ".aggregate.part").write_bytes(left)
    with session_of(server) as session, session.download(0, tmp_path / "aggregate") as whole:
        assert whole.to_bytes() == aggregate.to_bytes()
    assert [request.frame for request in server.requests] == [0]


def test_the_part_of_another_aggregate(
    server: Server, signed: Signed, aggregate: secagg.Update, tmp_path: Path
) -> None:
    broken_off(server, tmp_path, 4)
    other = server.container = signed.add(signed.encrypt([STATE, STATE, STATE], round=0))
    with session_of(server) as session, session.download(0, tmp_path / "aggregate") as whole:
        assert whole.to_bytes() == other.to_bytes()


@pytest.mark.parametrize("frame", [1, 5, 2**63])
def test_a_server_that_begins_where_it_likes(server: Server, tmp_path: Path, frame: int) -> None:
    broken_off(server, tmp_path, 4)
    server.frame = frame
    with session_of(server) as session, pytest.raises(FormatError, match=f"sent frame {frame} on"):
        session.download(0, tmp_path / "aggregate")
    assert list(tmp_path.iterdir()) == []


# The real server.


def test_the_real_server_sends_what_is_missing(signed: Signed, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "model"
    path.parent.mkdir()
    site = signed.site()
    site.encrypt_model(path, STATE, round=0, base=site.base(STATE))
    keys, whole = signed.federation.keys, path.read_bytes()
    with (
        RealServer(signed.config, keys.server, tmp_path / "run", insecure=True, project=signed.project) as real,
        session_of(real, signed) as session,
    ):
        session.save_model(path)
        with secagg.Update.open(path) as model:
            end = len(model.header.head) + list(model.header.frames)[6].offset
            head = model.header.head[-32:]
        stub = session._link._stub
        for known, frame, chunks in ((head, 6, 6), (head, 0, 12), (head, 99, 2), (bytes(32), 6, 12), (b"", 6, 12)):
            request = pb.DownloadRequest(kind="model", head=known, frame=frame)
            first, *rest = stub.Download(request, timeout=120.0)
            assert (first.frame, len(rest)) == ({6: 6, 12: 0, 2: 10}[chunks], chunks - 1)
        part = path.with_name(".model.part")
        part.write_bytes(whole[:end] + bytes(len(whole) - end))
        path.unlink()
        done: list[int] = []
        with session.load_model(path, progress=lambda count, _: done.append(count)) as model:
            assert model.to_bytes() == whole
        assert done[0] > end
        assert only_file(path.parent) == path


# What is of the wrong size.


def huge(signed: Signed, kind: str) -> secagg.Header:
    """The head of gigabytes."""
    layout = secagg.Layout.from_json([[["w"], "float32", [1 << 33], "encrypted", False]])
    with_key = signed.site().encrypt({"w": np.zeros(3, np.float32)}, round=0).header
    manifest = None if kind == "model" else with_key.manifest
    return replace(with_key, kind=kind, layout=layout, manifest=manifest)


class Flood(pb_grpc.SecureAggregationServicer):
    """Sends a head, and then zeros: it would be gigabytes."""

    def __init__(self, header: secagg.Header) -> None:
        self.header = header

    def Download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        yield pb.Chunk(data=self.header.head)
        for _ in range(64):
            yield pb.Chunk(data=bytes(1 << 20))


@pytest.mark.parametrize("kind", ["aggregate", "model"])
@pytest.mark.parametrize("known", ["layout", "project", "nothing"])
def test_a_server_that_fills_the_disk(signed: Signed, tmp_path: Path, kind: str, known: str) -> None:
    header = huge(signed, kind)
    assert header.nbytes > MAX_UNKNOWN_NBYTES
    layout = signed.site().layout(STATE)
    project = {"layout": None, "project": replace(signed.project, layout=layout), "nothing": signed.project}[known]
    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_SecureAggregationServicer_to_server(Flood(header), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with SiteSession(
            address,
            "site-1",
            tls=None,
            timeout=120.0,
            project=project,
            layout=layout if known == "layout" else None,
        ) as session:
            match = "takes 4294967296: give it layout" if known == "nothing" else r"has another layout: tensor 'w'"
            load = session.load_model if kind == "model" else session.download
            with pytest.raises((LayoutError, MismatchError), match=match):
                load(round=0, path=tmp_path / kind)
        assert list(tmp_path.iterdir()) == []
    finally:
        server.stop(None).wait()


def test_other_params_take_other_room(server: Server, signed: Signed, tmp_path: Path) -> None:
    """Params with larger ciphertexts are another way to fill a disk."""
    config = secagg.Config.from_dict({**CONFIG, "he": {"preset": "smallest"}})
    project = replace(signed.project, config=config)
    with (
        SiteSession(server.address, "site-1", tls=None, timeout=120.0, project=project) as session,
        pytest.raises(MismatchError, match="has other params than this federation"),
    ):
        session.download(0, tmp_path / "aggregate")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"max_clients": 1000}, {"max_abs": 2.0}, {"max_weight": 3.0}])
def test_another_aggregation_takes_other_room(
    server: Server, signed: Signed, tmp_path: Path, other: dict[str, float]
) -> None:
    """More sites, say, take more bits a value."""
    aggregation = replace(signed.config.aggregation, **other)  # type: ignore[arg-type]
    project = replace(signed.project, config=replace(signed.config, aggregation=aggregation))
    with (
        SiteSession(server.address, "site-1", tls=None, timeout=120.0, project=project) as session,
        pytest.raises(MismatchError, match="has another aggregation than this federation: .*max_clients=4"),
    ):
        session.download(0, tmp_path / "aggregate")
    assert list(tmp_path.iterdir()) == []


def test_what_was_uploaded_last_says_what_an_aggregate_is_like(server: Server, signed: Signed, tmp_path: Path) -> None:
    update = signed.site().encrypt({"w": np.zeros(3, np.float32)}, round=0)
    with session_of(server) as session:
        with pytest.raises(TransportError):  # this server takes no uploads
            session.upload(update)
        with pytest.raises(LayoutError, match="has another layout"):
            session.download(0, tmp_path / "aggregate")
        with pytest.raises(RoundMismatchError):
            session.download(1, tmp_path / "aggregate")
    assert list(tmp_path.iterdir()) == []
