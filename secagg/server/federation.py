"""The server's side of a federation: what a transport opens, lets calls into, and closes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import secagg

from ..errors import ConfigError, KeyFileError, SecAggError, TransportError
from ..protocol.messages import BrokenOffError, BusyError, JoinReply, ServerStatus
from ..protocol.refusals import shown
from .bucket import Bucket, Cleaner
from .calls import Call, Desk
from .events import Events, NoEvents
from .history import History
from .limits import Limits
from .members import Members
from .models import ModelStore
from .open_round import OpenRound
from .receipts import Receipts
from .round_sum import Terms
from .run_folder import RunFolder
from .spool import Spool
from .turns import Connection, Turns
from .uploads import Uploads

#: How long closing waits for a store that is asked to delete something; the next server asks it again.
_CLEANING_SECONDS = 5.0

log = logging.getLogger(__name__)


class Federation:
    """Adds what sites upload in each round, stores sums and models; it can decrypt nothing. Safe for threads.

    A transport calls `start`, lets each call of a site in by `call`, and ends by `release` and `close`. Rounds, files,
    signatures and limits are no business of its own.

    Parameters
    ----------
    config : secagg.Config
        The configuration that the sites have.
    key : secagg.ServerKey
        The server's half of the key; it holds no secret.
    folder : path
        Run folder, see `secagg.server.run_folder`; made if it does not exist. One server at a time uses it: it is
        locked until `close`. A federation on a folder that was used before goes on where the earlier one stopped, also
        in the middle of a round, and after a crash or a power failure.
    round_timeout : float
        Seconds after which a round ends without the missing sites; so does its calibration, if it has one.
    project : secagg.Project, optional
        The signed project manifest, which sites get when they join. With it, only its parties are admitted, under the
        very certificates that it names, and updates must be signed. What becomes of a round that was opened under an
        earlier one: `secagg.server.manifests`.
    identity : secagg.Identity, optional
        What the server signs receipts with: that of the project's server.
    certified : bool
        Whether the transport tells the certificates of its connections. Without them sites are who they say they are.
    limits : Limits, optional
        What sites may use.
    events : Events, optional
        Is told what happens.
    bucket : str, optional
        ``s3://bucket/prefix``, of this server alone: sites whose manifest names its host put their updates there, and
        not through this process. Needs a project. What is in it of the open round belongs to the run folder.

    Raises
    ------
    ConfigError
        If the folder cannot be used, another server uses it, it was served under a later manifest or one of another
        federation, or what lies in it was made under another key of this epoch, or under a later one; if the project
        is not signed, or the timeout no positive number; if the bucket cannot be used: see
        `secagg.server.bucket.Bucket`.
    KeyFileError
        If `key` or `identity` is not that of the project.
    FormatError
        If an aggregate in the folder is damaged.
    StorageError
        If it cannot be read or written.
    TransportError
        If the bucket cannot be reached, or one where updates of the open round lie.
    """

    def __init__(
        self,
        config: secagg.Config,
        key: secagg.ServerKey,
        folder: str | os.PathLike[str],
        *,
        round_timeout: float = 3600.0,
        project: secagg.Project | None = None,
        identity: secagg.Identity | None = None,
        certified: bool = True,
        limits: Limits | None = None,
        events: Events | None = None,
        bucket: str | None = None,
    ) -> None:
        if project is not None and not project.signed:
            raise ConfigError(f"project {project.name} is not signed: read it from the provisioner's file")
        if project is not None and identity is not None and identity.public != project.server.public:
            raise KeyFileError(f"{identity!r} is not the signing key of server {project.server.name!r} of the project")
        self._key = key
        self._limits, self._events = limits or Limits(), events or NoEvents()
        self._folder = RunFolder(folder)
        with ExitStack() as held:  # gives the lock back if anything below fails
            held.callback(self._folder.close)
            spool = Spool(self._folder, self._limits)
            self._bucket = None if bucket is None else Bucket(bucket, spool, project)
            self._round = OpenRound(
                Terms(config, key, project, self._folder),
                round_timeout,
                spool,
                Receipts(self._folder, identity),
                History(self._folder.path / "rounds.jsonl", self._events),
            )
            self._models = ModelStore(self._folder, lambda: self._round.manifests.project)
            self._members = Members(lambda: self._round.manifests, certified=certified)
            self._turns = Turns(self._limits)
            uploads = Uploads(self._members, self._turns, spool, self._round, self._models, self._events, self._bucket)
            terms = JoinReply(
                round=0,
                min_clients=config.aggregation.min_clients,
                max_clients=config.aggregation.max_clients,
                round_timeout=round_timeout,
                key=key.fingerprint,
                epoch=key.epoch,
            )
            self._desk = Desk(
                self._members,
                self._turns,
                uploads,
                self._round,
                self._models,
                self._events,
                lambda round, base, project: replace(
                    terms,
                    round=round,
                    base=base,
                    project=b"" if project is None else project.signed,
                    deposits=self._bucket is not None and self._bucket.serves(project),
                ),
                self.status,
            )
            self._round.keep_manifest()
            self._cleaner = Cleaner(self._folder)
            held.pop_all()
        self._watchers = [
            (threading.Thread(target=watched.watch, name=f"secagg-{name}", daemon=True), seconds)
            for name, watched, seconds in (
                ("rounds", self._round, None),
                ("turns", self._turns, None),
                ("bucket", self._cleaner, _CLEANING_SECONDS),
            )
        ]

    def start(self) -> None:
        """Begin to watch the clock; returns at once."""
        for watcher, _ in self._watchers:
            watcher.start()

    @contextmanager
    def call(self, certificates: Sequence[bytes], connection: Connection, peer: str) -> Iterator[Call]:
        """Let a call in if its caller may make it; whatever goes wrong in the block leaves it as a typed error.

        Parameters
        ----------
        certificates : sequence of bytes
            Of the connection, in PEM; a party has one.
        connection : Connection
            Says whether the other side still waits, and can be cancelled.
        peer : str
            Where the call comes from, for the log.

        Raises
        ------
        SecAggError
            What the other side is to be told, with type and message. Nothing of a native exception is in it, nor where
            the run folder lies.
        BusyError
            If there is no turn now: the other side is to try again.
        BrokenOffError
            If it has gone.
        """
        name, who = None, peer
        try:
            caller = self._members.caller(certificates)
            name = caller.name
            who = f"{name} at {peer}" if name else peer
            with self._members.counted(caller) as allowed:
                if not allowed:
                    raise BusyError(f"{name!r} has too many calls under way")
                yield Call(self._desk, caller, connection)
        except BusyError:
            raise
        except BrokenOffError:
            log.info("%s broke off", who, extra={"event": "broken_off", "site": name})
            raise
        except SecAggError as error:
            kind, message = type(error).__name__, shown(error)  # whoever keeps the record keeps no frames of this call
            extra = {"event": "refused", "site": name, "error": kind}
            log.warning("refused %s: %s: %s", who, kind, message, extra=extra)
            self._events.refused(kind)
            told = self._folder.hide(message)
            if told != message:
                raise type(error)(told) from None
            raise
        except Exception as error:
            extra = {"event": "failed", "site": name, "error": type(error).__name__}
            log.exception("a call of %s failed", who, extra=extra)
            self._events.refused(TransportError.__name__)
            raise TransportError("the server failed; its log says why") from None

    def status(self) -> ServerStatus:
        """Return how the round and the server's resources stand."""
        state, base, project = self._round.snapshot()
        left = None if state.deadline is None else max(0.0, state.deadline - time.monotonic())
        return ServerStatus(
            round=state.attempt.round,
            attempt=state.attempt.number,
            state="idle" if left is None else "open",
            added=state.added,
            skipped=state.skipped,
            stage=state.attempt.stage if self._round.calibrated else "",
            waiting_for=state.waiting_for,
            seconds_left=left,
            uploads_in_flight=self._turns.uploads,
            disk_used=self._folder.used(),
            disk_quota=self._limits.disk_quota,
            epoch=self._key.epoch,
            models=self._models.rounds,
            aggregates=state.completed,
            base=base,
            project_serial=0 if project is None else project.serial,
            disk_free=self._folder.free(),
            trouble=self._round.trouble,
            time=time.time(),
        )

    def release(self) -> None:
        """Let those go who wait for a round; they are told to come again. What is acknowledged stays."""
        self._round.release()

    def close(self) -> None:
        """Give the run folder back, once all calls have ended. The open round goes on at the next start."""
        self.release()
        self._turns.stop()
        self._cleaner.stop()
        for watcher, seconds in self._watchers:
            if watcher.ident is not None:
                watcher.join(seconds)
        self._folder.close()
