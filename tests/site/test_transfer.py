"""Downloads over a link that breaks: what is there stays for the next one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

import secagg
from secagg.errors import FormatError, IdentityError, RoundMismatchError, SecAggError, StorageError
from secagg.protocol import BusyError, Chunk, DownloadRequest, JoinReply, UploadReply
from secagg.protocol.chunks import chunks_from
from secagg.site import Session
from secagg.site.transfer import Sender, fetch

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 24}},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0},
}
FRAMES = 2


class Broken:
    """A link whose downloads fail after so many frames."""

    def __init__(self, update: secagg.Update, error: Exception | None) -> None:
        self.update, self.error = update, error
        self.asked: list[int] = []

    def download(self, request: DownloadRequest, seconds: float) -> Generator[Chunk, None, None]:
        self.asked.append(request.frame)
        for number, chunk in enumerate(chunks_from(self.update, request.frame)):
            if number > FRAMES and self.error is not None:
                raise self.error
            yield chunk


@pytest.fixture(scope="module")
def aggregate() -> secagg.Update:
    config = secagg.Config.from_dict(CONFIG)
    keys = secagg.generate_keys(config)
    aggregator = secagg.Aggregator(config, keys.server, round=0)
    for name in ("a", "b"):
        aggregator.add(secagg.Client(config, keys.client, name=name).encrypt({"w": np.zeros(1 << 20, np.float32)}))
    return secagg.Update.from_bytes(aggregator.finish().to_bytes())


@pytest.mark.parametrize("error", [BusyError("away"), IdentityError("the server's certificate has expired")])
def test_the_part_stays_if_nothing_is_said_about_it(aggregate: secagg.Update, tmp_path: Path, error: Exception) -> None:
    link, target = Broken(aggregate, error), tmp_path / "aggregate"
    assert aggregate.header.frame_count > FRAMES
    with pytest.raises(type(error)):
        fetch(link, DownloadRequest("aggregate", 0), target, 60.0, lambda header: None)  # type: ignore[arg-type]
    link.error = None
    fetch(link, DownloadRequest("aggregate", 0), target, 60.0, lambda header: None)  # type: ignore[arg-type]
    assert link.asked == [0, FRAMES]
    assert target.read_bytes() == aggregate.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["aggregate"]


def test_an_error_of_the_link_is_none_of_the_disk(aggregate: secagg.Update, tmp_path: Path) -> None:
    link, target = Broken(aggregate, ConnectionResetError("by the peer")), tmp_path / "aggregate"
    with pytest.raises(BusyError, match="by the peer"):
        fetch(link, DownloadRequest("aggregate", 0), target, 60.0, lambda header: None)  # type: ignore[arg-type]
    link.error = None
    fetch(link, DownloadRequest("aggregate", 0), target, 60.0, lambda header: None)  # type: ignore[arg-type]
    assert link.asked == [0, FRAMES]


@pytest.mark.parametrize("error", [FormatError("a chunk of 7 bytes"), StorageError("the disk is full")])
def test_the_part_goes_if_it_is_refused(aggregate: secagg.Update, tmp_path: Path, error: SecAggError) -> None:
    link = Broken(aggregate, error)
    with pytest.raises(type(error)):
        fetch(link, DownloadRequest("aggregate", 0), tmp_path / "aggregate", 60.0, lambda header: None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class Counting:
    """A link whose uploads break until the server has all frames, and the calls that it saw."""

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks
        self.calls: list[tuple[str, int]] = []

    def resume(self, head: bytes, seconds: float) -> UploadReply:
        self.calls.append(("resume", 1))
        return UploadReply(already_added=False, frame=1)

    def upload(self, chunks: Iterator[Chunk], seconds: float) -> UploadReply:
        self.calls.append(("upload", next(chunks).frame))
        if len(self.calls) <= self.breaks:
            raise BusyError("broken off")
        return UploadReply(already_added=False)


@pytest.mark.parametrize(("values", "asks"), [(900_000, False), (1_200_000, True)])
def test_what_is_small_is_first_sent_without_asking(values: int, asks: bool) -> None:
    config = secagg.Config.from_dict(CONFIG)
    site = secagg.Client(config, secagg.generate_keys(config).client, "a")
    update = site.encrypt({"w": np.zeros(values, np.float32)})
    assert (update.nbytes > 4 << 20) is asks
    assert update.header.frame_count > 1
    link = Counting(breaks=1)
    sender = Sender(link, update)  # type: ignore[arg-type]
    if asks:
        link.breaks = 2
    with pytest.raises(BusyError):
        sender(60.0)
    assert sender(60.0) == (False, b"")
    first = [("resume", 1), ("upload", 1)] if asks else [("upload", 0)]
    assert link.calls == [*first, ("resume", 1), ("upload", 1)]


class Patient:
    """A link that notes how long a download may take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def join(self, site: str, seconds: float) -> JoinReply:
        return JoinReply(round=0, min_clients=2, max_clients=4, round_timeout=1000.0, key="0" * 64)

    def upload(self, chunks: Iterator[Chunk], seconds: float) -> UploadReply:
        return UploadReply(already_added=True)

    def download(self, request: DownloadRequest, seconds: float) -> Generator[Chunk, None, None]:
        self.seconds.append(seconds)
        raise RoundMismatchError("not kept any more")

    def close(self) -> None:
        """Do nothing."""


def test_who_gives_nothing_waits_for_both_stages_of_a_round(tmp_path: Path) -> None:
    """A site that skips a round waits for the calibration of the others, and then for their updates."""
    config = secagg.Config.from_dict(CONFIG)
    site = secagg.Client(config, secagg.generate_keys(config).client, "a")
    link = Patient()
    with Session(link, "a", timeout=10.0) as session:  # type: ignore[arg-type]
        session.join()
        for _ in range(2):
            with pytest.raises(RoundMismatchError):
                session.download(0, tmp_path / "aggregate")
            session.upload(site.encrypt({"w": np.zeros(3)}))
    assert [round(seconds) for seconds in link.seconds] == [2010, 1010]
