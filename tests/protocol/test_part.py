"""What is received into a file: frames are checked as they come, and once only as long as the file stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import secagg
from secagg.errors import DigestError, FormatError
from secagg.protocol.part import Part
from secagg.wire import update as wire_update

CONFIG = secagg.Config.from_dict(
    {
        "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 16}},
        "encrypt": "all",
        "aggregation": {"min_clients": 3, "max_clients": 3, "max_abs": 1.0, "max_weight": 1.0},
    }
)
KEYS = secagg.generate_keys(CONFIG)


@pytest.fixture(scope="module")
def update() -> secagg.Update:
    """One of several frames."""
    made = secagg.Client(CONFIG, KEYS.client, "site-1").encrypt({"w": np.full(900_000, 0.5, np.float32)})
    assert made.header.frame_count > 2
    return made


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of frames whose digests are computed while an update is read."""
    frames: list[int] = []
    compute = wire_update.frame_digest

    def count(head: bytes, index: int, payload: bytes) -> bytes:
        frames.append(index)
        return compute(head, index, payload)

    monkeypatch.setattr(wire_update, "frame_digest", count)
    return frames


def part_of(update: secagg.Update, path: Path) -> Part:
    return Part.create(path, update.header, "cannot write")


def chunks_of(update: secagg.Update) -> list[bytes]:
    return [bytes(chunk) for chunk in update.chunks()][1:]


def test_what_was_checked_on_its_way_is_not_checked_again(tmp_path, update, checked):
    aggregator = secagg.Aggregator(CONFIG, KEYS.server)
    with part_of(update, tmp_path / "part") as part:
        part.receive(0, chunks_of(update), lambda: None)
        with part.open() as received:
            assert received.verified
            aggregator.add(received)
            assert received == update
    assert aggregator.sites == ("site-1",)
    assert checked == []


def test_frames_of_an_earlier_stream_are_checked(tmp_path, update, checked):
    chunks = chunks_of(update)
    with part_of(update, tmp_path / "part") as part:
        with pytest.raises(secagg.protocol.BusyError):
            part.receive(0, chunks[:1], lambda: None)
        part.receive(1, chunks[1:], lambda: None)
        with part.open() as received:
            assert not received.verified
            secagg.Aggregator(CONFIG, KEYS.server).add(received)
    assert checked == list(range(update.header.frame_count))


@pytest.mark.parametrize("opened_before", [False, True])
def test_a_file_that_changed_since_is_checked_again(tmp_path, update, opened_before):
    aggregator = secagg.Aggregator(CONFIG, KEYS.server)
    with part_of(update, tmp_path / "part") as part:
        part.receive(0, chunks_of(update), lambda: None)
        received = part.open() if opened_before else None
        with (tmp_path / "part").open("r+b") as file:
            file.seek(len(update.header.head) + 5)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        with received or part.open() as received:
            assert not received.verified
            with pytest.raises(DigestError, match="frame 0 is damaged"):
                aggregator.add(received)
    assert (aggregator.sites, aggregator.closed) == ((), False)


def test_a_damaged_frame_is_refused_as_it_comes(tmp_path, update):
    chunks, asked = chunks_of(update), []

    def come():
        for index, chunk in enumerate(chunks):
            asked.append(index)
            yield chunk[:7] + bytes([chunk[7] ^ 1]) + chunk[8:] if index == 1 else chunk

    with part_of(update, tmp_path / "part") as part, pytest.raises(DigestError, match="frame 1 is damaged"):
        part.receive(0, come(), lambda: None)
    assert (asked, part.frame) == ([0, 1], 1)


def test_the_frames_of_another_update_do_not_make_the_body_of_the_tail(tmp_path, update):
    """Each frame fits the head, and so does the tail; together they are no update."""
    *frames, tail = chunks_of(update)
    other = secagg.wire.tail.Tail(
        update.tail.tags, (secagg.wire.tail.Proof(bytes(32), update.tail.proofs[0].signature),)
    )
    forged = other.pack(update.header.head, update.header.frame_count)
    assert len(forged) == len(tail)
    with part_of(update, tmp_path / "part") as part:
        part.receive(0, [*frames, forged], lambda: None)
        with pytest.raises(DigestError, match="the body"):
            part.open()


def test_a_damaged_tail_is_found_when_the_whole_is_opened(tmp_path, update):
    *frames, tail = chunks_of(update)
    with part_of(update, tmp_path / "part") as part:
        part.receive(0, [*frames, bytes(len(tail))], lambda: None)
        with pytest.raises(FormatError, match="tail"):
            part.open()
