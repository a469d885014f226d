"""The messages between sites and server, before a transport packs them; what they carry: docs/wire-format.md."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import FormatError, show

#: Longest timeout, four months: clocks and the deadlines of transports do not take every float.
MAX_TIMEOUT_SECONDS = 1e7

#: How many completed rounds are remembered, and how many aggregates are kept.
KEPT_ROUNDS = 2

#: Characters of `ServerStatus.trouble`.
MAX_TROUBLE_LENGTH = 500


class BusyError(Exception):
    """There is no turn for this call now, or it broke off: that says nothing about it, and it may come again.

    A transport never tells it to the other side as a typed error.
    """


class BrokenOffError(Exception):
    """The other side of a call has gone: raised by the messages that a transport hands to a server."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a container on its way, an update say: its head first, then frames, then the tail.

    Parameters
    ----------
    data : bytes or memoryview
        The piece; a view is valid until the next chunk is taken.
    frame : int
        Of the first chunk: index of the first frame that follows the head. The number of frames: only the tail does.

    Raises
    ------
    FormatError
        If the piece is not of bytes, or the frame no whole number from 0 on: not every transport's messages have types.
    """

    data: bytes | memoryview
    frame: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes | memoryview):  # bytes(n) would be n of them
            raise FormatError(f"a chunk is of type {type(self.data).__name__}; it has bytes")
        _check_count("frame", self.frame)


@dataclass(frozen=True)
class JoinReply:
    """What a server answers to a site that joins; nothing in it has been checked.

    Parameters
    ----------
    round : int
        The open round.
    min_clients, max_clients : int
        Of the server's configuration.
    round_timeout : float
        Seconds after which a round ends without the missing sites.
    key : str
        Fingerprint of the server key, hexadecimal.
    epoch : int
        Of the server key.
    project : bytes
        The signed project manifest; empty: the server has none.
    base : bytes or None
        Digest of the global model that the round's updates must begin from; None: not known.
    deposits : bool
        Whether the server takes updates by its bucket, too.

    Raises
    ------
    FormatError
        If a number is none, or a count no whole number from 0 on.
    """

    round: int
    min_clients: int
    max_clients: int
    round_timeout: float
    key: str
    epoch: int = 0
    project: bytes = b""
    base: bytes | None = None
    deposits: bool = False

    def __post_init__(self) -> None:
        for what in ("round", "min_clients", "max_clients", "epoch"):
            _check_count(what, getattr(self, what))
        _check_number("round_timeout", self.round_timeout)


@dataclass(frozen=True)
class UploadReply:
    """What a server answers to a head, and to a whole upload.

    Parameters
    ----------
    already_added : bool
        Whether this very update or calibration, by its nonce, was in the sum before, or the same model stored.
    receipt : bytes
        The server's signed promise that the update is in the aggregate of its round; empty: it has no identity, or
        the update is not there yet, or it is none.
    frame : int
        Of an answer to a head: the frame that the server wants next. The number of frames: only the tail is missing.

    Raises
    ------
    FormatError
        If the frame is no whole number from 0 on.
    """

    already_added: bool
    receipt: bytes = b""
    frame: int = 0

    def __post_init__(self) -> None:
        _check_count("frame", self.frame)


@dataclass(frozen=True)
class PartTarget:
    """Where one part of an update is to be put.

    Parameters
    ----------
    number : int
        Of the part, from 1.
    offset, nbytes : int
        Which bytes of the update, its head included.
    url : str
        Takes one PUT of just so many bytes. Whoever has it can make that: it is shown nowhere.

    Raises
    ------
    FormatError
        If a number is no whole number from 0 on, or the URL no text.
    """

    number: int
    offset: int
    nbytes: int
    url: str = field(repr=False)

    def __post_init__(self) -> None:
        for what in ("number", "offset", "nbytes"):
            _check_count(what, getattr(self, what))
        if not isinstance(self.url, str):
            raise FormatError("a message names a URL that is no text")


@dataclass(frozen=True)
class DepositReply:
    """What a server that takes updates by its bucket answers to a head.

    Parameters
    ----------
    already_added : bool
        Whether this very update, by its nonce, was in the sum before.
    receipt : bytes
        As of `UploadReply`, once it is in the sum.
    done : bool
        Whether it lies in the bucket whole, was verified, and is in the sum by this call.
    parts : tuple of PartTarget
        Else: some of the parts that are missing.
    """

    already_added: bool = False
    receipt: bytes = b""
    done: bool = False
    parts: tuple[PartTarget, ...] = ()


@dataclass(frozen=True)
class DownloadRequest:
    """What a site wants to have.

    Parameters
    ----------
    kind : str
        ``"aggregate"``, ``"scales"`` or ``"model"``.
    round : int or None
        Which round; of a model None: the newest one.
    nonce : bytes
        Of the own update that must be in the aggregate, or calibration in the scales; empty: none.
    head : bytes
        Digest of the head of what an earlier download broke off from; empty: nothing is there.
    frame : int
        The first frame that is wanted of that; of anything else all frames are sent.

    Raises
    ------
    FormatError
        If round or frame is no whole number from 0 on.
    """

    kind: str
    round: int | None = None
    nonce: bytes = b""
    head: bytes = b""
    frame: int = 0

    def __post_init__(self) -> None:
        _check_count("frame", self.frame)
        if self.round is not None:
            _check_count("round", self.round)


@dataclass(frozen=True)
class SkipRequest:
    """What a site says that has no update to give to a round, which does not wait for it then.

    Parameters
    ----------
    site : str
        The site, whose certificate bears the same name.
    round : int
        Which round.

    Raises
    ------
    FormatError
        If the round is no whole number from 0 on.
    """

    site: str
    round: int

    def __post_init__(self) -> None:
        _check_count("round", self.round)


@dataclass(frozen=True)
class ServerStatus:
    """How the open round and the server's resources stand.

    Parameters
    ----------
    round, attempt : int
        The open round; attempts count from 1, in each stage.
    state : str
        ``"idle"`` while the clock stands still, until a site joins; else ``"open"``.
    added, waiting_for : tuple of str
        Sites in the sum of the stage; sites of the roster that it still waits for. Both sorted by name.
    seconds_left : float or None
        Until the round timeout; None when idle.
    uploads_in_flight : int
        Uploads that are being received.
    disk_used, disk_quota : int
        Bytes that the run folder takes, with what uploads under way have announced; bytes that it may take.
    epoch : int
        Of the server key.
    models, aggregates : tuple of int
        Rounds whose models and aggregates can be downloaded.
    base : bytes or None
        Digest of the global model that updates of the open round must begin from; None if it is not known.
    project_serial : int
        Of the project manifest; 0 if there is none.
    disk_free : int or None
        Bytes that the file system of the run folder has left; None if a server of another release does not tell.
    trouble : str
        Why the sum of the open stage could not be stored at the last attempt, in one line; empty if nothing is wrong,
        or no more.
    time : float
        The server's clock, in seconds since 1970, UTC.
    skipped : tuple of str
        Sites that have no update to give to the open round, sorted by name.
    stage : str
        ``"calibration"`` or ``"update"``: what the open round adds now; empty where no round has a calibration.

    Raises
    ------
    FormatError
        If a number is none, or a count no whole number from 0 on.
    """

    round: int
    attempt: int
    state: str
    added: tuple[str, ...]
    waiting_for: tuple[str, ...]
    seconds_left: float | None
    uploads_in_flight: int
    disk_used: int
    disk_quota: int
    epoch: int
    models: tuple[int, ...]
    aggregates: tuple[int, ...]
    base: bytes | None = None
    project_serial: int = 0
    disk_free: int | None = None
    trouble: str = ""
    time: float = 0.0
    skipped: tuple[str, ...] = ()
    stage: str = ""

    def __post_init__(self) -> None:
        counts = ("round", "attempt", "uploads_in_flight", "disk_used", "disk_quota", "epoch", "project_serial")
        for what in counts:
            _check_count(what, getattr(self, what))
        for what, numbers in (("models", self.models), ("aggregates", self.aggregates)):
            for number in numbers:
                _check_count(what, number)
        if self.disk_free is not None:
            _check_count("disk_free", self.disk_free)
        for what in ("time", "seconds_left"):
            _check_number(what, getattr(self, what) or 0.0)


def _check_count(what: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise FormatError(f"a message names {what} {show(number)}; it is a whole number from 0 on")


def _check_number(what: str, number: object) -> None:
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise FormatError(f"a message names {what} {show(number)}; it is a number")
