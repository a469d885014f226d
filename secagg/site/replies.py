"""What a site checks in what a server answers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import secagg

from ..errors import (
    ConfigError,
    FormatError,
    IdentityError,
    KeyMismatchError,
    SignatureError,
    one_line,
)
from ..protocol.messages import MAX_TIMEOUT_SECONDS, MAX_TROUBLE_LENGTH, JoinReply, ServerStatus
from ..wire.container import DIGEST_NBYTES
from ..wire.header import MAX_ROUND, check_site

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_STATES = ("idle", "open")
_STAGES = ("", "calibration", "update")


@dataclass(frozen=True)
class Joined:
    """What the server answers to a site that joins, checked.

    Parameters
    ----------
    round : int
        The open round: updates must be of this round.
    min_clients, max_clients : int
        Of the server's configuration.
    round_timeout : float
        Seconds after which a round ends without the missing sites.
    key : str
        Fingerprint of the server key, to be held against the site's own.
    epoch : int
        Epoch of the server key.
    base : bytes or None
        Digest of the global model that updates of the open round must begin from, 32 bytes; None if it is not known
        yet: then the first update fixes it.
    project : secagg.Project or None
        The server's project manifest, verified as the session's own or a later one; None if the session has none.
    manifest : bytes
        The same, signed, as the server sent it: what a site stores. Empty if `project` is None.
    deposits : bool
        Whether updates go by the server's bucket: it has one, and the manifest names hosts for it.
    """

    round: int
    min_clients: int
    max_clients: int
    round_timeout: float
    key: str
    epoch: int = 0
    base: bytes | None = None
    project: secagg.Project | None = None
    manifest: bytes = field(default=b"", repr=False)
    deposits: bool = False


@dataclass(frozen=True)
class Uploaded:
    """What the server answers to an update: it is on the server's disk and in the sum of its round.

    Parameters
    ----------
    already_added : bool
        Whether this very update had been added before, by an upload whose answer was lost.
    receipt : secagg.Receipt or None
        The server's signed promise, verified; None if the session has no project manifest to verify it with.
    """

    already_added: bool
    receipt: secagg.Receipt | None = None


def read_joined(reply: JoinReply, own: secagg.Project | None, site: str) -> Joined:
    """Return what a server answers to `site`, whose manifest is `own`; errors as of `Session.join`."""
    if not 0 < reply.round_timeout <= MAX_TIMEOUT_SECONDS:  # deadlines do not take every float
        raise FormatError(f"the server names a round timeout of {reply.round_timeout} s; that is none")
    if not _FINGERPRINT.fullmatch(reply.key):
        raise FormatError(f"the server names the key {reply.key!r:.80}; a fingerprint has 64 hexadecimal digits")
    project = None if own is None else _successor(reply, own, site)
    return Joined(
        round=_round(reply.round),
        min_clients=reply.min_clients,
        max_clients=reply.max_clients,
        round_timeout=reply.round_timeout,
        key=reply.key,
        epoch=reply.epoch,
        base=_base(reply.base),
        project=project,
        manifest=b"" if own is None else reply.project,
        deposits=bool(reply.deposits and project is not None and project.storage),
    )


def read_status(reply: ServerStatus) -> ServerStatus:
    """Return what a server answers to whoever asks how it stands; `FormatError` if it makes no sense."""
    if reply.state not in _STATES:
        raise FormatError(f"the server names the state {reply.state!r:.80}; it is one of {', '.join(_STATES)}")
    if reply.stage not in _STAGES:
        raise FormatError(f"the server names the stage {reply.stage!r:.80}; it is one of {', '.join(_STAGES[1:])}")
    if not (math.isfinite(reply.time) and math.isfinite(reply.seconds_left or 0.0)):
        raise FormatError(f"the server names the time {reply.time} s, and {reply.seconds_left} s left; that is none")
    return replace(
        reply,
        round=_round(reply.round),
        added=_names(reply.added),
        skipped=_names(reply.skipped),
        waiting_for=_names(reply.waiting_for),
        models=tuple(map(_round, reply.models)),
        aggregates=tuple(map(_round, reply.aggregates)),
        base=_base(reply.base),
        trouble=one_line(reply.trouble)[:MAX_TROUBLE_LENGTH],
    )


def read_receipt(blob: bytes, update: secagg.Update, project: secagg.Project) -> secagg.Receipt:
    """Return the receipt for `update`.

    Raises
    ------
    SignatureError
        If there is none, or the server of the project has not signed it.
    VerificationError, FormatError
        If it is for another update, or is none.
    """
    if not blob:
        raise SignatureError(f"the server of project {project.name} took the update and gave no receipt: has it a kit?")
    receipt = secagg.Receipt.from_bytes(blob)
    receipt.check(update, project)
    return receipt


def _successor(reply: JoinReply, own: secagg.Project, site: str) -> secagg.Project:
    """Return the server's manifest, held against the site's own, the clock and the server's key."""
    if not reply.project:
        raise IdentityError(f"the server shows no manifest of project {own.name}; start it with the server's kit")
    project = own.successor(reply.project)
    if project.server.certificate != own.server.certificate:  # the connection is held to the one that is replaced
        raise IdentityError(
            f"there has been a rotation: manifest {project.serial} names another certificate of the server than this "
            f"kit's, {own.serial}: unpack the newest kit of {site}"
        )
    project.check_time()
    project.site(site)
    if (reply.epoch, reply.key) != (project.epoch, project.key):
        raise KeyMismatchError(
            f"the server adds under key {reply.key[:16]}… of epoch {reply.epoch}, its manifest says "
            f"{project.key[:16]}… of epoch {project.epoch}: unpack the server's newest kit"
        )
    return project


def _round(number: int) -> int:
    if not 0 <= number < MAX_ROUND:
        raise FormatError(f"the server names round {number}; rounds are below {MAX_ROUND}")
    return number


def _names(names: Iterable[str]) -> tuple[str, ...]:
    try:
        return tuple(map(check_site, names))
    except ConfigError as error:
        raise FormatError(f"the server names a site that is none: {error}") from error


def _base(digest: bytes | None) -> bytes | None:
    if digest and len(digest) != DIGEST_NBYTES:
        raise FormatError(f"the server names a global model by {len(digest)} bytes; a digest has {DIGEST_NBYTES}")
    return digest or None
