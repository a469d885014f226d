"""Messages of a transport that carries anything: JSON, say, whose numbers have signs and points."""

from __future__ import annotations

from typing import Any

import pytest

from secagg.errors import FormatError
from secagg.protocol import Chunk, DownloadRequest, UploadReply

NO_COUNTS = [-1, 0.5, 1.0, float("nan"), True, "1", None]


@pytest.mark.parametrize("frame", NO_COUNTS)
def test_a_frame_that_is_none(frame: Any) -> None:
    for make in (
        lambda: Chunk(b"", frame),
        lambda: UploadReply(already_added=False, frame=frame),
        lambda: DownloadRequest("aggregate", 0, frame=frame),
    ):
        with pytest.raises(FormatError, match="names frame .*; it is a whole number from 0 on"):
            make()


@pytest.mark.parametrize("round", [round for round in NO_COUNTS if round is not None])
def test_a_round_that_is_none(round: Any) -> None:
    with pytest.raises(FormatError, match="names round .*; it is a whole number from 0 on"):
        DownloadRequest("aggregate", round)
    DownloadRequest("model", None)


@pytest.mark.parametrize("data", [1 << 50, "text", None, [1, 2]])
def test_a_chunk_without_bytes(data: Any) -> None:
    with pytest.raises(FormatError, match=f"a chunk is of type {type(data).__name__}; it has bytes"):
        Chunk(data)
