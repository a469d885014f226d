"""The client: what a site does. It encrypts its own update, and checks and decrypts aggregates."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, NoReturn, TypeVar

import numpy as np

from .config import Config
from .encryption import Encryption
from .errors import (
    ConfigError,
    KeyFileError,
    LayoutError,
    PrecisionWarning,
    PrivacyWarning,
    RangeError,
    show,
    warn,
    warn_once,
)
from .measuring import Measuring
from .scheme.params import QuantisedParams
from .scheme.report import MAX_LOSS, PrecisionReport, show_share
from .scheme.scales import Scales
from .scheme.tensors import FLOAT_DTYPES, to_vector
from .storage.files import Target, Writable
from .storage.objects import open_target
from .trust.agreement import check_header, check_key, check_project, check_project_layout
from .trust.contributions import check_contributions
from .trust.failures import Failures
from .trust.identity import Identity
from .trust.key import ClientKey, check_role
from .trust.kit import SiteKit, site_kit
from .trust.kit_files import FAILURES_FILE
from .trust.nonces import NO_NONCE
from .trust.project import Project
from .trust.receipt import Receipt
from .trust.sealed_model import read_model, write_model
from .wire.carry import StoredCarry
from .wire.exposure import exposure
from .wire.header import Contribution, Header, check_base, check_round, check_site
from .wire.layout import Layout
from .wire.state_dict import arrange, check_finite, check_like, check_state, refuse_copies
from .wire.update import Update, check_update

_Stream = TypeVar("_Stream", bound=Writable)


class Client:
    """One site of a federation. Threads may share it, and a forked process may go on with it.

    With ``error_feedback`` it has a state, its `carry`: what rounding dropped from its latest update is added to its
    next. Who makes a client anew for the next round restores that. That of a forked process ends with it.

    Parameters
    ----------
    config : Config
        The federation's configuration.
    key : ClientKey
        The key that all sites share.
    name : str
        Name of the site: 1 to 64 letters, digits, dots, hyphens or underscores.
    identity : Identity, optional
        What the site signs its updates with.
    project : Project, optional
        Who takes part. With it, `decrypt` wants every contribution signed by its site.
    failures : path, optional
        File that counts the aggregates that did not decrypt, so that a restart does not begin at 0.

    Raises
    ------
    ConfigError
        If the name is invalid, or sums of ``max_clients`` updates would not fit the params.
    BackendUnavailableError
        If the HE library of ``he.lib`` is not installed.
    KeyFileError
        If a server key is given, a key or identity that is not the project's, or `failures` is damaged.
    IdentityError
        If the site is not in the project, or no more.
    MismatchError
        If the key was made for other params, or the project has another configuration.
    """

    def __init__(
        self,
        config: Config,
        key: ClientKey,
        name: str,
        *,
        identity: Identity | None = None,
        project: Project | None = None,
        failures: str | os.PathLike[str] | None = None,
    ) -> None:
        check_role(key, ClientKey)
        check_key(config, key.server)
        config.aggregation.warn()
        self._config = config
        self._secret = key
        self._key = key.server
        self._name = check_site(name)
        self._identity, self._project = identity, project
        if project is not None:
            check_project(config, key.server, project)
            public = project.site(name).public
            if identity is None or identity.public != public:
                raise KeyFileError(
                    f"project {project.name} lists the signing key {public.hex()[:16]}… for site {name!r}, given is "
                    f"{identity}: use the files of one kit"
                )
        self._failures = Failures(key.server, failures)
        self._told = False  # that some tensors are in the clear
        self._told_loss = False  # that rounding loses much
        self._encryption = Encryption(config, key)
        self._measuring = Measuring(config, key, project, self._failures, self._encryption)

    @classmethod
    def load(cls, kit: SiteKit | str | os.PathLike[str]) -> Client:
        """Return the client of the site whose kit it is, under the name that the manifest gives its public key.

        Aggregates that do not decrypt are counted in the kit's folder.

        Parameters
        ----------
        kit : path or SiteKit
            The site's kit: its folder, or what `secagg.trust.load_site_kit` read there.

        Raises
        ------
        ConfigError
            If the kit's configuration is missing or invalid.
        KeyFileError
            If another file of the kit is missing or damaged, or `kit` is not one of a site.
        IdentityError
            If the manifest has revoked the site.
        BackendUnavailableError
            If the HE library of ``he.lib`` is not installed.
        """
        kit = site_kit(kit)
        failures = kit.folder / FAILURES_FILE
        return cls(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project, failures=failures)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a client holds a secret key and is not pickled; make it where it is used, by Client.load(kit)")

    @property
    def name(self) -> str:
        """Name of the site."""
        return self._name

    @property
    def config(self) -> Config:
        """The federation's configuration."""
        return self._config

    @property
    def clipped(self) -> int:
        """How many values of the last update were beyond their bound and were clipped (``overflow: clip``)."""
        return self._encryption.clipped

    @property
    def report(self) -> PrecisionReport | None:
        """How precisely the latest update was sent; None before the first, in CKKS, and of one that measured only."""
        return self._encryption.report

    @property
    def verified(self) -> bool:
        """Whether what `decrypt` returns is the mean of exactly the updates that the aggregate lists: always.

        Sums are held against the tags of the updates, word by word, in every scheme.
        """
        return True

    def layout(self, state: Mapping[str, Any]) -> Layout:
        """Return how a state dict would be sent: what is encrypted, what is clear, what stays here.

        Everything that can be found before training is found here: call it first.

        Raises
        ------
        LayoutError, ConfigError
            As `encrypt` would; also if it is another model than the project's.
        RangeError
            If a value is NaN or infinite: the difference of two such is no number either.
        """
        layout = self._layout(state, None)
        self.check(layout, state)
        return layout

    def check(self, layout: Layout, state: Mapping[str, Any]) -> None:
        """Find out before training whether a model can be sent in a layout; `layout` has done so for its own.

        Parameters
        ----------
        layout : Layout
            How the tensors will be sent.
        state : mapping of str to torch.Tensor or numpy.ndarray
            Their values now.

        Raises
        ------
        LayoutError, ConfigError, RangeError
            As of `layout`.
        """
        self._layout(state, layout)
        self._new_header("update", layout, 0, None).check_room()
        check_finite(layout, state)
        if self._project is not None:
            check_project_layout(self._project, layout)

    def check_weight(self, weight: float) -> float:
        """Return a weight as a float.

        Raises
        ------
        RangeError
            As `encrypt` would, only before hours of training.
        """
        aggregation = self._config.aggregation
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.integer, np.floating)):
            raise RangeError(f"weight is {show(weight)}; give a number above 0")
        number = weight if isinstance(weight, int) else float(weight)
        if not 0 < number < math.inf:
            rest = "a site with nothing to give to a round calls session.skip(round) or sends nothing, then applies it"
            idle = f": {rest}" if number == 0 else ""
            raise RangeError(f"weight is {show(number)}; it must be above 0 and finite{idle}")
        smallest, largest = aggregation.smallest_weight, aggregation.largest_weight
        if number > largest and aggregation.max_weight is not None:
            raise RangeError(
                f"weight {show(weight)} is over aggregation.max_weight {largest:g}: set max_weight to the largest "
                "weight of any site (its number of examples, say) in the configuration that all share"
            )
        if not smallest <= number <= largest:
            raise RangeError(f"weight {show(weight)} is outside {smallest:g} to {largest:g}: count in another unit")
        self._encryption.check_weight(float(number))
        return float(number)

    def base(self, state: Mapping[str, Any], context: str = "") -> bytes:
        """Return the digest of a global model, which says what training began from; see `Layout.base`.

        `GlobalModel` holds 16-bit floats as float32: its base is that of ``layout.widened()``.
        """
        return self._layout(state, None).base(state, context)

    def encrypt(
        self,
        state: Mapping[str, Any],
        weight: float = 1.0,
        round: int = 0,
        *,
        base: bytes | None = None,
        layout: Layout | None = None,
        calibration: Update | Scales | None = None,
    ) -> Update:
        """Encrypt a state dict, or a difference of two, as this site's update of a round.

        Parameters
        ----------
        state : mapping of str to torch.Tensor or numpy.ndarray
            Float tensors are sent; integer and bool tensors stay here.
        weight : float
            Weight of this site in the mean, above 0 and at most ``max_weight``.
        round : int
            Round of the federation, from 0.
        base : bytes, optional
            What training began from: `base` of the first global model, then `Update.next_base` of each aggregate.
            Updates of one round must agree on it. Without it, an aggregate of another run under the same key fits.
        layout : Layout, optional
            How the tensors are sent: `layout` of the model that they are the difference of, which tells what is one
            tensor there, though a difference may be made tensor by tensor. Without it, that of `state`.
        calibration : Update, optional
            Where scales are measured. With ``precision: auto`` the sum of the `calibrate` of this round's sites: what
            it has missed is clipped, and due in the next round. With ``precision: previous`` the aggregate of the round
            before; in round 0 there is none, and the update measures only.

        Returns
        -------
        Update
            In memory. Encrypting again, for the same round too, draws a new nonce and new ciphertexts.

        Raises
        ------
        RangeError
            If a value is NaN or beyond its ``max_abs``, or the weight is not in (0, ``max_weight``]. Nothing is
            encrypted then.
        LayoutError
            If the state holds what cannot be aggregated, or the values of an encrypted tensor in the clear as well.
        ConfigError
            If a pattern of the configuration matches no tensor, or `base` is not 32 bytes.
        IdentityError
            If the project is not valid now.
        MismatchError
            If the carry that was restored is of another model.
        StateError
            If scales are measured, and there is no `calibration`.
        SecAggError
            Whatever the calibration is refused for: the errors of `decrypt`.

        Warns
        -----
        UserWarning
            If the configuration has ``error_feedback``, the round is not the first, and this client has neither made an
            update before nor been told by `restore_carry` what there is to carry.
        PrecisionWarning
            Once, if it has no ``error_feedback``, and rounding loses more than 1 % of a tensor's energy; see `report`.
        """
        header, stream = self._write(_in_memory, state, weight, round, base, layout, calibration)
        return Update.written(header, stream.getvalue())

    def encrypt_to(
        self,
        target: Target,
        state: Mapping[str, Any],
        weight: float = 1.0,
        round: int = 0,
        *,
        base: bytes | None = None,
        layout: Layout | None = None,
        calibration: Update | Scales | None = None,
    ) -> Header:
        """Encrypt into a file or a stream, a frame at a time.

        Parameters
        ----------
        target : path, URL or binary stream
            A file, or an object of a store (``"s3://bucket/key"``: whatever fsspec reaches), appears whole or not at
            all. A stream, which stays open, may be left half-written if an error is raised; nothing is written to it
            before all values have been checked.
        state, weight, round, base, layout, calibration
            As of `encrypt`.

        Returns
        -------
        Header
            Of the update.

        Raises
        ------
        SecAggError
            As `encrypt`.
        StorageError
            If the target cannot be written, or is neither a path nor a binary stream.
        """
        with open_target(target) as stream:
            header, _ = self._write(lambda header: stream, state, weight, round, base, layout, calibration)
        return header

    def calibrate(
        self,
        state: Mapping[str, Any],
        weight: float = 1.0,
        round: int = 0,
        *,
        base: bytes | None = None,
        layout: Layout | None = None,
    ) -> Update:
        """Tell, encrypted, how large the values are that `encrypt` is to send: for ``precision: auto``.

        A small update of a kind of its own, wholly encrypted whatever ``encrypt`` says. An `Aggregator` of that kind
        adds those of all sites; the sum, of kind ``"scales"``, is what `encrypt` takes as its `calibration`. Sites
        learn from it, for each tensor, how many of them have their largest magnitude in which half-octave.

        Parameters
        ----------
        state, weight, round, base, layout
            As of `encrypt`.

        Raises
        ------
        ConfigError
            If nothing is to be calibrated: the configuration has ``max_abs``, or another ``precision``.
        SecAggError
            As of `encrypt`.
        """
        if self._config.aggregation.precision != "auto":
            raise ConfigError(
                f"aggregation.precision is {self._config.aggregation.precision!r}: there is nothing to calibrate, call "
                "encrypt"
            )
        number = self.check_weight(weight)
        layout = self._layout(state, layout)
        draft = self._header("calibration", layout, round, base)
        header, stream = self._encryption.calibrate(draft, state, number, self._identity, _in_memory)
        return Update.written(header, stream.getvalue())

    def decrypt(
        self,
        aggregate: Update,
        like: Mapping[str, Any] | None = None,
        *,
        round: int | None = None,
        base: bytes | None = None,
        own: bytes | None = None,
        receipt: Receipt | None = None,
    ) -> dict[str, Any]:
        """Check an aggregate and decrypt its weighted mean.

        Parameters
        ----------
        aggregate : Update
            Of kind ``"aggregate"``; but for a count of failures, no state is kept between calls.
        like : mapping of str to torch.Tensor or numpy.ndarray, optional
            The result has its names, order, shapes, dtypes and devices, is of its type if that is a dict, holds torch
            tensors (plain ones, also for parameters) or NumPy arrays as it does, and its own integer and bool tensors.
            Without it, the result holds NumPy arrays of the layout's dtypes (bfloat16 as float32) for all that was
            sent, tensors that are one as one array.
        round : int, optional
            The round that it must be of. Without it, any: an old aggregate in the place of a new one goes unnoticed.
        base : bytes, optional
            What the training of all its sites must have begun from: the `base` of this site's own update.
        own : bytes, optional
            The nonce of this site's own update, which must then be in the aggregate.
        receipt : Receipt, optional
            The server's, for this site's own update, which must then be in the aggregate.

        Returns
        -------
        dict
            Of the type of `like` if that is a dict.

        Raises
        ------
        MismatchError, KeyMismatchError, LayoutError, CapacityError
            If the aggregate was made under another configuration, key or model.
        RoundMismatchError
            If it is of another round.
        QuorumError
            If it has fewer than ``min_clients`` contributions.
        ManifestMismatchError
            If it was made under a manifest that the project does not know: a later one, say.
        VerificationError
            If it began from another global model, or lacks the update that `own` or `receipt` is for.
        IdentityError, SignatureError
            If the project is not valid now, a site is not in it, or a contribution is not signed by its site.
        FormatError, DigestError
            If it is damaged, or no `Update` at all.
        DecryptionError
            If the sum is not that of the updates listed.
        ImplausibleSumError
            If it is, and not what sites send that share a configuration.
        EpochError
            If that happened too often under this key.
        ConfigError
            If `round`, `base`, `own` or `receipt` is none.
        """
        header = check_update(aggregate).header
        check_header(header, "aggregate", self._config, self._key)
        fewest = self._config.aggregation.min_clients
        mine = None if own is None else Contribution(self._name, own)
        check_contributions(aggregate, fewest, self._project, round=round, base=base, own=mine, receipt=receipt)
        if like is not None:
            check_like(header.layout, like, self._config.stay)
        with self._failures.guard():
            mean = self._encryption.decrypt(aggregate)
        self._measuring.remember(aggregate, mean.following)
        return arrange(header.layout, mean.vectors, like)

    def scales_after(self, source: Update) -> Scales | None:
        """Return the scales of the round that begins with `source`, with ``precision: previous``; else None.

        Parameters
        ----------
        source : Update
            The aggregate that was given to `decrypt` last, or the model that was given to `decrypt_model` last.
        """
        return self._measuring.after(source)

    def encrypt_model(
        self,
        target: Target,
        state: Mapping[str, Any],
        *,
        round: int,
        base: bytes | None = None,
        layout: Layout | None = None,
        scales: Scales | None = None,
    ) -> None:
        """Encrypt a whole global model, for the server to keep: who holds the client key can read it.

        Parameters
        ----------
        target : path or binary stream
            A file appears whole or not at all; a stream may be left half-written if an error is raised.
        state : mapping of str to torch.Tensor or numpy.ndarray
            Its float tensors are kept bit for bit; integer and bool tensors are not.
        round : int
            The round that begins from it.
        base : bytes, optional
            What updates of that round give as their `base`.
        layout : Layout, optional
            As of `encrypt`.
        scales : Scales, optional
            Those of that round, with ``precision: previous``; without them, nothing has been measured yet.

        Raises
        ------
        LayoutError, ConfigError
            As `encrypt`.
        StorageError
            If the target cannot be written, or is neither a path nor a binary stream.
        """
        layout = self._layout(state, layout)
        draft = self._header("model", layout, round, base)
        vectors = [to_vector(state[spec.name]) for spec in layout.sent]
        if self._config.aggregation.precision == "previous":
            scales = scales or Scales.unknown(len(vectors))
            vectors.append(np.frombuffer(scales.to_bytes(), np.uint8))
        with open_target(target) as stream:
            write_model(stream, draft, self._secret, vectors, self._identity)

    def decrypt_model(self, model: Update, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Check and decrypt a global model that `encrypt_model` made at any site.

        Its header has the round that begins from it, and the base, which an aggregate of that round has too if the site
        that stored it told the truth. That its tensors are those that other sites have, nothing shows.

        Raises
        ------
        MismatchError, KeyMismatchError, LayoutError
            If it was made under another configuration, key or model.
        IdentityError, SignatureError
            If the project is not valid now, or it was not signed by a site of it.
        FormatError, DigestError
            If it is damaged, or no `Update` at all.
        DecryptionError
            If it was not encrypted under this key.
        """
        header = check_update(model).header
        check_header(header, "model", self._config, self._key)
        if self._project is not None:
            self._project.check_time()
            self._project.check_signature(model)
        if like is not None:
            check_like(header.layout, like, self._config.stay)
        vectors = {spec.name: np.empty(spec.size, FLOAT_DTYPES[spec.dtype]) for spec in header.layout.sent}
        following = self._config.aggregation.precision == "previous"
        bins = np.empty(len(vectors) if following else 0, np.uint8)
        read_model(model, self._secret, [*vectors.values(), bins])
        if following:
            self._measuring.remember(model, Scales.from_bytes(bins.tobytes()))
        return arrange(header.layout, vectors, like)

    @property
    def carries(self) -> bool:
        """Whether error feedback has something to carry to the next update."""
        feedback = self._encryption.feedback
        return feedback is not None and feedback.carry is not None

    @property
    def begun(self) -> bool:
        """Whether error feedback misses nothing: there was an update, or `restore_carry` has said what was left."""
        return self._encryption.feedback is None or self._encryption.feedback.begun

    def carry(self) -> bytes:
        """Return what error feedback carries to the next update, for `restore_carry` of another client of this site.

        It tells what rounding dropped from the site's data: keep it as you keep patients' data.

        Returns
        -------
        bytes
            Eight bytes a value that is encrypted, or fewer. Empty if there is nothing to carry, as without
            ``error_feedback``.
        """
        feedback = self._encryption.feedback
        if feedback is None or feedback.carry is None:
            return b""
        return StoredCarry(self._name, feedback.carry, self.report).to_bytes()

    def withdraw(self, round: int) -> None:
        """Say that this site's update of a round is in no sum, so that error feedback does not count it as sent.

        What the update was to pay back is due again; without ``error_feedback``, or an update of that round, nothing
        happens. `GlobalModel` does so by itself.
        """
        with self._encryption.turn():
            if self._encryption.feedback is not None:
                self._encryption.feedback.withdraw(round)
            if self.report is not None and self.report.round == round:
                self._encryption.report = None  # of an update that counts for nothing

    def restore_carry(self, blob: bytes) -> None:
        """Go on as the client whose `carry` this is would have, bit for bit; what this one carries is dropped.

        Parameters
        ----------
        blob : bytes
            As `carry` returned it. Empty bytes say that there is nothing to carry: of a site that joins late, say.

        Raises
        ------
        FormatError
            If it is something else, or of another version (`DigestError` if it is damaged).
        MismatchError
            If it is of another site, or the configuration has no ``error_feedback``. That it is of another model, the
            next `encrypt` says.
        """
        carry = report = None
        if blob != b"":
            stored = StoredCarry.from_bytes(blob)
            stored.check(self._name, self._config)
            carry, report = stored.carry, stored.report
        with self._encryption.turn():
            if self._encryption.feedback is not None:
                self._encryption.feedback.restore(carry)
                self._encryption.report = report

    def _layout(self, state: Mapping[str, Any], layout: Layout | None) -> Layout:
        """Return the layout of a state dict whose values do not matter, or the given one, which must fit it."""
        if layout is None:
            layout = Layout.of(state, self._config)
        else:
            fault = layout.under(self._config).difference(layout)
            if fault:
                raise LayoutError(f"the layout is not what the configuration makes of the model: {fault}")
            check_state(layout, state, self._config.stay)
        layout.bounds(self._config.aggregation)
        if not self._told and (exposed := exposure(layout)):
            self._told = True
            warn_once(f"encrypt: {self._config.encrypt.to_value()}: {exposed}", PrivacyWarning)
        return layout

    def _header(
        self, kind: str, layout: Layout, round: int, base: bytes | None, calibration: bytes | None = None
    ) -> Header:
        """Return the header of a new container of this site, without its nonce."""
        if base is not None:
            check_base(base)
        if self._project is not None:
            self._project.check_time()
        header = self._new_header(kind, layout, round, base, calibration)
        header.check_room()
        return header

    def _new_header(
        self, kind: str, layout: Layout, round: int, base: bytes | None, calibration: bytes | None = None
    ) -> Header:
        return Header(
            kind=kind,
            round=check_round(round),
            epoch=self._key.epoch,
            key=self._key.fingerprint,
            params=self._config.params,
            aggregation=self._config.aggregation,
            layout=layout,
            contributions=(Contribution(self._name, NO_NONCE),),
            base=base,
            manifest=None if kind == "model" or self._project is None else self._project.digest,
            calibration=calibration,
        )

    def _write(
        self,
        open_stream: Callable[[Header], _Stream],
        state: Mapping[str, Any],
        weight: float,
        round: int,
        base: bytes | None,
        layout: Layout | None,
        calibration: Update | Scales | None,
    ) -> tuple[Header, _Stream]:
        number = self.check_weight(weight)
        layout = self._layout(state, layout)
        scales, name = self._measuring.of_round(calibration, layout, check_round(round), base)
        draft = self._header("update", layout, round, base, name)
        refuse_copies(layout, state)
        feedback = self._encryption.feedback
        if feedback is not None and not feedback.begun and round > 0:
            feedback.begun = True
            warn(
                f"site {self._name!r} has error_feedback, and the first update of this client is of round {round}: "
                "what rounding dropped from the site's earlier updates, if there are any, is lost. Keep Client.carry() "
                "with each update, and give it to restore_carry of the client that makes the next, or keep "
                "GlobalModel.to_bytes(); restore_carry(b'') says that there was nothing"
            )
        written = self._encryption.encrypt(draft, state, number, scales, self._identity, open_stream)
        if feedback is None:
            self._warn_of_loss()
        return written

    def _warn_of_loss(self) -> None:
        """Issue a `PrecisionWarning`, once, if rounding loses much of the latest update for good."""
        lossy = [] if self.report is None else [item for item in self.report.worst if item.loss > MAX_LOSS]
        params = self._config.params
        if not lossy or self._told_loss or not isinstance(params, QuantisedParams):
            return
        self._told_loss = True
        worst, fixed = lossy[0], not self._config.aggregation.calibrated
        others = f", and more than {show_share(MAX_LOSS)} of {len(lossy) - 1} other tensors" if len(lossy) > 1 else ""
        remedy = f"Set error_feedback: true in he.config, or more than value_bits: {params.value_bits}"
        if worst.clipped:
            remedy = "Set error_feedback: true in he.config" + (", or raise aggregation.max_abs" if fixed else "")
        remedy += "; or leave out aggregation.max_abs, and each round measures how large values are" if fixed else ""
        cut = (
            f"{show_share(worst.share_clipped)} of them are clipped" if worst.clipped else f"a step is {worst.step:.2g}"
        )
        warn(
            f"{'clipping' if worst.clipped else 'rounding'} loses {show_share(worst.loss)} of the energy of "
            f"{worst.name!r}{others}: its values, times their weight, are typically {worst.signal:.2g}, and {cut}. "
            f"{remedy}",
            PrecisionWarning,
        )


def _in_memory(header: Header) -> BytesIO:
    """Return a stream for all of an update: one that grows is copied again and again, and zeros cost nothing."""
    return BytesIO(bytes(header.nbytes))
