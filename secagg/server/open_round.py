"""The open round: what is in the sum of its stage, whom it waits for, and how it ends.

Two locks. One orders what changes the sum: additions, and the end of a stage; it is held while frames are read or an
aggregate is written. The other guards the state of the rounds and is held for moments only, so that nobody who asks
waits for who adds. Whoever needs both takes them in this order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import secagg

from ..errors import (
    FormatError,
    MismatchError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    TransportError,
    one_line,
)
from ..protocol.messages import MAX_TROUBLE_LENGTH
from ..wire.header import SUMS
from .history import History
from .manifests import Keeper, Manifests, Void, choose
from .pointer import stored_nbytes
from .receipts import Receipts
from .roster import SavedRoster
from .round_sum import Terms, read_sums
from .rounds import Attempt, Due, Rounds, Snapshot
from .run_folder import StoredRoster
from .spool import Spool

_POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class Received(Protocol):
    """An update or calibration that is there whole, to be verified and added: a `Part`, or a deposit in the bucket."""

    @property
    def header(self) -> secagg.Header:
        """Its header, admitted."""

    @property
    def path(self) -> Path:
        """The file that is kept once it is added: itself, or a pointer to it."""

    def open(self) -> secagg.Update:
        """Open it; as of `secagg.Update.open`."""

    def delete(self) -> None:
        """Remove it: it is added already, or refused."""


class OpenRound:
    """Adds the updates of one round after another, and before them its calibrations, if it has some. Safe for threads.

    Parameters
    ----------
    terms : Terms
        Configuration, key, the kit's manifest, and the run folder, whose open round goes on where an earlier server
        left it, under the manifest that `secagg.server.manifests.choose` finds.
    timeout : float
        Seconds after which a stage ends without the missing sites.
    spool : Spool
        Uploads on their way; those of ended stages are removed from it.
    receipts : Receipts
        Signs for updates that were added.
    history : History
        Writes down what happened.

    Raises
    ------
    ConfigError, FormatError, StorageError
        As of `secagg.server.stored.check_stored`, and if the folder cannot be read or written.
    """

    def __init__(self, terms: Terms, timeout: float, spool: Spool, receipts: Receipts, history: History) -> None:
        self._folder = terms.folder
        self._calibrated = terms.calibrated
        self._spool = spool
        self._receipts = receipts
        self._history = history
        self._adding = threading.Lock()
        self._changed = threading.Condition()
        self._released = False
        self._saved_roster = SavedRoster(terms.folder, self._waited_for)
        self._keeper = Keeper(terms.folder)
        self._trouble = ""
        manifests, void = choose(terms.folder, terms.project)
        sums, self._sum = read_sums(terms, manifests)
        aggregation = terms.config.aggregation
        nonces = {
            kind: {
                number: {item.site: item.nonce for item in header.contributions} for number, header in headers.items()
            }
            for kind, headers in sums.items()
        }
        self._rounds = Rounds(
            min_clients=aggregation.min_clients,
            max_clients=aggregation.max_clients,
            timeout=timeout,
            completed=nonces["aggregate"],
            calibrated=terms.calibrated,
            scaled=nonces["scales"],
        )
        self._bases = {number: header.base for number, header in sums["aggregate"].items()}
        last = sums["scales"].get(self._rounds.round) or sums["aggregate"].get(self._rounds.round - 1)
        self._go_on(() if last is None else last.sites, void)

    # What is asked

    @property
    def manifests(self) -> Manifests:
        """The manifest that the open round is under, and that of the next one."""
        return self._sum.manifests

    @property
    def calibrated(self) -> bool:
        """Whether each round begins with a calibration."""
        return self._calibrated

    @property
    def layout_known(self) -> bool:
        """Whether the layout is known, and with it the size of uploads."""
        return self._sum.layout_known

    @property
    def trouble(self) -> str:
        """Why the sum could not be stored at the last attempt, in one line; empty if nothing is wrong."""
        return self._trouble

    def snapshot(self) -> tuple[Snapshot, bytes | None, secagg.Project | None]:
        """Return how the round stands, the base of its updates if it is known, and the manifest that it is under."""
        with self._changed:
            return self._rounds.snapshot(), self._sum.base, self.manifests.project

    def check_head(self, nbytes: int) -> None:
        """Refuse a head that is far longer than those of the model at hand: to read it costs memory and time.

        Raises
        ------
        FormatError
            If it is.
        """
        most = self._sum.head_nbytes
        if most is not None and nbytes > most:
            raise FormatError(f"{nbytes} bytes are no head for this federation's model: those take at most {most}")

    def check_open(self, header: secagg.Header) -> None:
        """Raise `RoundMismatchError` if the stage of what is being received has ended."""
        now = self._rounds.attempt
        if (header.round, header.kind) != (now.round, now.stage):
            raise RoundMismatchError(
                f"the {header.kind}s of round {header.round} ended without that of {header.site!r}; open are the "
                f"{now.stage}s of round {now.round}"
            )

    def check_model(self, header: secagg.Header) -> None:
        """Refuse a model whose params, key and layout are not those that an update of this round must have."""
        with self._changed:
            round, judge = self._rounds.round, self._sum
        project = judge.manifests.project  # models are under none: they last as long as their signer takes part
        manifest = None if project is None else project.digest
        judge.check_other(replace(header, round=round, base=judge.base, manifest=manifest))

    def bases(self) -> tuple[int, Mapping[int, bytes | None]]:
        """Return the number of the open round, and what it and the one before it began from, where it is known."""
        with self._changed:
            return self._rounds.round, {**self._bases, self._rounds.round: self._sum.base}

    # What sites do

    def join(self, site: str) -> tuple[int, bytes | None, secagg.Project | None]:
        """Take `site` into the roster of the open round.

        Returns
        -------
        int
            The number of the round.
        bytes or None
            The base of its updates if it is known.
        secagg.Project or None
            The manifest that it is under.

        Raises
        ------
        CapacityError
            If the roster is full.
        """
        with self._changed:
            known = site in self._rounds.roster
            self._rounds.join(site, time.monotonic())
            self._changed.notify_all()
            round, base, project = self._rounds.round, self._sum.base, self.manifests.project
        self._saved_roster.save()
        if not known:
            log.info("%s joined round %d", site, round, extra={"event": "joined", "site": site, "round": round})
        return round, base, project

    def skip(self, site: str, round: int) -> None:
        """Wait no longer for a site that gives nothing to a round; the round may end by this.

        Raises
        ------
        RoundMismatchError, DuplicateError, CapacityError
            As of `Rounds.skip`.
        """
        with self._changed:
            new = self._rounds.skip(site, round, time.monotonic())
            self._changed.notify_all()  # who watches the clock ends the round, if that was all it waited for
        if new:
            self._saved_roster.save()
            log.info("%s skips round %d", site, round, extra={"event": "skipped", "site": site, "round": round})

    def admit(self, header: secagg.Header) -> bytes | None:
        """Check all that its head tells about an update or calibration, before its frames are taken; its site joins.

        Returns
        -------
        bytes or None
            None if it is wanted. If it is in a sum already: its receipt, empty for a calibration.

        Raises
        ------
        SecAggError
            Whatever makes it unfit for the open stage; nothing was added.
        """
        if header.kind == "calibration" and not self._calibrated:
            raise MismatchError(f"{header.site!r} calibrates, and no round of this federation has a calibration")
        try:
            receipt = self.known(header)
        except ScalesMismatchError:  # it came before the scales
            self._sum.check_other(header)  # what was made under an earlier manifest, say, is told so
            raise
        if receipt is None:
            self._sum.check(header)
            self._enter(header.site)
        return receipt

    def known(self, header: secagg.Header) -> bytes | None:
        """Return the receipt of what is in the sum of its round; None if it may be added to the open one.

        Raises
        ------
        SecAggError
            If its stage has ended without it, or another one of the site is in the sum; or it has not begun.
        """
        with self._changed:
            known = self._rounds.known(header.site, header.contributions[0].nonce, header.round, header.kind)
        if not known:
            return None
        self._make_last(header.round)  # who added it may not have come to that, or was killed before
        return self._receipts.again(header) if header.kind == "update" else b""

    def add(self, received: Received, receive_seconds: float) -> tuple[bool, bytes]:
        """Verify an update or calibration that was received whole, store it, and add it; the stage may end by this.

        Parameters
        ----------
        received : Received
            Whole; its file is synchronised.
        receive_seconds : float
            For the record.

        Returns
        -------
        bool
            False if it was in the sum already.
        bytes
            The receipt, empty for a calibration.

        Raises
        ------
        SecAggError
            If it is unfit, or the stage ended meanwhile; nothing was added.
        TransportError
            If it, or what the sum is made of again, lies in the bucket, which cannot be reached.
        """
        with self._adding:
            known = self.known(received.header)  # rounds end while uploads come in
            if known is None and not self._sum.whole:
                self._make_whole()
                known = self.known(received.header)  # it may have been stored when the sum broke
            if known is not None:
                received.delete()
                return False, known
            self._enter(received.header.site)  # before the sum is touched: the roster may be full by now
            receipt = self._add(received, receive_seconds)
            self._settle()
        self._make_last(received.header.round)  # not under the lock: the disk serves many at once
        return True, receipt

    def wait(self, kind: str, round: int, nonce: bytes, alive: Callable[[], bool]) -> secagg.Update | None:
        """Return the aggregate or the scales (`kind`) of `round`, opened from their file, once they are there.

        Parameters
        ----------
        kind : str
            ``"aggregate"`` or ``"scales"``.
        round : int
            The open round or a completed one.
        nonce : bytes
            Of the caller's update or calibration, which must be in the sum of an open round; empty: none.
        alive : callable
            Says whether anybody still waits; None is returned when not, or after `release`.

        Raises
        ------
        QuorumError
            If the round timeout found fewer than `min_clients`.
        TransportError
            If the sum could not be stored until then.
        StateError
            If the update or calibration is not in the sum.
        RoundMismatchError
            If the round has not begun, or its sum is not kept any more.
        MismatchError
            If scales are asked for, and no round has any.
        """
        if kind == "scales" and not self._calibrated:
            raise MismatchError("no round of this federation has scales")
        with self._changed:
            waiting = self._rounds.wait(round, nonce, "calibration" if kind == "scales" else "update")
            while not self._rounds.ready(waiting):
                if self._released or not alive():
                    return None
                self._changed.wait(_POLL_SECONDS)
        try:
            return secagg.Update.open(self._folder.path_of(kind, round))
        except SecAggError:
            with self._changed:
                self._rounds.ready(waiting)  # deleted in this moment: says so
            raise

    # What the server does

    def keep_manifest(self) -> None:
        """Write down the manifest that the open round is under, if it can be done; else with the first update."""
        self._keeper.try_to_keep(self.manifests.project)

    def watch(self) -> None:
        """End stages at their timeout, and tidy up after them, until `release` is called."""
        while True:
            with self._changed:
                if self._released:
                    return
                now, wake, untidy = time.monotonic(), self._rounds.wake, self._untidy
                idle = self._rounds.due(now) is Due.NOTHING
                if idle and not untidy:
                    self._changed.wait(None if wake is None else max(0.0, wake - now))
            if untidy:
                with self._adding:  # at the end of a round the next one's folder is there before its number is
                    self._clear()
            elif not idle:
                with self._adding:
                    self._settle()

    def release(self) -> None:
        """Let those go who wait. What is acknowledged stays, and so does the open round."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    # Updates

    def _enter(self, site: str) -> None:
        """Take a site whose upload is fit into the roster; a part, or what is stored of it, tells so after a crash."""
        with self._changed:
            self._rounds.join(site, time.monotonic())
            self._changed.notify_all()

    def _add(self, received: Received, receive_seconds: float) -> bytes:
        header, started = received.header, time.monotonic()
        self._keeper.keep(self.manifests.project)  # should that have failed before
        with received.open() as update:
            try:
                self._sum.add(
                    update, lambda: self._folder.keep_upload(received.path, header.round, header.site, header.kind)
                )
            except (SecAggError, OSError):
                # If the disk failed between verifying and adding, the update is stored, and may be added yet.
                if self._sum.whole or header.site not in self._made_whole(received):
                    raise
            receipt = self._receipts.sign(update) if header.kind == "update" else b""
        now = time.monotonic()
        with self._changed:
            if header.site not in self._rounds.snapshot().added:
                self._rounds.added(header.site, header.contributions[0].nonce, now)
            self._history.added(header.site, header.nbytes, receive_seconds, now - started)
            self._changed.notify_all()
        log.info(
            "the %s of %s is in the sum of round %d",
            header.kind,
            header.site,
            header.round,
            extra={"event": f"{header.kind}_added", "site": header.site, "round": header.round},
        )
        return receipt

    def _made_whole(self, received: Received) -> dict[str, bytes]:
        """Make the sum again, which broke as this was added; without its bucket that has to wait, and so has this."""
        try:
            return self._make_whole()
        except TransportError:  # its site, which comes again, finds it where it was received
            header = received.header
            self._folder.take_back(received.path, header.round, header.site, header.kind)
            raise

    def _make_last(self, round: int) -> None:
        """Synchronise the names of what the open round has stored; that of completed rounds is in aggregates."""
        if round == self._rounds.round:
            self._folder.synchronise_round(round)

    def _make_whole(self) -> dict[str, bytes]:
        """Make the sum again if it broke; return the nonces of what is in it then, by site."""
        if self._sum.whole:
            return {}
        round = self._rounds.round
        log.warning("round %d: adding up again", round, extra={"event": "sum_rebuilt", "round": round})
        stored = self._sum.restore()
        with self._changed:
            added = set(self._rounds.snapshot().added)
            for site in added - stored.keys():
                self._rounds.lost(site)
                self._history.lost(site)
            for site in stored.keys() - added:  # it was stored, and then neither it nor the others could be read
                with suppress(SecAggError):  # too late
                    self._rounds.added(site, stored[site], time.monotonic())
                    self._history.added(site, stored_nbytes(self._folder.upload_of(round, site, self._rounds.stage)))
            self._changed.notify_all()
        return stored

    # Ends of rounds

    def _settle(self) -> None:
        """Do what is due; the lock of additions is held."""
        with self._changed:
            now = time.monotonic()
            due = self._rounds.due(now)
            if due is Due.COMPLETE:
                self._rounds.seal(now)
            elif due is Due.FAIL:
                state = self._rounds.snapshot()
                reason = f"fewer {state.attempt.stage}s than min_clients at the round timeout"
                self._history.failed(state, reason, self._missing(state))
                self._rounds.fail(now)
                self._changed.notify_all()
            elif due is Due.LAPSE:
                round = self._rounds.round
                self._rounds.lapse(now)
                self._changed.notify_all()
                log.info("nobody gives anything to round %d", round, extra={"event": "round_lapsed", "round": round})
        if due is Due.COMPLETE:
            self._complete()
        if due is not Due.NOTHING:
            self._saved_roster.save()
            self._history.opened(self._rounds.snapshot())

    def _complete(self) -> None:
        started = time.monotonic()
        try:
            self._make_whole()
            header, following = self._sum.conclude()
        except (SecAggError, OSError) as error:
            self._postpone(error)
            return
        if following.manifests != self.manifests:
            self._succeed(header.round, following.manifests)
        with self._changed:
            now = time.monotonic()
            self._history.completed(self._rounds.snapshot(), now - started, header.nbytes)
            self._rounds.complete(now)
            self._trouble = ""
            self._sum = following
            if header.kind == "aggregate":
                self._bases = {header.round: header.base}
            self._untidy = True  # who uploads need not wait until their files are deleted
            self._changed.notify_all()

    def _postpone(self, error: Exception) -> None:
        """Keep the stage open, whose sum could not be stored: the disk may be mended, or freed."""
        round, kind = self._rounds.round, type(error).__name__
        what = SUMS[self._rounds.stage]
        log.error(
            "round %d: the %s cannot be stored, trying again: %s: %s",
            round,
            what,
            kind,
            error,
            extra={"event": f"{what}_not_stored", "round": round, "error": kind},
        )
        with suppress(SecAggError, OSError):  # if not now, then before it is added to again
            self._make_whole()
        with self._changed:
            now, state = time.monotonic(), self._rounds.snapshot()
            told = TransportError(f"the server could not store the {what} of round {round}; its log says why")
            self._rounds.unseal(now, told)
            self._trouble = one_line(self._folder.hide(str(error)))[:MAX_TROUBLE_LENGTH]
            if self._rounds.snapshot().attempt != state.attempt:
                self._history.failed(state, f"the {what} could not be stored")
            self._changed.notify_all()

    def _succeed(self, round: int, manifests: Manifests) -> None:
        """Write down that a newer manifest serves, before anybody is told of it; the aggregate of `round` is stored."""
        self._keeper.try_to_keep(manifests.project)
        assert manifests.project is not None
        log.info(
            "manifest %d serves from now on",
            manifests.project.serial,
            extra={"event": "manifest_served", "round": round + 1},
        )

    # The folder

    def _go_on(self, last_sites: tuple[str, ...], void: Void | None) -> None:
        """Go on with the open stage as an earlier server has left it; `last_sites` are those of the sum before it."""
        round, stage, now = self._rounds.round, self._rounds.stage, time.monotonic()
        self._folder.open_round(round)
        saved = self._folder.load_roster(round) or StoredRoster(stage, 1, last_sites, ())
        attempt, roster, skipped = saved.attempt, saved.sites, saved.skipped
        if stage == "update" and saved.stage == "calibration":  # killed between the end of one stage and that note
            attempt, roster = 1, (*last_sites, *skipped)
        acknowledged = self._folder.uploads(round, saved.stage)
        if void is not None:
            self._drop(void, Attempt(round, attempt, void.stage), roster, skipped)
            attempt += 1
        elif stage == "calibration" and self._folder.path_of("scales", round).exists():
            extra = {"event": "scales_left_out", "round": round}
            log.warning(
                "round %d: its scales are of another key or configuration; sites calibrate again", round, extra=extra
            )
        self._clear()
        stored = self._sum.restore()
        # Who is left out is waited for: that site may upload the same again, or anew.
        uploading = [*acknowledged, *self._spool.sites(stage)]
        roster = (*stored, *filter(self._takes_part, [*roster, *uploading]))
        self._rounds.restore(attempt, roster, set(skipped).difference(uploading), now)
        for site, nonce in stored.items():
            self._rounds.added(site, nonce, now)
            self._history.added(site, stored_nbytes(self._folder.upload_of(round, site, stage)))
        if len(stored) < len(acknowledged):
            self._saved_roster.save()
        if self.manifests.later is not None:
            log.info(
                "manifest %d serves from round %d on; round %d goes on under the one that its updates were made under",
                self.manifests.later.serial,
                self.manifests.since,
                round,
                extra={"event": "manifest_waits", "round": round},
            )
        self._history.opened(self._rounds.snapshot())

    def _drop(self, void: Void, attempt: Attempt, roster: Iterable[str], skipped: Iterable[str]) -> None:
        """Drop what was acknowledged of a round that is void, and its scales, and record the end of its attempt.

        The manifest comes first: from then on no server adds it, also if this one dies before it is removed.
        """
        assert self.manifests.project is not None
        self._folder.save_project(self.manifests.project.signed)
        for site, path in void.uploads.items():
            self._history.added(site, stored_nbytes(path))
        added, skipping = tuple(sorted(void.uploads)), tuple(sorted(skipped))
        waiting_for = set(roster).difference(added, skipped)
        self._history.voided(Snapshot(attempt, added, skipping, tuple(sorted(waiting_for)), None, ()), void.revoked)
        self._folder.drop(attempt.round, void.files)

    def _missing(self, state: Snapshot) -> set[str]:
        """Return all sites that a stage lacks, also those that it does not wait for."""
        project = self.manifests.project
        sites = () if project is None else project.sites
        known = {*state.skipped, *state.waiting_for, *(site.name for site in sites if not site.revoked)}
        return known.difference(state.added)

    def _takes_part(self, site: str) -> bool:
        with suppress(SecAggError):
            if self.manifests.project is not None:
                self.manifests.project.site(site)
            return True
        return False

    def _waited_for(self) -> tuple[int, StoredRoster]:
        with self._changed:
            state, roster = self._rounds.snapshot(), tuple(sorted(self._rounds.roster))
            return state.attempt.round, StoredRoster(state.attempt.stage, state.attempt.number, roster, state.skipped)

    def _clear(self) -> None:
        """Remove what nobody needs any more."""
        self._untidy = False
        try:
            state = self._rounds.snapshot()
            round, stage = state.attempt.round, state.attempt.stage
            self._folder.prune("aggregate", state.completed)
            self._folder.prune("scales", state.scaled)
            self._folder.drop_rounds(but=round)
            for kind in SUMS:
                self._spool.sweep(kind, since=round if kind == stage else round + 1)
        except OSError as error:
            log.warning("cannot clear the run folder: %s", error.strerror, extra={"event": "not_cleared"})
