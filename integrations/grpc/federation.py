"""The server's side of a federation without the network: rounds, the sum, and the files of the run folder.

=========================  =============================================================
``aggregate-<r>.secagg``   aggregates of the last two rounds
``spool/``                 uploads on their way; each file goes when its upload ends
``rounds.jsonl``           one line a round: `secagg.integrations.grpc.records`
``lock``                   held by the server that works here
=========================  =============================================================

A federation that is made on a run folder with aggregates goes on after the last of them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import secagg
from secagg.errors import ConfigError, IdentityError, MismatchError, SecAggError, StorageError, TransportError

from .records import RoundRecord, UploadRecord
from .rounds import Admission, Due, Rounds, Snapshot

_AGGREGATE = re.compile(r"aggregate-(\d+)\.secagg")
_POLL_SECONDS = 1.0

#: Of uploads on their way: only such files of the spool are ever deleted.
SPOOL_SUFFIX = ".upload"

log = logging.getLogger(__name__)


class Federation:
    """Adds the updates of each round and stores its aggregate. Safe for threads; one lock orders everything.

    Parameters
    ----------
    config : secagg.Config
        The configuration that the sites have.
    key : secagg.ServerKey
        The server's half of the key; it holds no secret.
    folder : path
        Run folder; made if it does not exist. One server at a time uses it: it is locked until `close`.
    round_timeout : float
        Seconds after which a round ends without the missing sites.

    Raises
    ------
    ConfigError
        If the folder cannot be used, another server uses it, or its aggregates were made under another key.
    FormatError
        If an aggregate in it is damaged.
    """

    def __init__(
        self, config: secagg.Config, key: secagg.ServerKey, folder: str | os.PathLike[str], *, round_timeout: float
    ) -> None:
        self.config = config
        self.key = key
        self.round_timeout = round_timeout
        self._folder = Path(folder)
        self.spool = self._folder / "spool"
        self._changed = threading.Condition()
        self._closed = False
        with ExitStack() as held:  # gives the lock back if anything below fails
            headers = self._open_folder(held)
            self._layout = headers[max(headers)].layout if headers else None
            self._rounds = Rounds(
                min_clients=config.aggregation.min_clients,
                max_clients=config.aggregation.max_clients,
                timeout=round_timeout,
                completed={
                    number: {item.site: item.nonce for item in header.contributions}
                    for number, header in headers.items()
                },
            )
            self._begin()
            self._held = held.pop_all()

    def join(self, site: str) -> int:
        """Take `site` into the roster; return the number of the open round.

        Raises
        ------
        CapacityError
            If the roster is full.
        """
        with self._changed:
            self._rounds.join(site, time.monotonic())
            self._changed.notify_all()
            return self._rounds.round

    def admit(self, head: bytes, identity: str | None) -> tuple[Admission, secagg.Header]:
        """Check everything about an update that its head tells, before its frames are accepted.

        Parameters
        ----------
        head : bytes
            The first chunk of the upload.
        identity : str or None
            The common name of the sender's certificate; None if there are no certificates.

        Raises
        ------
        IdentityError
            If the head bears another site's name.
        SecAggError
            Whatever else makes the update unfit for the open round; nothing was added.
        """
        header = secagg.Header.from_head(head)
        if header.kind != "update":
            raise MismatchError(f"this is an {header.kind}; upload an update")
        if identity is not None and identity != header.site:
            raise IdentityError(f"an update of site {header.site!r} came under the certificate of {identity!r}")
        with self._changed:
            admission = self._rounds.admit(header.site, header.contributions[0].nonce, header.round, time.monotonic())
            self._changed.notify_all()
            if admission is Admission.ADD:
                self._aggregator.admit(head)
        return admission, header

    def add(self, path: Path, header: secagg.Header, receive_seconds: float) -> Admission:
        """Verify the update in the file `path` and add it; the round may end by this.

        Parameters
        ----------
        path : Path
            The spooled update.
        header : secagg.Header
            As `admit` returned it.
        receive_seconds : float
            For the record.

        Raises
        ------
        SecAggError
            If the update is unfit, or the round ended meanwhile; nothing was added.
        """
        site, nonce = header.site, header.contributions[0].nonce
        with self._changed:
            admission = self._rounds.admit(site, nonce, header.round, time.monotonic())
            if admission is Admission.ADD:
                started = time.monotonic()
                with secagg.Update.open(path) as update:
                    self._add(update)
                now = time.monotonic()
                self._rounds.added(site, nonce, now)
                self._uploads.append(UploadRecord(site, header.nbytes, receive_seconds, now - started))
                self._settle(now)
            return admission

    def _add(self, update: secagg.Update) -> None:
        try:
            self._aggregator.add(update)
        finally:
            if self._aggregator.closed:  # The disk failed between verifying and adding: no use to wait for the timeout.
                error = TransportError("the server lost the sum of this round; it is open again: upload once more")
                self._fail(time.monotonic(), error)
                self._changed.notify_all()

    def wait(self, round: int, nonce: bytes, alive: Callable[[], bool]) -> secagg.Update | None:
        """Return the aggregate of `round`, opened from its file, once it is there.

        Parameters
        ----------
        round : int
            The open round or a completed one.
        nonce : bytes
            Of the caller's update, which must be in the sum of an open round; empty: none.
        alive : callable
            Says whether anybody still waits; None is returned when not, or when the federation is closed.

        Raises
        ------
        QuorumError
            If the round ended below `min_clients`.
        StateError
            If the update is not in the sum.
        RoundMismatchError
            If the round has not begun, or its aggregate is not kept any more.
        """
        with self._changed:
            attempt = self._rounds.wait(round, nonce)
            while not self._rounds.ready(attempt):
                if self._closed or not alive():
                    return None
                self._changed.wait(_POLL_SECONDS)
            # Opened under the lock: a file that is open may be deleted, one that is about to be opened may not.
            return secagg.Update.open(self._path(round))

    def snapshot(self) -> tuple[Snapshot, float | None]:
        """Return how the open round stands, and the seconds until its timeout (None while its clock stands still)."""
        with self._changed:
            snapshot = self._rounds.snapshot()
        return snapshot, None if snapshot.deadline is None else max(0.0, snapshot.deadline - time.monotonic())

    def watch(self) -> None:
        """End rounds at their timeout, until `close` is called."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                self._settle(now)
                deadline = self._rounds.deadline
                self._changed.wait(None if deadline is None else max(0.0, deadline - now))

    def close(self) -> None:
        """Let those go who wait; the open round is given up."""
        with self._changed:
            self._closed = True
            self._held.close()
            self._changed.notify_all()

    def _settle(self, now: float) -> None:
        due = self._rounds.due(now)
        if due is Due.COMPLETE:
            self._complete(now)
        elif due is Due.FAIL:
            self._fail(now, None)
        if due is not Due.NOTHING:
            self._changed.notify_all()

    def _complete(self, now: float) -> None:
        round = self._rounds.round
        try:
            aggregate = self._aggregator.finish()
            aggregate.save(self._path(round))
        except StorageError as error:
            self._fail(now, TransportError(f"the server could not store the aggregate of round {round}: {error}"))
            return
        except SecAggError as error:
            self._fail(now, error)
            return
        self._layout = aggregate.header.layout
        self._record("completed", finish_seconds=time.monotonic() - now, nbytes=aggregate.nbytes)
        self._rounds.complete(now)
        for stale in self._stored().keys() - set(self._rounds.snapshot().completed):
            self._path(stale).unlink(missing_ok=True)
        self._begin()

    def _fail(self, now: float, error: SecAggError | None) -> None:
        self._record("failed", reason=str(error or "fewer than min_clients at the round timeout"))
        self._rounds.fail(now, error)
        self._begin()

    def _begin(self) -> None:
        self._aggregator = secagg.Aggregator(self.config, self.key, round=self._rounds.round, layout=self._layout)
        self._uploads: list[UploadRecord] = []
        self._opened = time.monotonic()

    def _record(self, outcome: str, *, finish_seconds: float = 0.0, nbytes: int = 0, reason: str = "") -> None:
        state = self._rounds.snapshot()
        record = RoundRecord(
            round=state.attempt.round,
            attempt=state.attempt.number,
            outcome=outcome,
            uploads=tuple(self._uploads),
            missing=state.waiting_for,
            seconds=time.monotonic() - self._opened,
            finish_seconds=finish_seconds,
            nbytes=nbytes,
            reason=reason,
        )
        log.log(logging.INFO if outcome == "completed" else logging.WARNING, "%s", record.line())
        try:
            record.append_to(self._folder / "rounds.jsonl")
        except OSError as error:
            log.warning("cannot write rounds.jsonl: %s", error.strerror)

    def _path(self, round: int) -> Path:
        return self._folder / f"aggregate-{round}.secagg"

    def _stored(self) -> dict[int, Path]:
        matches = ((_AGGREGATE.fullmatch(path.name), path) for path in self._folder.iterdir())
        return {int(match[1]): path for match, path in matches if match}

    def _open_folder(self, held: ExitStack) -> dict[int, secagg.Header]:
        try:
            self.spool.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context((self._folder / "lock").open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in self.spool.glob(f"*{SPOOL_SUFFIX}"):
                leftover.unlink()
            stored = self._stored()
        except BlockingIOError as error:
            raise ConfigError(f"another server works in the run folder {self._folder}; give each its own") from error
        except OSError as error:
            raise ConfigError(f"cannot use the run folder {self._folder}: {error.strerror}") from error
        headers = {}
        for round, path in stored.items():
            with secagg.Update.open(path) as aggregate:
                headers[round] = aggregate.header
            if headers[round].kind != "aggregate" or headers[round].round != round:
                raise ConfigError(f"{path} is not the aggregate of round {round}; use another run folder")
            if headers[round].key != self.key.fingerprint:
                raise ConfigError(f"{path} was made under another key; use another run folder")
        return headers
