"""Messages of a transport that carries anything: JSON, say, whose numbers have signs and points."""

from __future__ import annotations

from typing import Any

import pytest

from secagg.errors import CapacityError, DecryptionError, FormatError, IdentityError, SecAggError
from secagg.protocol import Chunk, DownloadRequest, JoinReply, Refusal, ServerStatus, UploadReply, shown

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


JOINED: dict[str, Any] = {"round": 3, "min_clients": 2, "max_clients": 4, "round_timeout": 60.0, "key": "ab" * 32}
STATUS: dict[str, Any] = {
    "round": 3,
    "attempt": 1,
    "state": "open",
    "added": (),
    "waiting_for": ("a",),
    "seconds_left": None,
    "uploads_in_flight": 0,
    "disk_used": 5,
    "disk_quota": 10,
    "epoch": 0,
    "models": (3,),
    "aggregates": (1, 2),
}


@pytest.mark.parametrize("number", [-1, 0.5, float("nan"), True, "1", None])
@pytest.mark.parametrize("what", ["round", "min_clients", "max_clients", "epoch"])
def test_an_answer_to_joining_with_counts_that_are_none(what: str, number: Any) -> None:
    JoinReply(**JOINED)
    with pytest.raises(FormatError, match=f"names {what} "):
        JoinReply(**JOINED | {what: number})


@pytest.mark.parametrize("what", ["round", "attempt", "uploads_in_flight", "disk_used", "disk_quota", "epoch"])
def test_a_status_with_counts_that_are_none(what: str) -> None:
    ServerStatus(**STATUS)
    for number in NO_COUNTS:
        with pytest.raises(FormatError, match=f"names {what} "):
            ServerStatus(**STATUS | {what: number})
        with pytest.raises(FormatError, match="names aggregates "):
            ServerStatus(**STATUS | {"aggregates": (1, number)})


@pytest.mark.parametrize("number", ["60", True, [1.0]])
def test_numbers_that_are_none(number: Any) -> None:
    with pytest.raises(FormatError, match="names round_timeout"):
        JoinReply(**JOINED | {"round_timeout": number})
    with pytest.raises(FormatError, match="names time"):
        ServerStatus(**STATUS | {"time": number})


class OwnError(CapacityError):
    """Of a plug-in."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [(CapacityError("full"), CapacityError), (OwnError("full"), CapacityError), (DecryptionError(), SecAggError)],
)
def test_what_a_server_says_of_an_error(error: SecAggError, kind: type[SecAggError]) -> None:
    """The nearest type that a server can name; that something did not decrypt is none."""
    assert type(Refusal.of(error).error()) is kind


@pytest.mark.parametrize("kind", ["", "ValueError", "__name__", "DecryptionError", "EpochError"])
def test_what_a_server_cannot_say(kind: str) -> None:
    assert Refusal(kind, "message").error() is None


def test_text_of_the_other_side() -> None:
    error = Refusal("CapacityError", "\x1b[2J\nfull" + 10_000 * "!").error()
    assert str(error).startswith(r"\x1b[2J\nfull!")
    assert len(str(error)) == 2000
    assert shown("σ\u202e") == r"σ\u202e"


def test_the_manifest_of_the_server_travels_with_an_identity_error() -> None:
    error = IdentityError("who is this")
    error.manifest = 7
    again = Refusal.of(error).error()
    assert isinstance(again, IdentityError)
    assert (again.manifest, str(again)) == (7, "who is this")
    assert Refusal.of(IdentityError("who is this")).manifest is None
