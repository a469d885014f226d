"""The server's side of a federation without the network: orders what happens to rounds, sum and stored files.

Two locks. One orders what changes the sum: additions, and the end of a round; it is held while frames are read or an
aggregate is written. The other guards the state of the rounds and is held for moments only, so that nobody who asks
waits for who adds. Whoever needs both takes them in this order.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace

import secagg

from ..errors import FormatError, RoundMismatchError, SecAggError, StorageError, TransportError, one_line
from ..protocol.messages import MAX_TROUBLE_LENGTH, ServerStatus
from ..protocol.part import Part
from .events import MetricsHook, NoMetrics
from .history import History
from .limits import Limits
from .models import ModelStore
from .receipts import Receipts
from .round_sum import Terms, read_aggregates
from .rounds import Admission, Due, Rounds
from .run_folder import UPDATE_SUFFIX, RunFolder
from .spool import Spool
from .stored import served_project

_POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class Federation:
    """Adds the updates of each round, stores aggregates and models. Safe for threads.

    Parameters
    ----------
    config : secagg.Config
        The configuration that the sites have.
    key : secagg.ServerKey
        The server's half of the key; it holds no secret.
    folder : path
        Run folder; made if it does not exist. One server at a time uses it: it is locked until `close`. A federation
        on a folder that was used before goes on where the earlier one stopped, in the middle of a round, too.
    round_timeout : float
        Seconds after which a round ends without the missing sites.
    project : secagg.Project, optional
        Who takes part.
    identity : secagg.Identity, optional
        What receipts are signed with.
    limits : Limits
        Of the disk.
    metrics : MetricsHook
        Is told when a round ends.

    Raises
    ------
    ConfigError
        If the folder cannot be used, another server uses it, it was served under a later manifest or one of another
        federation, or what lies in it was made under another key of this epoch, or under a later one.
    FormatError
        If an aggregate in it is damaged.
    StorageError
        If it cannot be read or written.
    """

    def __init__(
        self,
        config: secagg.Config,
        key: secagg.ServerKey,
        folder: str | os.PathLike[str],
        *,
        round_timeout: float,
        project: secagg.Project | None = None,
        identity: secagg.Identity | None = None,
        limits: Limits | None = None,
        metrics: MetricsHook | None = None,
    ) -> None:
        self.config = config
        self.key = key
        self.round_timeout = round_timeout
        self._project = project
        self._limits = limits or Limits()
        self._adding = threading.Lock()
        self._changed = threading.Condition()
        self._released = False
        self._saving = threading.Lock()
        self._saved: object = None
        self._trouble = ""
        self._folder = RunFolder(folder)
        with ExitStack() as held:  # gives the lock back if anything below fails
            held.callback(self._folder.close)
            aggregates, self._sum = read_aggregates(Terms(config, key, project, self._folder))
            self._rounds = Rounds(
                min_clients=config.aggregation.min_clients,
                max_clients=config.aggregation.max_clients,
                timeout=round_timeout,
                completed={
                    number: {item.site: item.nonce for item in header.contributions}
                    for number, header in aggregates.items()
                },
            )
            self._bases = {number: header.base for number, header in aggregates.items()}
            self._history = History(self._folder.path / "rounds.jsonl", metrics or NoMetrics())
            self._receipts = Receipts(self._folder, identity)
            self._models = ModelStore(self._folder, project)
            self._spool = Spool(self._folder, self._limits)
            last = aggregates.get(self._rounds.round - 1)
            self._go_on([] if last is None else list(last.sites))
            self._keep_project()
            held.pop_all()

    # What sites do

    def join(self, site: str) -> tuple[int, bytes | None]:
        """Take `site` into the roster; return the number of the open round, and the base of its updates if it is known.

        Raises
        ------
        CapacityError
            If the roster is full.
        """
        with self._changed:
            known = site in self._rounds.roster
            self._rounds.join(site, time.monotonic())
            self._changed.notify_all()
            round, base = self._rounds.round, self._sum.base
        self._save_roster()
        if not known:
            log.info("%s joined round %d", site, round, extra={"event": "joined", "site": site, "round": round})
        return round, base

    def admit(self, header: secagg.Header) -> bytes | None:
        """Check everything about an update or model that its head tells, before its frames are accepted.

        Returns
        -------
        bytes or None
            None if it is wanted. If it is there already: its receipt, which is empty for a model.

        Raises
        ------
        SecAggError
            Whatever makes it unfit for the open round; nothing was added.
        """
        if header.kind == "model":
            return self._admit_model(header)
        receipt = self.known(header)
        if receipt is None:
            self._sum.admit(header)
        return receipt

    def known(self, header: secagg.Header) -> bytes | None:
        """Return what `admit` does for what has been admitted before: it may have been added meanwhile.

        Raises
        ------
        SecAggError
            If the round of an update has ended, or another update of the site is in the sum.
        """
        if header.kind == "model":
            return None
        with self._changed:
            roster, now = self._rounds.roster, time.monotonic()
            admission = self._rounds.admit(header.site, header.contributions[0].nonce, header.round, now)
            if self._rounds.roster != roster:  # a part or an update tells so after a crash: no need to write it down
                self._changed.notify_all()
        if admission is Admission.ADD:
            return None
        self._make_last(header.round)  # who added it may not have come to that, or was killed before
        return self._receipts.again(header)

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
        """Raise `RoundMismatchError` if the round of an update that is being received has ended."""
        now = self._rounds.round
        if header.kind == "update" and header.round != now:
            raise RoundMismatchError(
                f"round {header.round} ended without the update of {header.site!r}; round {now} is open"
            )

    def part(self, header: secagg.Header) -> AbstractContextManager[Part]:
        """Open what is there already of an admitted update or model; see `Spool.part`."""
        return self._spool.part(header, layout_known=self._sum.layout_known)

    def take(self, part: Part, receive_seconds: float) -> tuple[bool, bytes]:
        """Verify what was received whole, store it, and add it if it is an update; the round may end by this.

        Parameters
        ----------
        part : Part
            Received and synchronised.
        receive_seconds : float
            For the record.

        Returns
        -------
        bool
            False if it was there already.
        bytes
            The receipt.

        Raises
        ------
        SecAggError
            If it is unfit, or the round ended meanwhile; nothing was added or stored.
        """
        header = part.header
        if header.kind == "model":
            added, receipt = self._models.keep(part.path, header), b""
            self._spool.sweep("model", since=header.round + 1)
            return added, receipt
        with self._adding:
            known = self.known(header)
            if known is not None:
                part.delete()
                return False, known
            receipt = self._add(part, receive_seconds)
            self._settle()
        self._make_last(header.round)  # not under the lock: others add meanwhile, and the disk serves many at once
        return True, receipt

    def wait(self, round: int, nonce: bytes, alive: Callable[[], bool]) -> secagg.Update | None:
        """Return the aggregate of `round`, opened from its file, once it is there.

        Parameters
        ----------
        round : int
            The open round or a completed one.
        nonce : bytes
            Of the caller's update, which must be in the sum of an open round; empty: none.
        alive : callable
            Says whether anybody still waits; None is returned when not, or when the federation is closing.

        Raises
        ------
        QuorumError
            If the round timeout found fewer than `min_clients`.
        TransportError
            If the aggregate could not be stored until then.
        StateError
            If the update is not in the sum.
        RoundMismatchError
            If the round has not begun, or its aggregate is not kept any more.
        """
        with self._changed:
            attempt = self._rounds.wait(round, nonce)
            while not self._rounds.ready(attempt):
                if self._released or not alive():
                    return None
                self._changed.wait(_POLL_SECONDS)
        try:
            return secagg.Update.open(self._folder.path_of("aggregate", round))
        except SecAggError:
            with self._changed:
                self._rounds.ready(attempt)  # deleted in this moment: says so
            raise

    def model(self, round: int | None) -> secagg.Update:
        """Return a stored model, opened from its file; errors as of `ModelStore.open`."""
        return self._models.open(round)

    # What the server does

    def status(self, uploads_in_flight: int = 0) -> ServerStatus:
        """Return how the round and the folder stand."""
        with self._changed:
            snapshot, base = self._rounds.snapshot(), self._sum.base
        left = None if snapshot.deadline is None else max(0.0, snapshot.deadline - time.monotonic())
        return ServerStatus(
            round=snapshot.attempt.round,
            attempt=snapshot.attempt.number,
            state="idle" if left is None else "open",
            added=snapshot.added,
            waiting_for=snapshot.waiting_for,
            seconds_left=left,
            uploads_in_flight=uploads_in_flight,
            disk_used=self._folder.used(),
            disk_quota=self._limits.disk_quota,
            epoch=self.key.epoch,
            models=self._models.rounds,
            aggregates=snapshot.completed,
            base=base,
            project_serial=0 if self._project is None else self._project.serial,
            disk_free=self._folder.free(),
            trouble=self._trouble,
        )

    def watch(self) -> None:
        """End rounds at their timeout, and tidy up after them, until `release` is called."""
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

    def close(self) -> None:
        """Give the run folder back, once all calls have ended."""
        self.release()
        self._folder.close()

    # Updates and models

    def _add(self, part: Part, receive_seconds: float) -> bytes:
        header, started = part.header, time.monotonic()
        self._make_whole()
        with secagg.Update.open(part.path) as update:
            try:
                self._sum.add(update, lambda: self._folder.keep_update(part.path, header.round, header.site))
            except (SecAggError, OSError):
                # If the disk failed between verifying and adding, the update is stored, and may be added yet.
                if self._sum.whole or header.site not in self._make_whole():
                    raise
            receipt = self._receipts.sign(update)
        now = time.monotonic()
        with self._changed:
            self._rounds.added(header.site, header.contributions[0].nonce, now)
            self._history.added(header.site, header.nbytes, receive_seconds, now - started)
            self._changed.notify_all()
        log.info(
            "the update of %s is in the sum of round %d",
            header.site,
            header.round,
            extra={"event": "update_added", "site": header.site, "round": header.round},
        )
        return receipt

    def _make_last(self, round: int) -> None:
        """Synchronise the names of the open round's updates; those of completed rounds are in aggregates."""
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
            for site in set(self._rounds.snapshot().added) - stored.keys():
                self._rounds.lost(site)
                self._history.lost(site)
            self._changed.notify_all()
        return stored

    def _admit_model(self, header: secagg.Header) -> bytes | None:
        with self._changed:
            now, judge, bases = self._rounds.round, self._sum, self._bases
        wanted = self._models.admit(header, now, {**bases, now: judge.base})
        # Params, key and layout are those that an update of the open round must have.
        judge.admit(replace(header, kind="update", round=now, base=judge.base))
        return None if wanted else b""

    # Rounds

    def _settle(self) -> None:
        """Do what is due; the lock of additions is held."""
        with self._changed:
            now = time.monotonic()
            due = self._rounds.due(now)
            if due is Due.COMPLETE:
                self._rounds.seal(now)
            elif due is Due.FAIL:
                self._history.failed(self._rounds.snapshot(), "fewer than min_clients at the round timeout")
                self._rounds.fail(now)
                self._changed.notify_all()
        if due is Due.COMPLETE:
            self._complete()
        if due is not Due.NOTHING:
            self._save_roster()
            self._history.opened(self._rounds.snapshot())

    def _complete(self) -> None:
        started = time.monotonic()
        try:
            self._make_whole()
            header, following = self._sum.conclude()
        except (SecAggError, OSError) as error:
            self._postpone(error)
            return
        with self._changed:
            now = time.monotonic()
            self._history.completed(self._rounds.snapshot(), now - started, header.nbytes)
            self._rounds.complete(now)
            self._trouble = ""
            self._sum, self._bases = following, {header.round: header.base}
            self._untidy = True  # who uploads need not wait until their files are deleted
            self._changed.notify_all()

    def _postpone(self, error: Exception) -> None:
        """Keep the round open, whose aggregate could not be stored: the disk may be mended, or freed."""
        round, kind = self._rounds.round, type(error).__name__
        log.error(
            "round %d: the aggregate cannot be stored, trying again: %s: %s",
            round,
            kind,
            error,
            extra={"event": "aggregate_not_stored", "round": round, "error": kind},
        )
        with suppress(SecAggError, OSError):  # if not now, then before it is added to again
            self._make_whole()
        with self._changed:
            now, state = time.monotonic(), self._rounds.snapshot()
            told = TransportError(f"the server could not store the aggregate of round {round}; its log says why")
            self._rounds.unseal(now, told)
            # Everybody may ask for it, and need not know where the folder lies.
            self._trouble = one_line(str(error).replace(f"{self._folder.path}/", ""))[:MAX_TROUBLE_LENGTH]
            if self._rounds.snapshot().attempt != state.attempt:
                self._history.failed(state, "the aggregate could not be stored")
            self._changed.notify_all()

    # The folder

    def _go_on(self, last_sites: list[str]) -> None:
        """Go on with the open round as an earlier server has left it."""
        round, now = self._rounds.round, time.monotonic()
        self._folder.open_round(round)
        self._clear()
        attempt, roster = self._folder.load_roster(round) or (1, last_sites)
        acknowledged = [path.name.removesuffix(UPDATE_SUFFIX) for path in self._folder.updates(round)]
        stored = self._sum.restore()
        # Whose update is left out is waited for: its site may upload it again, or another one.
        roster = [*stored, *filter(self._takes_part, [*roster, *acknowledged, *self._spool.sites("update")])]
        self._rounds.restore(attempt, roster, now)
        for site, nonce in stored.items():
            self._rounds.added(site, nonce, now)
            self._history.added(site, self._folder.update_of(round, site).stat().st_size)
        if len(stored) < len(acknowledged):
            self._save_roster()
        self._history.opened(self._rounds.snapshot())

    def _keep_project(self) -> None:
        """Write down the manifest, if it is later than that of the earlier server: whom it revoked stays revoked."""
        if self._project is not None and self._project.signed:
            served = served_project(self._folder.path)
            if served is None or served.serial < self._project.serial:
                try:
                    self._folder.save_project(self._project.signed)
                except StorageError as error:  # a full disk must not keep sites from what is there
                    log.error("%s", error, extra={"event": "project_not_stored", "error": type(error).__name__})

    def _takes_part(self, site: str) -> bool:
        with suppress(SecAggError):
            if self._project is not None:
                self._project.site(site)
            return True
        return False

    def _save_roster(self) -> None:
        """Write down whom the round waits for; one thread does it for all that came before it."""
        with self._saving:
            with self._changed:
                attempt, roster = self._rounds.snapshot().attempt, self._rounds.roster
            if self._saved == (attempt, roster):
                return
            try:
                self._folder.save_roster(attempt.round, attempt.number, roster)
                self._saved = attempt, roster
            except StorageError as error:
                log.warning("%s", error, extra={"event": "roster_not_stored", "error": type(error).__name__})

    def _clear(self) -> None:
        """Remove what nobody needs any more."""
        self._untidy = False
        try:
            self._folder.prune("aggregate", self._rounds.snapshot().completed)
            self._folder.drop_rounds(but=self._rounds.round)
            self._spool.sweep("update", since=self._rounds.round)
        except OSError as error:
            log.warning("cannot clear the run folder: %s", error.strerror, extra={"event": "not_cleared"})
