"""What a server answers is data of somebody else: nothing of it steers a terminal, fills memory, or breaks a number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from secagg.errors import FormatError, one_line
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc.messages import unpack_join, unpack_status
from secagg.protocol import ServerStatus
from secagg.protocol.messages import MAX_TROUBLE_LENGTH
from secagg.site import Joined
from secagg.site.replies import read_joined, read_status

STATUS = {"round": 3, "attempt": 2, "state": "open", "added": ["site-1"], "seconds_left": 60.0, "time": 1e9}
JOINED = {"round": 3, "round_timeout": 60.0, "key": "ab" * 32}


def read(**fields: Any) -> ServerStatus:
    return read_status(unpack_status(pb.StatusReply(**fields)))


def joined(**fields: Any) -> Joined:
    return read_joined(unpack_join(pb.JoinReply(**fields)), None, "site-1")


def test_what_makes_sense() -> None:
    status = read(**STATUS, aggregates=[1, 2])
    assert (status.round, status.added, status.aggregates, status.seconds_left) == (3, ("site-1",), (1, 2), 60.0)
    assert read(state="idle").seconds_left is None
    assert joined(**JOINED).round == 3


def test_what_an_operator_is_told() -> None:
    assert (read(**STATUS).disk_free, read(**STATUS).trouble) == (
        None,
        "",
    )
    assert read(**STATUS, disk_free=0).disk_free == 0
    status = read(**STATUS, disk_free=2**64 - 1, trouble="\x1b[2Jall is well\n" + 10_000 * "\n")
    assert status.disk_free == 2**64 - 1
    assert status.trouble.startswith(r"\x1b[2Jall is well\n")
    assert status.trouble.isprintable()
    assert len(status.trouble) == MAX_TROUBLE_LENGTH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 1 << 32}, "names round 4294967296"),
        ({"round": 2**64 - 1}, "rounds are below"),
        ({"models": [1, 1 << 40]}, "names round 1099511627776"),
        ({"aggregates": [1 << 32]}, "names round"),
        ({"state": ""}, "names the state ''"),
        ({"stage": "scales"}, "names the stage 'scales'; it is one of calibration, update"),
        ({"state": "open\x1b]0;owned\x07"}, r"names the state 'open\\x1b\]0;owned\\x07'"),
        (
            {"added": ["site-1\x1b[31m\nclock        0.0 s"]},
            r"a site that is none: site name 'site-1\\x1b\[31m\\nclock",
        ),
        ({"waiting_for": [""]}, "a site that is none"),
        ({"seconds_left": math.inf}, "inf s left"),
        ({"seconds_left": math.nan}, "nan s left"),
        ({"time": math.nan}, "the time nan s"),
        ({"time": -math.inf}, "the time -inf s"),
    ],
)
def test_a_status_that_is_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read(**STATUS | change)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 1 << 32}, "names round 4294967296"),
        ({"key": ""}, "names the key ''"),
        ({"key": "ab" * 31 + "\x1b["}, "names the key"),
        ({"key": "AB" * 32}, "names the key"),
    ],
)
def test_an_answer_to_joining_that_is_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        joined(**JOINED | change)
    assert str(caught.value).isprintable()


def test_one_line() -> None:
    assert one_line("σ is 3 % too large") == "σ is 3 % too large"
    assert one_line("\x1b[2J\nsecagg: all is well\u202e") == r"\x1b[2J\nsecagg: all is well\u202e"
