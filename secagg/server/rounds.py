"""When a round begins and ends: a state machine without I/O, threads or clocks.

Whoever drives it passes in the time, in seconds of any clock that never runs back, adds what it admits, and asks after
each step and at `wake` what is due:

===============================================================================  ==============
all of the roster was added or has skipped, at least `min_clients` were added    ``COMPLETE``
the deadline has passed, at least `min_clients` were added                       ``COMPLETE``
the deadline has passed, none was added, all of the roster has skipped           ``LAPSE``
the deadline has passed, fewer were added                                        ``FAIL``
anything else                                                                    ``NOTHING``
===============================================================================  ==============

Where scales are measured in the round, it has two stages, each with a sum, a clock and attempts of its own:

==================  ===================  =============================================================================
stage               what is added        ``COMPLETE`` makes
==================  ===================  =============================================================================
``"calibration"``   calibrations         the scales, and opens the next stage: it waits for the whole roster, those who
                                         have missed the calibration among them; who skips the round skips this, too
``"update"``        updates              the aggregate, and opens the next round
==================  ===================  =============================================================================

Elsewhere each round has the stage of updates alone.

An attempt that fails ends for those who wait, and for the clock, but not for the sum: the stage goes on in its round,
as its next attempt, with all that was added. Whoever was told that an update is in the sum will find it in the
aggregate. The roster is the sites that a stage waits for: a site enters it by joining or uploading, and leaves it when
an attempt ends without what it should have added. While the roster is empty, the clock stands still.

An attempt lapses to which nobody gives anything, as after the last round of a training: it goes on for whoever joins
next, with a clock of its own, and only those are told who have waited for it in vain.

A site with nothing to give says that it skips the round, and is not waited for then: one that has calibrated, for its
update. It may join or upload all the same while the round is open. The next round waits for it, unless the attempt
fails: then it must join again.

To complete a stage takes time: `seal` it first, so that nothing is due and nothing is added meanwhile, then call
`complete`, or `unseal` if the sum could not be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from ..errors import (
    CapacityError,
    ConfigError,
    DuplicateError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    StateError,
)
from ..protocol.messages import KEPT_ROUNDS, MAX_TIMEOUT_SECONDS

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


class Due(Enum):
    """What to do with the open stage."""

    NOTHING = "nothing"
    COMPLETE = "complete"
    LAPSE = "lapse"
    FAIL = "fail"


@dataclass(frozen=True)
class Attempt:
    """One opening of a stage of a round; `number` counts from 1 in each stage."""

    round: int
    number: int
    stage: str = "update"


@dataclass(frozen=True)
class Waiting:
    """What somebody waits for who came after so many `ends`; with a `nonce`, who has added to the sum of the stage."""

    round: int
    ends: int
    nonce: bytes
    stage: str = "update"


@dataclass(frozen=True)
class Snapshot:
    """How the open stage stands.

    Sites are sorted by name. One that has calibrated and skips the round is in `added` and in `skipped`. `deadline` is
    None while the clock stands still. `completed` and `scaled` are the rounds whose aggregates and scales are there.
    """

    attempt: Attempt
    added: tuple[str, ...]
    skipped: tuple[str, ...]
    waiting_for: tuple[str, ...]
    deadline: float | None
    completed: tuple[int, ...]
    scaled: tuple[int, ...] = ()


class Rounds:
    """The rounds of a federation, one after another.

    Parameters
    ----------
    min_clients, max_clients : int
        Fewest contributions to a sum; most sites in the roster.
    timeout : float
        Seconds after which a stage ends without the missing sites.
    completed : mapping of int to mapping of str to bytes
        The nonces, by site, of the updates of rounds that were completed before; the round after the last of them
        opens. Empty: round 0 opens.
    calibrated : bool
        Whether rounds begin with a calibration.
    scaled : mapping of int to mapping of str to bytes
        The nonces, by site, of the calibrations whose scales are there; if those of the round that opens are, it opens
        with its updates.

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
        calibrated: bool = False,
        scaled: Mapping[int, Mapping[str, bytes]] | None = None,
    ) -> None:
        if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
            raise ConfigError(f"the round timeout is {timeout} s; use above 0 and at most {MAX_TIMEOUT_SECONDS:g} s")
        self._min_clients = min_clients
        self._max_clients = max_clients
        self._timeout = timeout
        self._completed = {number: dict(nonces) for number, nonces in (completed or {}).items()}
        self._scaled = {number: dict(nonces) for number, nonces in (scaled or {}).items()}
        self._first_stage = "calibration" if calibrated else "update"
        round = max(self._completed, default=-1) + 1
        self._attempt = Attempt(round, 1, "update" if round in self._scaled else self._first_stage)
        self._roster: set[str] = set()
        self._added: dict[str, bytes] = {}
        self._skipped: set[str] = set()
        self._deadline: float | None = None
        self._failure: SecAggError | None = None
        self._ends = 0  # of attempts that those who waited were told of
        self._sealed = False
        self._retry: float | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._forget()

    @property
    def attempt(self) -> Attempt:
        """The open round, its stage, and how often that was opened."""
        return self._attempt

    @property
    def round(self) -> int:
        """The number of the open round."""
        return self._attempt.round

    @property
    def stage(self) -> str:
        """Its stage."""
        return self._attempt.stage

    @property
    def roster(self) -> frozenset[str]:
        """The sites that the open stage waits for, those that were added, and those that skip it."""
        return frozenset(self._roster)

    @property
    def wake(self) -> float | None:
        """When something may become due without another call; None if never."""
        if self._sealed:
            return None
        return self._deadline if self._retry is None else self._retry

    def snapshot(self) -> Snapshot:
        """Return how the open stage stands."""
        return Snapshot(
            self._attempt,
            tuple(sorted(self._added)),
            tuple(sorted(self._skipped)),
            tuple(sorted(self._roster - self._added.keys() - self._skipped)),
            self._deadline,
            tuple(sorted(self._completed)),
            tuple(sorted(self._scaled)),
        )

    def restore(self, attempt: int, roster: Iterable[str], skipped: Iterable[str], now: float) -> None:
        """Go on with what an earlier server had in the open stage: attempt, roster, cut to `max_clients`, who skips."""
        self._attempt = Attempt(self.round, attempt, self.stage)
        self._roster.update(list(dict.fromkeys(roster))[: self._max_clients])
        self._skipped.update(self._roster.intersection(skipped))
        if self._roster:
            self._deadline = now + self._timeout

    def join(self, site: str, now: float) -> None:
        """Take `site` into the roster, if it is not in it, and wait for it; the first one starts the clock.

        Raises
        ------
        CapacityError
            If the roster has `max_clients` sites.
        """
        unwanted = not self._added and self._roster == self._skipped
        if site not in self._roster:
            if len(self._roster) >= self._max_clients:
                raise CapacityError(
                    f"{site!r} is one site too many: round {self.round} waits for max_clients = {self._max_clients}"
                )
            self._roster.add(site)
        self._skipped.discard(site)
        if unwanted:
            self._deadline = now + self._timeout

    def skip(self, site: str, round: int, now: float) -> bool:
        """Wait no longer for `site`, which gives nothing to `round`, and joins by saying so.

        Returns
        -------
        bool
            False if that says nothing new, or the round has been completed since.

        Raises
        ------
        RoundMismatchError
            If the round has not begun, or is not remembered any more.
        DuplicateError
            If an update of the site is in the sum.
        CapacityError
            As `join`.
        """
        if round in self._completed:
            return False
        if round != self.round:
            raise RoundMismatchError(f"{site!r} skips round {round}; round {self.round} is open")
        if self.stage == "update" and site in self._added:
            raise DuplicateError(f"{site!r} skips round {round}, and an update of it is already in the sum: it counts")
        if site in self._skipped:
            return False
        self.join(site, now)
        self._skipped.add(site)
        return True

    def known(self, site: str, nonce: bytes, round: int, stage: str = "update") -> bool:
        """Return whether the update or calibration (`stage`) of `site` with `nonce` is in the sum of its round already.

        If not, it may be added to the open stage, once its site has joined.

        Raises
        ------
        RoundMismatchError
            If another round is open, or the scales of the calibration's are there, and this very one was not added.
        ScalesMismatchError
            If it is an update, and its round has no scales yet.
        DuplicateError
            If another one of the site, or another site's with the same nonce, is in the sum.
        """
        summed = self._completed if stage == "update" else self._scaled
        if round in summed and summed[round].get(site) == nonce:
            return True
        if round != self.round:
            raise RoundMismatchError(f"the {stage} of {site!r} is of round {round}; round {self.round} is open")
        if stage == "calibration" != self.stage:
            raise RoundMismatchError(
                f"the calibration of {site!r} is of round {round}, whose scales are there already: download them, and "
                "encrypt under them"
            )
        if stage != self.stage:
            raise ScalesMismatchError(
                f"the update of {site!r} is of round {round}, which has no scales yet: upload a calibration, download "
                "the scales once they are there, and encrypt under them"
            )
        if self._added.get(site) == nonce:
            return True
        if site in self._added:
            raise DuplicateError(f"another {stage} of {site!r} is already in the sum of round {round}")
        if nonce in self._added.values():
            raise DuplicateError(f"the nonce of the {stage} of {site!r} is already in the sum of round {round}")
        return False

    def added(self, site: str, nonce: bytes, now: float) -> None:
        """Record that what `site` gives to the stage, with `nonce`, is now in the sum; its site joins by it.

        Raises
        ------
        StateError
            If it is there already, or the stage is sealed.
        DuplicateError, CapacityError
            As `known` and `join`.
        """
        if self._sealed or self.known(site, nonce, self.round, self.stage):
            raise StateError(
                f"the {self.stage} of {site!r} cannot be recorded in round {self.round}: twice or too late"
            )
        self.join(site, now)
        self._added[site] = nonce

    def lost(self, site: str) -> None:
        """Record that what `site` gave to the stage is in the sum no more: its file could not be read again."""
        self._added.pop(site, None)

    def due(self, now: float) -> Due:
        """Return what is due at `now`: see the table of this module."""
        if self._sealed or (self._retry is not None and now < self._retry):
            return Due.NOTHING
        self._retry = None  # the pause is over, and wakes nobody again
        late = self._deadline is not None and now >= self._deadline
        if len(self._added) >= self._min_clients and (late or self._roster <= self._added.keys() | self._skipped):
            return Due.COMPLETE
        if not late:
            return Due.NOTHING
        return Due.FAIL if self._added or self._roster != self._skipped else Due.LAPSE

    def seal(self, now: float) -> None:
        """Close the stage, to make its sum.

        Raises
        ------
        StateError
            If that is not due.
        """
        if self.due(now) is not Due.COMPLETE:
            raise StateError(f"round {self.round} cannot be completed yet: {self.due(now).value} is due")
        self._sealed = True

    def complete(self, now: float) -> None:
        """Open the next stage: the sum of the sealed one is stored.

        Raises
        ------
        StateError
            If the stage is not sealed.
        """
        if not self._sealed:
            raise StateError(f"round {self.round} is not sealed")
        self._sealed, self._retry, self._pause = False, None, _FIRST_PAUSE_SECONDS
        self._failure = None
        added, self._added = self._added, {}
        if self.stage == "calibration":
            self._scaled[self.round] = added
            self._attempt = Attempt(self.round, 1, "update")
            self._restart(self._roster, self._skipped, now)  # who has missed the calibration still takes part
        else:
            self._completed[self.round] = added
            self._attempt = Attempt(self.round + 1, 1, self._first_stage)
            self._restart(added.keys() | self._skipped, (), now)
        self._forget()

    def unseal(self, now: float, error: SecAggError) -> None:
        """Open the sealed stage again: its sum could not be stored. It is due again after a growing pause.

        Those who wait are told `error` only if the deadline has passed: until then it may still go well.

        Raises
        ------
        StateError
            If the stage is not sealed.
        """
        if not self._sealed:
            raise StateError(f"round {self.round} is not sealed")
        self._sealed = False
        if self._deadline is not None and now >= self._deadline:
            self._next_attempt(now, error)
        self._retry = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def fail(self, now: float) -> None:
        """End the attempt, which has too few contributions at its deadline, and begin the next one of the same stage.

        Raises
        ------
        StateError
            If ``FAIL`` is not due.
        """
        if self.due(now) is not Due.FAIL:
            raise StateError(f"round {self.round} has not failed: {self.due(now).value} is due")
        error = QuorumError(
            f"round {self.round} has {len(self._added)} of at least {self._min_clients} {self.stage}s after "
            f"{self._timeout:g} s; it goes on, and what was uploaded stays in it: wait for it again, or start "
            "`secagg site` again"
        )
        self._next_attempt(now, error)

    def lapse(self, now: float) -> None:
        """Let the attempt, to which nobody gives anything, go on for whoever joins next.

        Raises
        ------
        StateError
            If ``LAPSE`` is not due.
        """
        if self.due(now) is not Due.LAPSE:
            raise StateError(f"round {self.round} has not lapsed: {self.due(now).value} is due")
        error = QuorumError(
            f"round {self.round} has no update after {self._timeout:g} s: all who joined it skip it; it stays open"
        )
        self._end(now, error)

    def wait(self, round: int, nonce: bytes = b"", stage: str = "update") -> Waiting:
        """Return what somebody waits for who wants the aggregate of `round`, or its scales (`stage` ``"calibration"``).

        Parameters
        ----------
        round : int
            The open round or a completed one.
        nonce : bytes
            Of the update or calibration that must be in the sum of an open round; empty: any sum will do.
        stage : str
            Whose sum is wanted.

        Raises
        ------
        RoundMismatchError
            If the round has not begun, or is not remembered any more.
        StateError
            If the update or calibration is not in the sum: it must be uploaded again.
        """
        waiting = Waiting(round, self._ends, nonce, stage)
        self.ready(waiting)
        return waiting

    def ready(self, waiting: Waiting) -> bool:
        """Return whether the sum that somebody waits for is stored; False while the attempt is open.

        Raises
        ------
        RoundMismatchError, StateError
            As `wait`.
        SecAggError
            If the attempt has failed or lapsed: `QuorumError`, or the error given to `unseal`.
        """
        summed = self._completed if waiting.stage == "update" else self._scaled
        if waiting.round in summed:
            return True
        if waiting.round > self.round:
            raise RoundMismatchError(f"round {waiting.round} has not begun; round {self.round} is open")
        if waiting.round < self.round:
            kept, what = ", ".join(map(str, sorted(summed))), "aggregate" if waiting.stage == "update" else "scales"
            are = "is" if waiting.stage == "update" else "are"
            raise RoundMismatchError(f"the {what} of round {waiting.round} {are} not kept any more; kept are: {kept}")
        if waiting.nonce and (waiting.stage != self.stage or waiting.nonce not in self._added.values()):
            raise StateError(f"the {waiting.stage} is not in the sum of round {waiting.round}; upload it again")
        if waiting.ends < self._ends and self._failure is not None:
            raise type(self._failure)(*self._failure.args)  # a copy: each of the waiting threads raises its own
        return False

    def _next_attempt(self, now: float, error: SecAggError) -> None:
        self._attempt = Attempt(self.round, self._attempt.number + 1, self.stage)
        self._end(now, error)

    def _end(self, now: float, error: SecAggError) -> None:
        self._failure = error
        self._ends += 1
        self._restart(self._added, self._skipped.intersection(self._added), now)

    def _restart(self, roster: Iterable[str], skipped: Iterable[str], now: float) -> None:
        self._roster, self._skipped = set(roster), set(skipped)
        self._deadline = now + self._timeout if self._roster else None

    def _forget(self) -> None:
        for number in sorted(self._completed)[:-KEPT_ROUNDS]:
            del self._completed[number]
        for number in self._scaled.keys() - self._completed.keys() - {self.round}:
            del self._scaled[number]
