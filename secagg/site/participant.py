"""A site's part in a federation, which goes on after whatever has interrupted it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from ..client import Client
from ..errors import (
    DuplicateError,
    ManifestMismatchError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    StateError,
    StorageError,
    TransportError,
    VerificationError,
)
from ..protocol.messages import ServerStatus
from ..setup.progress import Report
from ..storage.files import replace_file
from ..trust.agreement import check_first_base, check_project_layout
from ..trust.kit import SiteKit
from ..wire.header import Header
from ..wire.update import Update
from .best_model import Best, find_best, forget_best, keep_best, keep_for_best, open_best
from .catching_up import MAX_MISSES, catch_up, model_to_load
from .first_model import begin_from
from .folder import (
    CARRY_FILE,
    DOWNLOAD_FILE,
    MODEL_FILE,
    NEW_UPDATE_FILE,
    OWN_FILE,
    RECEIPT_FILE,
    SCALES_FILE,
    TRAINED_FILE,
    UPDATE_FILE,
    make_old_client,
)
from .global_model import GlobalModel
from .own_update import keep_carry, restore_carry, restore_own, write_update
from .promise import binding_receipt, check_kept, is_acknowledged, promised_round, release
from .reporter import Reporter
from .session import Session
from .trained import Trained


class Participant:
    """Keeps a global model in step with a federation.

    Parameters
    ----------
    kit : SiteKit
        The site's kit.
    session : Session
        Its connection, under the kit's manifest.
    model : GlobalModel
        The initial one, with the client of the kit.
    reporter : Reporter, optional
        Is told what happens; without one, nobody is.
    first_by : str, optional
        Site from whose first model a federation that has not begun begins; see `begin_from`.

    Raises
    ------
    LayoutError
        If the model is another than the project's.
    VerificationError
        If it begins the federation with other values than the project's.

    Attributes
    ----------
    model : GlobalModel
        The same, wherever the federation is.
    reporter : Reporter
        As given, or one that tells nothing.
    calibration_nbytes : int
        Size of the latest calibration, if rounds begin with one.
    calibrate_seconds, decrypt_seconds : float
        Wall-clock time that the latest calibration took, with waiting for others; and that the latest aggregate took to
        be checked, decrypted and applied.
    """

    def __init__(
        self,
        kit: SiteKit,
        session: Session,
        model: GlobalModel,
        reporter: Reporter | None = None,
        first_by: str | None = None,
    ) -> None:
        check_project_layout(kit.project, model.layout)
        if model.round == 0 and first_by in (None, kit.name):
            check_first_base(kit.project, model.base)
        self.model = model
        self.calibration_nbytes = 0
        self.calibrate_seconds = self.decrypt_seconds = 0.0
        self._kit = kit
        self._session = session
        self._first_by = first_by
        self.reporter = reporter or Reporter()
        self._update = kit.folder / UPDATE_FILE
        self._begun = False  # whether the model is more than the initial one
        self._skipped: int | None = None  # the latest round to which nothing was given
        self._trained: Trained | None = None  # what was encrypted
        self._stale = 0  # how often the server had other scales for what was encrypted for the round
        self._unusable: dict[int, SecAggError] = {}  # models on the server by their rounds, and why
        self._revoked: dict[int, tuple[str, ...]] = {}  # aggregates that cannot be used since, and because of whom
        self._bases: dict[int, bytes | None] = {}  # those of rounds after such aggregates, where one was promised

    @property
    def update_nbytes(self) -> int:
        """Size of the update in the folder."""
        return self._update.stat().st_size

    def join(self) -> None:
        """Join, keep the server's manifest, and bring the global model to the open round.

        It goes on from the site's own copy of the global model, else from that which another site has stored on the
        server, and takes the aggregates since.

        Raises
        ------
        KeyMismatchError
            If the federation has a new HE key.
        StateError
            If the server is behind this site, or keeps too little to catch up with it.
        VerificationError
            If the server has acknowledged an update, and shows no aggregate of its round.
        MismatchError
            If the others train from another global model.
        SecAggError
            Whatever else the server, its manifest, model or aggregates are refused for.
        """
        fresh = not self._begun
        self._take_manifest()
        if fresh:
            self._load_own()
            self._restore_own()
            with suppress(SecAggError):  # before an aggregate tells that the update which has left it is in no sum
                restore_carry(self._kit.folder, self.model)
        first, kit = self._first_by, self._kit
        stores = (
            first == kit.name and self.model.round == 0
        )  # an earlier process may have kept it, and not come to that
        if first is not None and fresh and (stores or not self._begun):
            begun = begin_from(first, kit.folder, kit.project, self._session, self.model, self.reporter)
            self._begun = self._begun or begun
        self._catch_up()
        self._begun = True
        if fresh and not self.model.site.carries:
            self._restore_carry()

    def has_update(self) -> bool:
        """Return whether the update of the round that the model is at lies in the folder, whole."""
        model = self.model
        try:
            with Update.open(self._update) as update:
                header = update.header
                expected = ("update", model.round, model.base, self._kit.key.fingerprint, self._kit.name)
                if (header.kind, header.round, header.base, header.key, header.site) != expected:
                    return False
                if header.manifest != self._kit.project.digest:  # it would be in no sum
                    return False
                if model.layout.difference(header.layout):
                    return False
                for _ in update.frames():  # checks each digest
                    pass
                return True
        except SecAggError:
            return False  # it is made anew

    def has_trained(self) -> bool:
        """Return whether what was trained for the round that the model is at is at hand, if not encrypted yet."""
        model = self.model
        if self._trained is None or (self._trained.round, self._trained.base) != (model.round, model.base):
            self._trained = Trained.find(self._kit.folder, model.round, model.base)
        return self._trained is not None

    def encrypt(self, local: Mapping[str, Any], weight: float, metrics: Mapping[str, float] | None = None) -> None:
        """Encrypt what has been trained, as the update in the folder; see `GlobalModel.encrypt`.

        Metrics are of the global model that training began from.

        Where a round begins with a calibration, that comes first, and this waits for the others. What was trained is in
        the folder meanwhile: another process does not train again, but calls `encrypt_again`.

        What `local` holds stays as it is until `receive`: `renew` may need it again.

        Raises
        ------
        QuorumError
            If the calibration lacked other sites too often; see `Session.calibrate`. What was trained stays there.
        RoundMismatchError
            If the round has ended without this site.
        SecAggError
            Whatever calibration or update are refused for.
        """
        self._trained = Trained(self.model.round, self.model.base, local, weight, metrics or {})
        self.encrypt_again()

    def encrypt_again(self) -> None:
        """Encrypt what was trained for the round, by an earlier process perhaps: see `has_trained` and `encrypt`."""
        assert self._trained is not None
        try:
            with self._calibrate(self._trained) if self.model.calibrates else nullcontext() as scales:
                write_update(self._kit.folder, self.model, self._trained, scales)
        except ManifestMismatchError as error:
            self.renew(error)

    def renew(self, refusal: ManifestMismatchError | ScalesMismatchError) -> bool:
        """Join again, and encrypt what has been trained again, when the round has other terms than the update.

        Another manifest has taken the place of its own, or other scales, as the server has lost those of the round.
        The server cannot drive a site on and on by this: each time it must show a later manifest, which only the
        provisioner signs; and scales, it loses a few times only.

        Parameters
        ----------
        refusal : ManifestMismatchError or ScalesMismatchError
            What the update was refused for.

        Returns
        -------
        bool
            False if an earlier process has trained, and has not kept it: then it must be trained again.

        Raises
        ------
        ManifestMismatchError, ScalesMismatchError
            If there is no later manifest; if scales were lost too often.
        RoundMismatchError
            If the round has ended without this site.
        SecAggError
            As of `join` and `encrypt`.
        """
        before, round = self._kit.project, self.model.round
        self.join()
        project = self._kit.project
        if project.serial <= before.serial:
            self._stale += 1
            if not isinstance(refusal, ScalesMismatchError) or self._stale > MAX_MISSES:
                raise refusal
        if self.model.round != round:
            raise RoundMismatchError(f"round {round} ended without this site ({refusal})") from refusal
        known = {site.name for site in before.sites if site.revoked}
        revoked = [site.name for site in project.sites if site.revoked and site.name not in known]
        if not revoked and is_acknowledged(self._kit, round):
            self.reporter.warning(
                f"ATTENTION: the server had acknowledged this site's update of round {round}, and refuses it now "
                "although nobody has been revoked: ask its operators why"
            )
        what = "other scales" if isinstance(refusal, ScalesMismatchError) else "another manifest"
        why = f"was voided: {_have_been_revoked(revoked)}" if revoked else f"is under {what} by now"
        if not self.has_trained():
            self._update.unlink(missing_ok=True)
            self.reporter.news(f"round {round} {why}; to be trained again under manifest {project.serial}")
            return False
        self.model.withdraw()
        self.encrypt_again()
        self.reporter.news(f"round {round} {why}; encrypted again under manifest {project.serial}")
        return True

    def upload(self, report: Report) -> None:
        """Upload the update in the folder, from where an earlier try broke off, and keep the receipt.

        Raises
        ------
        ManifestMismatchError, ScalesMismatchError
            If it is under another manifest than the round, or other scales: `renew` it, and upload again. So for
            `download`.
        SecAggError
            Whatever else it is refused for.
        """
        self._skipped = None
        try:
            receipt = self._session.upload(self._update, report).receipt
        except DuplicateError:
            return  # one of an earlier process is in the sum: `download` says so, and waits for that
        if receipt is not None:
            with replace_file(self._kit.folder / RECEIPT_FILE) as file:
                file.write(receipt.to_bytes())

    def skip(self) -> None:
        """Give nothing to the round that the model is at, which does not wait for this site then."""
        with suppress(DuplicateError):  # an update of an earlier process is in the sum
            self._session.skip(self.model.round)
        self._skipped = self.model.round

    def download(self, report: Report) -> Update:
        """Wait for the end of the round and download its aggregate; upload again if the server has lost the update."""
        target = self._kit.folder / DOWNLOAD_FILE
        if self._skipped == self.model.round:
            return self._session.download(self.model.round, target, report)
        return self._session.exchange(self._update, target, report)

    def receive(self, aggregate: Update) -> None:
        """Apply an aggregate, held against the own receipt, and keep the new global model."""
        header = aggregate.header
        receipt = binding_receipt(self._kit, header, self.reporter)
        if receipt is None:  # the server has not said that it has an update of this site: it need not be in the sum
            self.model.withdraw()
        key = next(iter(self.model.metric_names), None)
        if key is not None:
            keep_for_best(self._kit.folder, self.model)
        start = time.perf_counter()
        with self._reader(header):
            if not self.model.apply(aggregate, receipt):  # a server that plays back the last one
                raise RoundMismatchError(f"the aggregate is of round {header.round}, not of round {self.model.round}")
        self.decrypt_seconds = time.perf_counter() - start
        self._trained, self._stale = None, 0
        self._settle_carry(header)
        if key is not None and keep_best(self._kit.folder, header.round, key, self.model.metrics):
            self.reporter.news(
                f"round {header.round}: the model that it began from is the best so far: {key} "
                f"{self.model.metrics[key]:.4f}, mean of all sites"
            )
        self.model.save_model(self._kit.folder / MODEL_FILE)
        (self._kit.folder / TRAINED_FILE).unlink(missing_ok=True)
        release(self._kit, header.round)

    @property
    def best(self) -> Best | None:
        """Why the best global model is the best; None while there is none."""
        return find_best(self._kit.folder)

    def best_state(self) -> dict[str, Any]:
        """Return the best global model, with the site's own tensors as they are now; see `GlobalModel.state`.

        Raises
        ------
        SecAggError
            If there is none, or it cannot be read.
        """
        with open_best(self._kit.folder) as stored, self._reader(stored.header):
            return self.model.state_of(stored)

    def store_model(self, aggregate: Header) -> bool:
        """Store the global model on the server if that is this site's turn, and return whether it did."""
        if not self._session.has_turn(aggregate):
            return False
        with self.reporter.step(f"store the global model of round {self.model.round} on the server") as report:
            return self._session.save_model(self._kit.folder / MODEL_FILE, report)

    def clear(self) -> None:
        """Remove what is of no use after the last round; the global model stays, and what is to be carried."""
        if self.has_update() or self.has_trained():
            return  # of the open round: for others, that was not the last one, nor perhaps for the next process
        for name in (UPDATE_FILE, NEW_UPDATE_FILE, TRAINED_FILE, SCALES_FILE, RECEIPT_FILE, DOWNLOAD_FILE):
            (self._kit.folder / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Say, after the last round, that this site gives nothing to the open one: nobody waits for it then."""
        if not self.has_update() and not self.has_trained():  # else it has something to give
            self._session.leave(self.model.round)

    def _calibrate(self, trained: Trained) -> Update:
        """Calibrate for what has been trained, which is kept meanwhile, and return the scales of the round."""
        model, target, start = self.model, self._kit.folder / SCALES_FILE, time.perf_counter()
        calibration = model.calibrate(trained.local, trained.weight, trained.metrics)
        trained.keep(self._kit.folder)  # now that it can be sent

        def again(error: QuorumError) -> None:
            self.reporter.news(f"round {model.round}: waiting again: {error}")

        with self.reporter.step(f"round {model.round}: calibrate, and wait for others") as report:
            try:
                scales = self._session.calibrate(calibration, target, report, again)
            except QuorumError as error:
                raise QuorumError(f"{error}; what was trained is kept, and not trained again") from error
        self.calibration_nbytes, self.calibrate_seconds = calibration.nbytes, time.perf_counter() - start
        return scales

    def _take_manifest(self) -> None:
        """Join, and keep the server's manifest."""
        kit = self._kit.store_manifest(self._session.join().manifest)
        if kit.project != self._kit.project:
            carry = self.model.site.carry()
            self._kit, self.model.site = kit, Client.load(kit)
            self.model.site.restore_carry(carry)

    def _catch_up(self) -> None:
        """Bring the model to the open round, and take a later manifest, if the server has come back with one."""
        folder = self._kit.folder
        advice = (
            f". If its operators say the former, move {folder / MODEL_FILE} away and start again: this site goes on "
            "from the server's model then"
        )
        while True:
            try:
                return catch_up(self.model, self._session.status, self._step, advice)
            except ManifestMismatchError:
                serial = self._kit.project.serial
                self._take_manifest()
                if self._kit.project.serial <= serial:  # each time the provisioner must have signed one
                    raise

    def _step(self, status: ServerStatus) -> None:
        """Bring the model nearer to the open round, or find out what cannot do so."""
        here = self.model.round
        aggregates = set(status.aggregates) - self._revoked.keys()
        models = {number for number in status.models if number <= status.round} - self._unusable.keys()
        promised = promised_round(self._kit, here, status, self.reporter)
        if promised is not None:  # a later model could be one that was made without this site's update
            models = {number for number in models if number <= promised}
        until = status.round if promised is None else promised + 1
        try:
            stored = model_to_load(here, until, models, aggregates, self._begun)
        except StateError as error:
            if promised is not None:  # what cannot be applied can still tell whether the server has kept its word
                with self._aggregate(promised) as aggregate:
                    self._hold(aggregate)
                return
            raise StateError(f"the federation is at round {status.round}: {error}{self._why()}") from None
        if stored is not None:
            self._load_stored(stored)
            return
        with self._aggregate(here) as aggregate:
            revoked = self._kit.project.revoked_since(aggregate.header)
            if revoked:
                self._revoked[here] = revoked
                self.reporter.news(f"the aggregate of round {here} cannot be used: {_have_been_revoked(revoked)} since")
                self._settle_carry(aggregate.header)
            else:
                self.receive(aggregate)
                self._begun = True
                self.reporter.news(f"round {here}: caught up with the sum of {', '.join(aggregate.header.sites)}")

    def _aggregate(self, round: int) -> Update:
        """Download an aggregate of a round that has ended."""
        with self.reporter.step(f"round {round}: download the aggregate") as report:
            return self._session.download(round, self._kit.folder / DOWNLOAD_FILE, report)

    def _hold(self, aggregate: Update) -> None:
        """Hold an aggregate, which is not applied, against the own receipt, so that later models may be taken."""
        header = aggregate.header
        receipt = binding_receipt(self._kit, header, self.reporter)
        if receipt is not None:
            check_kept(self._kit, aggregate, receipt)
            self._bases[header.round + 1] = aggregate.next_base
            self.reporter.news(
                f"the aggregate of round {header.round} lists this site's update, as the server has promised; going on "
                "from a model that has been stored since"
            )
        release(self._kit, header.round)

    def _settle_carry(self, header: Header) -> None:
        """Let error feedback know if a sum is without this site: what was sent for it, if anything, is in none."""
        if self._kit.name not in header.sites:
            self.model.site.withdraw(header.round)  # the one that has read it may be of an earlier epoch
            keep_carry(self._kit.folder, self.model)

    def _why(self) -> str:
        """Return why the models and aggregates that the server has are of no use."""
        models = [f"; that of round {number} cannot be used: {reason}" for number, reason in self._unusable.items()]
        sums = [
            f"; the aggregate of round {number} cannot be used: {_have_been_revoked(revoked)} since"
            for number, revoked in self._revoked.items()
        ]
        return "".join((*models, *sums))

    def _load_own(self) -> None:
        """Load the own copy of the global model, if it can be read."""
        path = self._kit.folder / MODEL_FILE
        if not path.exists():
            forget_best(self._kit.folder)  # it is of a training that this site does not go on with
            return
        try:
            with Update.open(path) as model:
                header = model.header
                with self._reader(header):
                    self.model.load_model(model)
        except SecAggError as error:
            self.reporter.news(f"{path} cannot be used: {error}")
            return
        self._begun = True
        self.reporter.news(f"going on from its own global model, of round {header.round}")

    def _restore_own(self) -> None:
        path = self._kit.folder / OWN_FILE
        try:
            restore_own(self._kit.folder, self.model)
        except SecAggError as error:
            self.reporter.warning(f"{path}: this site's own tensors begin anew: {error}")
        if self.model.not_stored:
            self.reporter.warning(
                f"{', '.join(map(repr, self.model.not_stored))} stay at this site, are no tensors, and begin anew "
                "whenever it is started again"
            )

    def _restore_carry(self) -> None:
        try:
            restore_carry(self._kit.folder, self.model)
        except SecAggError as error:
            path = self._kit.folder / CARRY_FILE
            self.reporter.warning(f"{path}: what error feedback carried to the next update is lost: {error}")

    def _load_stored(self, round: int) -> None:
        """Load a global model that is stored on the server, or note that it is of no use."""
        try:
            with (
                self.reporter.step(f"download the global model of round {round}") as report,
                self._session.load_model(self._kit.folder / DOWNLOAD_FILE, round, report) as model,
            ):
                site = model.header.site
                if model.header.base != self._bases.get(round, model.header.base):
                    raise VerificationError(
                        f"it does not follow the aggregate of round {round - 1} that the server shows to this site"
                    )
                with self._reader(model.header):
                    self.model.load_model(model)
        except (RoundMismatchError, StorageError, TransportError):
            raise
        except SecAggError as error:
            if len(self._unusable) == MAX_MISSES:
                raise
            self.reporter.news(f"the global model of round {round} on the server cannot be used: {error}")
            self._unusable[round] = error
            return
        self._begun = True
        self.model.save_model(self._kit.folder / MODEL_FILE)
        self.reporter.news(f"going on from the global model of round {round} that {site} has stored")

    @contextmanager
    def _reader(self, header: Header) -> Iterator[None]:
        """Let the model read with the key of an earlier epoch, if need be."""
        if header.epoch == self._kit.project.epoch:
            yield
            return
        if header.epoch not in self._kit.old_epochs:
            raise StateError(
                f"the {header.kind} of round {header.round} is encrypted under the key of epoch {header.epoch}, which "
                f"{self._kit.folder} does not have: start this site again when the others have finished a round"
            )
        current = self.model.site
        self.model.site = make_old_client(self._kit, header.epoch)
        try:
            yield
        finally:
            self.model.site = current


def _have_been_revoked(sites: Collection[str]) -> str:
    return f"{', '.join(sites)} {'has' if len(sites) == 1 else 'have'} been revoked"
