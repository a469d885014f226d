"""When a round begins and ends: a state machine without I/O, threads or clocks.

Whoever drives it passes in the time, in seconds of any clock that never runs back, adds the updates that it
admits, and asks after each step and at the deadline what is due:

====================================================================  ==============
the roster is not empty, all of it was added, at least `min_clients`  ``COMPLETE``
the deadline has passed, at least `min_clients` were added            ``COMPLETE``
the deadline has passed, fewer were added                             ``FAIL``
anything else                                                         ``NOTHING``
====================================================================  ==============

A round that fails is opened again under its own number, as its next attempt, with nothing in the sum. The roster
is the sites that a round waits for: a site enters it by joining or uploading, and leaves it when an attempt ends
without its update. While the roster is empty, the clock stands still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from secagg.errors import (
    CapacityError,
    ConfigError,
    DuplicateError,
    QuorumError,
    RoundMismatchError,
    SecAggError,
    StateError,
)

#: Longest timeout, four months: clocks and gRPC's deadlines do not take every float.
MAX_TIMEOUT_SECONDS = 1e7

#: How many completed rounds are remembered, and how many aggregates are kept.
KEPT_ROUNDS = 2


class Admission(Enum):
    """What to do with an update."""

    ADD = "add"
    ALREADY_ADDED = "already added"


class Due(Enum):
    """What to do with the open round."""

    NOTHING = "nothing"
    COMPLETE = "complete"
    FAIL = "fail"


@dataclass(frozen=True)
class Attempt:
    """One opening of a round; `number` counts from 1."""

    round: int
    number: int


@dataclass(frozen=True)
class Snapshot:
    """How the open round stands; sites are sorted by name, `deadline` is None while the clock stands still."""

    attempt: Attempt
    added: tuple[str, ...]
    waiting_for: tuple[str, ...]
    deadline: float | None
    completed: tuple[int, ...]


class Rounds:
    """The rounds of a federation, one after another.

    Parameters
    ----------
    min_clients, max_clients : int
        Fewest updates of an aggregate; most sites in the roster.
    timeout : float
        Seconds after which a round ends without the missing sites.
    completed : mapping of int to mapping of str to bytes
        The nonces, by site, of the rounds that were completed before; the round after the last of them opens.
        Empty: round 0 opens.

    Raises
    ------
    ConfigError
        If the timeout is not a positive number.
    """

    def __init__(
        self,
        *,
        min_clients: int,
        max_clients: int,
        timeout: float,
        completed: Mapping[int, Mapping[str, bytes]] | None = None,
    ) -> None:
        if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
            raise ConfigError(f"the round timeout is {timeout} s; use above 0 and at most {MAX_TIMEOUT_SECONDS:g} s")
        self._min_clients = min_clients
        self._max_clients = max_clients
        self._timeout = timeout
        self._completed = {number: dict(nonces) for number, nonces in (completed or {}).items()}
        self._attempt = Attempt(max(self._completed, default=-1) + 1, 1)
        self._roster: set[str] = set()
        self._added: dict[str, bytes] = {}
        self._deadline: float | None = None
        self._failed: dict[str, bytes] = {}
        self._failure: SecAggError | None = None
        self._forget()

    @property
    def round(self) -> int:
        """The number of the open round."""
        return self._attempt.round

    @property
    def deadline(self) -> float | None:
        """When the open round ends at the latest; None while the roster is empty."""
        return self._deadline

    def snapshot(self) -> Snapshot:
        """Return how the open round stands."""
        waiting_for = tuple(sorted(self._roster - self._added.keys()))
        completed = tuple(sorted(self._completed))
        return Snapshot(self._attempt, tuple(sorted(self._added)), waiting_for, self._deadline, completed)

    def join(self, site: str, now: float) -> None:
        """Take `site` into the roster, if it is not in it; the first one starts the clock.

        Raises
        ------
        CapacityError
            If the roster has `max_clients` sites.
        """
        if site not in self._roster:
            if len(self._roster) >= self._max_clients:
                raise CapacityError(
                    f"{site!r} is one site too many: round {self.round} waits for max_clients = {self._max_clients}"
                )
            self._roster.add(site)
        if self._deadline is None:
            self._deadline = now + self._timeout

    def admit(self, site: str, nonce: bytes, round: int, now: float) -> Admission:
        """Return what to do with the update of `site` with `nonce`, made for `round`; the site joins by it.

        Raises
        ------
        RoundMismatchError
            If another round is open, and this very update was not added to its own.
        DuplicateError
            If another update of the site, or another site's update with the same nonce, is in the sum.
        CapacityError
            As `join`.
        """
        if round in self._completed and self._completed[round].get(site) == nonce:
            return Admission.ALREADY_ADDED
        self.join(site, now)
        if round != self.round:
            raise RoundMismatchError(f"the update of {site!r} is of round {round}; round {self.round} is open")
        if self._added.get(site) == nonce:
            return Admission.ALREADY_ADDED
        if site in self._added:
            raise DuplicateError(f"another update of {site!r} is already in the sum of round {round}")
        if nonce in self._added.values():
            raise DuplicateError(f"the nonce of the update of {site!r} is already in the sum of round {round}")
        return Admission.ADD

    def added(self, site: str, nonce: bytes, now: float) -> None:
        """Record that the update of `site` with `nonce` is now in the sum.

        Raises
        ------
        StateError
            If `admit` would not say ``ADD``.
        """
        if self.admit(site, nonce, self.round, now) is not Admission.ADD:
            raise StateError(f"the update of {site!r} was recorded twice in round {self.round}")
        self._added[site] = nonce

    def due(self, now: float) -> Due:
        """Return what is due at `now`: see the table of this module."""
        if len(self._added) >= self._min_clients and self._roster == self._added.keys():
            return Due.COMPLETE
        if self._deadline is None or now < self._deadline:
            return Due.NOTHING
        return Due.COMPLETE if len(self._added) >= self._min_clients else Due.FAIL

    def complete(self, now: float) -> None:
        """Close the round, whose aggregate is ready, and open the next one.

        Raises
        ------
        StateError
            If that is not due.
        """
        if self.due(now) is not Due.COMPLETE:
            raise StateError(f"round {self.round} cannot be completed yet: {self.due(now).value} is due")
        self._completed[self.round] = self._added
        self._failed, self._failure = {}, None
        self._open(Attempt(self.round + 1, 1), now)
        self._forget()

    def fail(self, now: float, error: SecAggError | None = None) -> None:
        """Give up the attempt and open the next one of the same round.

        Parameters
        ----------
        now : float
            Seconds.
        error : SecAggError, optional
            What those who wait for the attempt are told. By default a `QuorumError`, and then ``FAIL`` must be due.

        Raises
        ------
        StateError
            If no error is given and ``FAIL`` is not due.
        """
        if error is None:
            if self.due(now) is not Due.FAIL:
                raise StateError(f"round {self.round} has not failed: {self.due(now).value} is due")
            error = QuorumError(
                f"round {self.round} ended after {self._timeout:g} s with {len(self._added)} of at least "
                f"{self._min_clients} updates; it is open again: upload once more"
            )
        self._failed, self._failure = self._added, error
        self._open(Attempt(self.round, self._attempt.number + 1), now)

    def wait(self, round: int, nonce: bytes = b"") -> Attempt:
        """Return what somebody who wants the aggregate of `round` waits for.

        Parameters
        ----------
        round : int
            The open round or a completed one.
        nonce : bytes
            Of the update that must be in the sum of an open round; empty: any sum will do.

        Raises
        ------
        RoundMismatchError
            If the round has not begun, or is not remembered any more.
        StateError
            If the update is not in the sum (the server started anew, say): it must be uploaded again.
        SecAggError
            The error given to `fail`, by default `QuorumError`, if the update was in the attempt that failed last.
        """
        if round != self.round or not nonce or nonce in self._added.values():
            attempt = Attempt(round, self._attempt.number)
            self.ready(attempt)
            return attempt
        if self._failure is not None and nonce in self._failed.values():
            raise self._told()
        raise StateError(f"the update is not in the sum of round {round}; upload it again")

    def ready(self, attempt: Attempt) -> bool:
        """Return whether the round of `attempt` is completed; False while the attempt is open.

        Raises
        ------
        RoundMismatchError
            As `wait`.
        SecAggError
            The error given to `fail`, by default `QuorumError`, if the attempt has failed.
        """
        if attempt.round in self._completed:
            return True
        if attempt.round > self.round:
            raise RoundMismatchError(f"round {attempt.round} has not begun; round {self.round} is open")
        if attempt.round < self.round:
            kept = ", ".join(map(str, sorted(self._completed)))
            raise RoundMismatchError(f"the aggregate of round {attempt.round} is not kept any more; kept are: {kept}")
        if attempt.number < self._attempt.number and self._failure is not None:
            raise self._told()
        return False

    def _told(self) -> SecAggError:
        # A copy: each of the waiting threads raises its own.
        return type(self._failure)(*self._failure.args) if self._failure else StateError("no attempt has failed")

    def _open(self, attempt: Attempt, now: float) -> None:
        self._attempt = attempt
        self._roster, self._added = set(self._added), {}
        self._deadline = now + self._timeout if self._roster else None

    def _forget(self) -> None:
        for number in sorted(self._completed)[:-KEPT_ROUNDS]:
            del self._completed[number]
