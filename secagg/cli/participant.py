"""A site's part in a federation, which goes on after whatever has interrupted it. Its state lies in the kit's folder.

=====================  ============================================================================
``model.secagg``       the global model that its current round begins from, encrypted and signed
``update.secagg``      its update of the round, from the end of training on
``receipt.secagg``     the server's receipt for that update
``download.secagg``    the aggregate or model that was downloaded last
``failures``           which key did not decrypt an aggregate, as often as that happened
``lock``               held by the process that works here
=====================  ============================================================================
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..client import Client
from ..config import Config
from ..errors import ConfigError, DuplicateError, MismatchError, RoundMismatchError, SecAggError, StateError
from ..files import replace_file
from ..header import Header
from ..receipt import Receipt
from ..update import Update
from .kit import SiteKit
from .progress import Report, progress

if TYPE_CHECKING:
    from ..integrations.grpc import RoundStatus, SiteSession
    from ..integrations.monai import SecAggHandler

MODEL_FILE = "model.secagg"
UPDATE_FILE = "update.secagg"
RECEIPT_FILE = "receipt.secagg"
DOWNLOAD_FILE = "download.secagg"
FAILURES_FILE = "failures"
LOCK_FILE = "lock"

#: How often a server may say that it has a model or an aggregate, and then that it has not.
_MAX_MISSES = 5
_DAY_SECONDS = 86_400


def make_client(kit: SiteKit) -> Client:
    """Return the client of a site's kit; its failures are counted in the kit's folder."""
    failures = kit.folder / FAILURES_FILE
    return Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project, failures=failures)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes of the same site away from its files; `ConfigError` if one is at work."""
    with (folder / LOCK_FILE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another `secagg site` is at work in {folder}; one kit, one process") from error
        yield


class Participant:
    """Keeps a handler in step with a federation.

    Parameters
    ----------
    kit : SiteKit
        The site's kit.
    session : SiteSession
        Its connection, under the kit's manifest.
    handler : SecAggHandler
        With the client of the kit, the initial global model, and ``update.secagg`` in the kit's folder as upload path.
    """

    def __init__(self, kit: SiteKit, session: SiteSession, handler: SecAggHandler) -> None:
        self._kit = kit
        self._session = session
        self._handler = handler
        self._update = kit.folder / UPDATE_FILE
        self._begun = False  # whether the handler has more than the initial global model

    @property
    def config(self) -> Config:
        """The federation's configuration."""
        return self._kit.config

    @property
    def update_nbytes(self) -> int:
        """Size of the update in the folder."""
        return self._update.stat().st_size

    def join(self) -> None:
        """Join, keep the server's manifest, and bring the handler to the open round.

        The handler goes on from the site's own copy of the global model, else from that which another site has stored
        on the server, and applies the aggregates since.

        Raises
        ------
        KeyMismatchError
            If the federation has a new HE key.
        StateError
            If the server is behind this site, or keeps too little to catch up with it.
        MismatchError
            If the others train from another global model.
        SecAggError
            Whatever else the server, its manifest, model or aggregates are refused for.
        """
        kit = self._kit.store_manifest(self._session.join().manifest)
        if kit.project != self._kit.project:
            self._kit, self._handler.site = kit, make_client(kit)
        status = self._session.status()
        if not self._begun:
            self._load_own(status)
        misses = 0
        while self._handler.round != status.round:
            try:
                self._step(status)
            except RoundMismatchError:  # it has been replaced by a newer one since
                misses += 1
                if misses == _MAX_MISSES:
                    raise
            status = self._session.status()
        self._begun = True
        if status.base not in (None, self._handler.base):
            raise MismatchError(
                f"round {status.round} begins from another global model than this site has: give all sites the same "
                f"--seed; if the server was restored from a backup, remove {self._kit.folder / MODEL_FILE}"
            )

    def has_update(self) -> bool:
        """Return whether the update of the round that the handler is at lies in the folder, whole."""
        handler = self._handler
        if handler.global_state is None:
            return False
        try:
            with Update.open(self._update) as update:
                header = update.header
                expected = ("update", handler.round, handler.base, self._kit.key.fingerprint, self._kit.name)
                if (header.kind, header.round, header.base, header.key, header.site) != expected:
                    return False
                if handler.site.layout(handler.global_state).difference(header.layout):
                    return False
                for _ in update.frames():  # checks each digest
                    pass
                return True
        except SecAggError:
            return False  # it is made anew

    def upload(self, report: Report) -> None:
        """Upload the update in the folder, from where an earlier try broke off, and keep the receipt."""
        try:
            receipt = self._session.upload(self._update, report).receipt
        except DuplicateError:
            return  # one of an earlier process is in the sum: `download` says so, and waits for that
        if receipt is not None:
            with replace_file(self._kit.folder / RECEIPT_FILE) as file:
                file.write(receipt.to_bytes())

    def download(self, report: Report) -> Update:
        """Wait for the end of the round and download its aggregate; upload again if the server has lost the update."""
        return self._session.exchange(self._update, self._kit.folder / DOWNLOAD_FILE, report)

    def receive(self, aggregate: Update) -> None:
        """Let the handler take an aggregate, held against the own receipt, and keep the new global model."""
        header = aggregate.header
        with self._reader(header):
            self._handler.receive(aggregate, self._receipt(header.round))
        self._handler.save_model(self._kit.folder / MODEL_FILE)

    def store_model(self, aggregate: Header) -> bool:
        """Store the global model on the server if that is this site's turn, and return whether it did.

        The sites of an aggregate take turns. If the one whose turn it is has gone, the model of the round is missing:
        the server keeps two models, and the aggregates of two rounds.
        """
        sites = sorted(aggregate.sites)
        if sites[self._handler.round % len(sites)] != self._kit.name:
            return False
        if self._handler.round in self._session.status().models:
            return False
        with progress(f"store the global model of round {self._handler.round + 1} on the server") as report:
            return self._session.save_model(self._kit.folder / MODEL_FILE, report)

    def clear(self) -> None:
        """Remove what is of no use after the last round; the global model stays."""
        for name in (UPDATE_FILE, RECEIPT_FILE, DOWNLOAD_FILE):
            (self._kit.folder / name).unlink(missing_ok=True)

    def _step(self, status: RoundStatus) -> None:
        """Bring the handler nearer to the open round."""
        here = self._handler.round
        if here > status.round:
            raise StateError(
                f"the server is at round {status.round}, this site at round {here}: if the server was restored from a "
                "backup, start this site again; it goes on from the server's model then"
            )
        models = [number for number in status.models if here < number <= status.round]
        missing = set(range(here, status.round)) - set(status.aggregates)
        if models and (missing or not self._begun):
            self._load_stored(max(models))
        elif not missing:
            with (
                progress(f"round {here + 1}: download the aggregate") as report,
                self._session.download(here, self._kit.folder / DOWNLOAD_FILE, report) as aggregate,
            ):
                self.receive(aggregate)
            print(f"round {here + 1}: caught up with the sum of {', '.join(aggregate.header.sites)}", flush=True)
        else:
            raise StateError(
                f"the federation is at round {status.round}, this site has the model of round {here}; the server keeps "
                f"no later model, and no aggregate of round {min(missing)}: wait until a site has stored a model"
            )
        self._begun = True

    def _load_own(self, status: RoundStatus) -> None:
        """Load the own copy of the global model, if it is of use."""
        path = self._kit.folder / MODEL_FILE
        if not path.exists():
            return
        try:
            with Update.open(path) as model:
                header = model.header
                if header.round > status.round or (
                    header.round == status.round and status.base not in (None, header.base)
                ):
                    print(f"{path} is of another course of the federation (round {header.round}): not used", flush=True)
                    return
                with self._reader(header):
                    self._handler.load_model(model)
        except SecAggError as error:
            print(f"{path} cannot be used: {error}", flush=True)
            return
        self._begun = True
        print(f"going on from the own global model of round {header.round + 1}", flush=True)

    def _load_stored(self, round: int) -> None:
        """Load a global model that is stored on the server."""
        with (
            progress(f"download the global model of round {round + 1}") as report,
            self._session.load_model(self._kit.folder / DOWNLOAD_FILE, round, report) as model,
        ):
            with self._reader(model.header):
                self._handler.load_model(model)
            site = model.header.site
        self._handler.save_model(self._kit.folder / MODEL_FILE)
        print(f"going on from the global model of round {round + 1} that {site} has stored", flush=True)

    def _receipt(self, round: int) -> Receipt | None:
        """Return the server's receipt for this site's update of a round, also one from before a restart."""
        receipt = self._session.receipt(round)
        if receipt is not None:
            return receipt
        try:
            receipt = Receipt.from_bytes((self._kit.folder / RECEIPT_FILE).read_bytes())
            with Update.open(self._update) as update:
                receipt.check(update, self._kit.project)
                return receipt if update.header.round == round else None
        except (OSError, SecAggError):  # none, or for another update
            return None

    @contextmanager
    def _reader(self, header: Header) -> Iterator[None]:
        """Let the handler read with the key of an earlier epoch, if need be."""
        if header.epoch == self._kit.project.epoch:
            yield
            return
        if header.epoch not in self._kit.old_epochs:
            raise StateError(
                f"the {header.kind} of round {header.round} is encrypted under the key of epoch {header.epoch}, which "
                f"{self._kit.folder} does not have: start this site again when the others have finished a round"
            )
        old = self._kit.old_epoch(header.epoch)
        # It need not be valid any more: what it is for was made when it was.
        expires = max(old.project.expires, int(time.time()) + _DAY_SECONDS)
        current = self._handler.site
        self._handler.site = make_client(replace(old, project=replace(old.project, expires=expires)))
        try:
            yield
        finally:
            self._handler.site = current
