"""The federated loop without a framework: a site's global model, what it sends for it, and what it makes of the sum."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..client import Client
from ..errors import ConfigError, LayoutError, MismatchError, RangeError, StateError, VerificationError, warn
from ..scheme.metric_names import METRICS, check_metrics, is_metric
from ..scheme.scales import LARGEST, Scales
from ..scheme.tensors import held, is_torch, to_array
from ..storage.files import Target
from ..trust.receipt import Receipt
from ..wire.header import Header, check_base, check_round
from ..wire.layout import Layout, refuse_wrapper
from ..wire.metrics import metric_means, metric_tensors, metric_unit, model_layout
from ..wire.update import Update, check_update
from .difference import difference
from .network import load_network, network_state
from .own_tensors import own_copy, own_from_bytes, own_to_bytes, storable
from .snapshot import Snapshot


class GlobalModel:
    """The model that all sites of a federation share, at one site, from round to round. For one thread.

    A round is: train what `state` holds, `encrypt` what has come out, exchange the update for the aggregate, `apply`
    that. Where scales are measured in the round (``precision: auto``, the default of exact schemes), another exchange
    comes before: of what `calibrate` returns, for the scales that `encrypt` takes.

    What is sent is the difference (local − global) of every float tensor; the site's integer and bool tensors, such as
    BatchNorm's ``num_batches_tracked``, stay its own. The global model is held in main memory, and 16-bit floats are
    held and sent as float32, so that small mean differences are not lost in rounding.

    Each update says which global model its training began from (`base`), and `apply` takes only the sum of updates that
    began from the same one, and this site's own update among them. A site that restarts goes on `from_bytes`, or makes
    the first global model again and lets `load_model` take the encrypted one that a site has stored with `save_model`,
    and applies the aggregates since.

    Tensors that cannot be negative, such as variances (``nonnegative`` in the configuration), are floored at 0 after
    each sum, at all sites alike: rounding would take small ones below, and a network divides by their root.

    With ``precision: previous``, scales are part of the global model: those of a round follow from the aggregate of the
    round before. Nothing is known in round 0, whose updates only measure: its aggregate leaves the model as it is.

    Parameters
    ----------
    site : secagg.Client
        Encrypts and decrypts.
    state : torch.nn.Module, or mapping of str to torch.Tensor or numpy.ndarray
        The global model, in the order in which all sites have it: a network, wrapped or not (`network_state`), or its
        state dict. It is copied.
    round : int
        Round that comes next, for a site that has kept `state` and `base`.
    base : bytes, optional
        What training of that round begins from: `base` of the object that `state` comes from. Without it, and in round
        0 only, the digest of the global model.
    context : str
        What tells this run from others that begin with the same model under the same key, the same at all sites: the
        run's id, say. It goes into the digest of the global model.
    metrics : sequence of str, optional
        Names of numbers, a loss say, that each site may give to `encrypt`, the same at all sites; by default those of
        the configuration. They travel encrypted with the update, in tensors ``secagg.metrics.`` and their names, and
        sites learn their weighted means.

    Raises
    ------
    StateError
        If a round is given without its `base`; with ``precision: previous``, whose scales are needed too, for any round
        but the first.
    LayoutError, ConfigError
        If the model cannot be aggregated, or round or base are none.
    RangeError
        If a value is NaN or infinite.

    Attributes
    ----------
    site : secagg.Client
        Another one may take its place between two calls: the keys of an earlier epoch read what was stored under them.
    layout : secagg.Layout
        How differences are sent: names, shapes, dtypes as they are held, and what is encrypted.
    round : int
        Round of the next, or current, training; `apply` counts it up.
    base : bytes
        What training of that round begins from, 32 bytes: the digest of the initial global model, then
        `secagg.Update.next_base` of each aggregate.
    metrics : dict of str to float
        Means in the aggregate that was applied last of the metrics that all of its sites have given.
    confirmed : dict of str to float
        Those of the aggregate before, which the sites of the last one, ``min_clients`` or more, have signed to have
        applied. Tell a server no other means: it could show each site another sum.
    """

    def __init__(
        self,
        site: Client,
        state: Any,
        *,
        round: int = 0,
        base: bytes | None = None,
        context: str = "",
        metrics: Sequence[str] | None = None,
    ) -> None:
        round, self._metrics = check_round(round), site.config.metrics if metrics is None else check_metrics(metrics)
        if round != 0 and base is None:
            raise StateError(
                f"round {round} needs its base: give that of the global model which was at this round, or take the "
                "model that is stored on the server with load_model"
            )
        previous = site.config.aggregation.precision == "previous"
        if round != 0 and previous:
            raise StateError(
                f"round {round} needs the scales that follow from the round before (precision: previous): go on from "
                "to_bytes of the global model that was at this round, or take the stored one with load_model"
            )
        state = _state_of(state)
        layout = model_layout(state, site.config, self._metrics)
        specs, zeros = layout.tensors, metric_tensors(self._metrics)
        arrays = {spec.name: held(spec.name, state[spec.name]) for spec in specs if not is_metric(spec.name)} | zeros
        self.site = site
        self.layout = layout
        self.round = round
        site.check(self.layout, _tie(self.layout, arrays))
        self.base = self.layout.base(arrays, context) if base is None else check_base(base)
        self.metrics: dict[str, float] = {}
        self.confirmed: dict[str, float] = {}
        self._held = arrays  # by the first names of tensors
        self._names = tuple(state)
        self._torch = frozenset(name for name, value in state.items() if is_torch(value))
        self._stays = {name: own_copy(value) for name, value in state.items() if name not in layout.names}
        # Settled once: later values may differ in their last bits from site to site, where libraries of CKKS do.
        self._floored = frozenset(
            spec.name
            for spec in specs
            if spec.nonnegative and not is_metric(spec.name) and bool((arrays[spec.name] >= 0).all())
        )
        self._own: tuple[bytes, ...] = ()  # nonces of this site's updates of the round
        self._scales = Scales.unknown(len(layout.sent)) if previous else None
        self._absent = base is None  # whether no sum since the first model has an update of this site
        self._missing = False  # whether there may be such an update, and nothing is left of what it dropped

    @property
    def state(self) -> dict[str, Any]:
        """The global model with this site's own tensors, in the order of the state that was given: a dict of copies.

        Tensors are torch's, on the CPU, or NumPy arrays, as in the state that was given; floats are float32 or float64.
        What is one tensor under several names is so here. The site's own are integer and bool tensors, and what the
        configuration keeps at the site (``stay``): these as training left them last.

        Raises
        ------
        StateError
            If tensors are torch's, and this process, a fresh one, has not imported torch yet.
        """
        return self._as_given({name: array.copy() for name, array in self._held.items()})

    def load(self, network: Any) -> None:
        """Copy the global model into a network, which has its own dtypes and devices.

        Parameters
        ----------
        network : torch.nn.Module
            Wrapped or not. What stays at the site and could not be stored with `to_bytes` stays as it is there.

        Raises
        ------
        LayoutError
            If it is another network, its tensors have another order, or others of them are one tensor: nothing was
            copied.
        """
        state = network_state(network)
        self.check(state)
        mine = {name: _of_torch(value) for name, value in self.state.items()}
        load_network(network, state | mine)

    def check(self, local: Any) -> None:
        """Find out before training whether what will be trained is the global model; its values do not matter.

        Parameters
        ----------
        local : torch.nn.Module, or mapping of str to torch.Tensor or numpy.ndarray
            The network, or its state dict, in its own float dtypes.

        Raises
        ------
        LayoutError
            If names, shapes or kinds of tensors are others, their order is, or which of them are one tensor.
        """
        found = Layout.of({**_state_of(local), **metric_tensors(self._metrics)}, self.site.config)
        mine = {spec.name: spec.dtype for spec in self.layout.sent}
        cast = tuple(
            spec if spec.role == "local" else replace(spec, dtype=mine.get(spec.name, spec.dtype))
            for spec in found.tensors
        )
        fault = self.layout.difference(Layout(cast))
        if fault:
            raise LayoutError(f"what is trained is another model than the global one: {fault}")

    def difference(self, local: Any) -> dict[str, Any]:
        """Return (local − global) of every float tensor that is sent, and copies of the site's own tensors.

        A model of 16-bit floats started from the global model rounded to its own dtype: that is what is subtracted, or
        training would seem to have made the rounding error.

        Parameters
        ----------
        local : torch.nn.Module, or mapping of str to torch.Tensor or numpy.ndarray
            What the site has trained, the network or its state dict: the tensors of the global model in any order, on
            any device, of either library. Floats may be of another dtype than the one that is held, and are cast. What
            is one tensor in the global model has the same values under all its names.

        Returns
        -------
        dict
            Order, dtypes and libraries are those of `state`.

        Raises
        ------
        LayoutError
            If a tensor is missing, of no use, or of another shape or kind; if there is one too many, or what is one
            tensor is not so any more.
        RangeError
            If a tensor is negative that cannot be (``nonnegative``).
        """
        local = _state_of(local)
        return self._as_given(self._difference(local), self._own_of(local))

    @property
    def calibrates(self) -> bool:
        """Whether the sites exchange a calibration in each round, before they encrypt."""
        return self.site.config.aggregation.precision == "auto"

    def calibrate(self, local: Any, weight: float, metrics: Mapping[str, float] | None = None) -> Update:
        """Tell, encrypted, how large what training has changed is: exchange it for the scales that `encrypt` takes.

        Parameters
        ----------
        local, weight, metrics
            Those that will be encrypted.

        Raises
        ------
        ConfigError
            If nothing is calibrated by this configuration: see `calibrates`.
        SecAggError
            As `encrypt`.
        """
        tensors = _tie(self.layout, self._difference(_state_of(local), metrics))
        return self.site.calibrate(tensors, weight, self.round, base=self.base, layout=self.layout)

    def encrypt(
        self,
        local: Any,
        weight: float,
        calibration: Update | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Update:
        """Encrypt what training has changed, as this site's update of the round; its integer tensors are kept from now.

        Parameters
        ----------
        local : torch.nn.Module, or mapping of str to torch.Tensor or numpy.ndarray
            As of `difference`.
        weight : float
            Weight of this site in the mean: its number of examples.
        calibration : Update, optional
            Where `calibrates` is true: the scales of the round, the sum of what the sites' `calibrate` returned. What
            is too large for them is clipped, and due in the next round.
        metrics : mapping of str to float, optional
            Values of some or all of the metrics that were announced. What is NaN or infinite counts as not given.

        Raises
        ------
        StateError
            If there is no `calibration`, and the round needs one.
        ConfigError
            If there is one, and the scales come from elsewhere.
        LayoutError, RangeError
            As `difference`; also if a metric was not announced, or is no number.
        SecAggError
            Whatever makes the update or the calibration unfit; see `secagg.Client.encrypt`.
        """
        local, scales = _state_of(local), self._under(calibration)
        sent, stays = self._difference(local, metrics), self._own_of(local)
        tensors = _tie(self.layout, sent)
        update = self.site.encrypt(tensors, weight, self.round, base=self.base, layout=self.layout, calibration=scales)
        self._sent(update.header, sent, stays)
        return update

    def encrypt_to(
        self,
        target: Target,
        local: Any,
        weight: float,
        calibration: Update | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Encrypt into a file or a stream, a frame at a time. See `encrypt` and `secagg.Client.encrypt_to`."""
        local, scales = _state_of(local), self._under(calibration)
        sent, stays = self._difference(local, metrics), self._own_of(local)
        tensors = _tie(self.layout, sent)
        header = self.site.encrypt_to(
            target, tensors, weight, self.round, base=self.base, layout=self.layout, calibration=scales
        )
        self._sent(header, sent, stays)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that were announced."""
        return self._metrics

    def measurable(self, name: str, value: float, weight: float) -> bool:
        """Return whether a metric can be sent with a weight: it is a number, and within its bound."""
        aggregation = self.site.config.aggregation
        bound = LARGEST / weight if aggregation.calibrated else self.layout.bounds(aggregation)[f"{METRICS}.{name}"]
        return abs(value) <= bound

    @property
    def trained(self) -> bool:
        """Whether this site has made an update for the round, and not withdrawn it."""
        return bool(self._own)

    def withdraw(self) -> None:
        """Say that this site's update of the round counts for nothing: it was refused, too late, or was never sent.

        The aggregate of the round need not list it then, which `apply` demands otherwise. If it does not, what error
        feedback was to pay back with the update is due again.
        """
        self._own = ()

    def apply(self, aggregate: Update, receipt: Receipt | None = None, *, may_lack_own: bool = False) -> bool:
        """Check and decrypt the mean difference, apply it to the global model, and count the round up.

        If anything is raised, global model, base and round stay as they were.

        Parameters
        ----------
        aggregate : secagg.Update
            The aggregate of this round. The update that this object has encrypted for the round must be in it, unless
            it is withdrawn.
        receipt : secagg.Receipt, optional
            The server's, for this site's update of the round, which must then be in the aggregate.
        may_lack_own : bool
            Whether the aggregate may list no update of this site, be it withdrawn or not.

        Returns
        -------
        bool
            False if it is the very aggregate that was applied last: then nothing happens. It is known by `base`, which
            is a chain of digests over all aggregates: the one of the round before whose `next_base` is `base`.

        Raises
        ------
        RoundMismatchError
            If the aggregate is of another round.
        VerificationError
            If its updates began from another global model, or this site's own, or the one that `receipt` is for, is not
            among them. If the site had been restarted, or its update was not taken, `withdraw` it first.
        SecAggError
            Whatever makes the aggregate unfit: see `secagg.Client.decrypt`.
        ManifestMismatchError
            If it is under a manifest that `site` does not know. Join again, and let a client that knows it take its
            place: ``model.site = Client.load(kit.store_manifest(joined.manifest))``, which goes on with `carry` of the
            former by `restore_carry`. If the update was refused with this error, encrypt the same again then.
        """
        if check_update(aggregate).header.round == self.round - 1 and aggregate.next_base == self.base:
            return False
        self._check_layout(aggregate.header)
        listed = self.site.name in aggregate.header.sites
        own = None if may_lack_own and not listed else self._listed(aggregate.header)
        like = _tie(self.layout, self._held)
        mean = self.site.decrypt(aggregate, like=like, round=self.round, base=self.base, own=own, receipt=receipt)
        if not listed:
            self.site.withdraw(self.round)
        base = aggregate.next_base
        assert base is not None  # `decrypt` has compared it
        after = {}
        for spec in self.layout.sent:
            if is_metric(spec.name):
                continue
            value = np.asarray(self._held[spec.name] + mean[spec.name])
            after[spec.name] = np.asarray(np.maximum(value, 0)) if spec.name in self._floored else value
        self._scales = self._following(aggregate)
        self.confirmed = self.metrics  # the base that all of the list have signed comes from that sum
        self.metrics = metric_means(self._metrics, mean, self._unit)
        self._held |= after
        self.base = base
        self.round += 1
        self._own = ()
        self._absent = self._absent and not listed
        self._missing |= listed and not self.site.begun
        if self._absent and not self.site.carries:  # it has dropped nothing yet
            self.site.restore_carry(b"")
        return True

    def save_model(self, target: Target) -> None:
        """Write the encrypted global model, from which the current round begins, to a file or stream for the server.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        tensors = _tie(self.layout, self._held)
        self.site.encrypt_model(
            target, tensors, round=self.round, base=self.base, layout=self.layout, scales=self._scales
        )

    def load_model(self, model: Update) -> None:
        """Go on from an encrypted global model that any site has saved: take over tensors, round, base and scales.

        The site's own tensors stay, and what error feedback carries. If anything is raised, global model, base and
        round stay as they were.

        Parameters
        ----------
        model : secagg.Update
            Of kind ``"model"``.

        Raises
        ------
        VerificationError
            If it does not say what training from it begins from.
        SecAggError
            Whatever makes it unfit: see `secagg.Client.decrypt_model`.
        """
        found = self._read_model(model)
        if model.header.base is None:
            raise VerificationError(
                f"the model of round {model.header.round} was stored without a base, so nobody can tell whether others "
                "train from the same one: store it with GlobalModel.save_model"
            )
        self._scales = self._following(model)
        self._held |= found
        self.round, self.base, self._own, self._absent = model.header.round, model.header.base, (), False
        self._missing = not self.site.begun
        self.metrics = self.confirmed = {}

    def state_of(self, model: Update) -> dict[str, Any]:
        """Return an encrypted global model in the form of `state`, with the site's own tensors as they are now.

        This object stays as it is. Errors as of `load_model`.
        """
        found = {name: array.copy() for name, array in self._held.items()} | self._read_model(model)
        return self._as_given(found)

    @property
    def not_stored(self) -> tuple[str, ...]:
        """Names of what stays at the site and is no tensor, an ``_extra_state`` say: `to_bytes` leaves it out."""
        return tuple(self._stays.keys() - storable(self._stays).keys())

    def own_to_bytes(self) -> bytes:
        """Return the site's own tensors alone, for `own_from_bytes` beside a model of `save_model`, which has none.

        They are in it in the clear. Those that `not_stored` names are left out.
        """
        own = {spec.name: self._held[spec.name] for spec in self.layout.role("local")}
        return own_to_bytes(own | storable(self._stays))

    def own_from_bytes(self, blob: bytes) -> None:
        """Take over the site's own tensors that `own_to_bytes` has stored.

        Raises
        ------
        FormatError
            If it is something else (`DigestError` if it is damaged).
        LayoutError
            If it has others than this model: then nothing was taken over.
        StateError
            If there are tensors of torch's, which this process has not imported.
        """
        own = own_from_bytes(blob)
        local = {spec.name: self._held[spec.name] for spec in self.layout.role("local")}
        if not local.keys() <= own.keys() <= local.keys() | self._stays.keys():
            raise LayoutError(f"the stored own tensors are {sorted(own)}, this model has others")
        counts = {name: difference(name, own[name], value) for name, value in local.items()}
        self._held |= counts
        self._stays |= {name: value for name, value in own.items() if name not in local}

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a global model holds a secret key and is not pickled; use to_bytes() and from_bytes()")

    def to_bytes(self) -> bytes:
        """Return all of this object, from which `from_bytes` makes it again, bit for bit.

        The model, the site's own tensors, its scales and what error feedback carries (`secagg.Client.carry`) are in it
        in the clear: keep it as you keep patients' data. Not in it are the client's keys, and its count of failures
        where that is in no file.

        Warns
        -----
        UserWarning
            If something that stays at the site is no tensor, an ``_extra_state`` say: that is not stored.
        """
        if self.not_stored:
            warn(
                f"{', '.join(map(repr, self.not_stored))} cannot be stored with the global model, being no tensors: "
                "after from_bytes they are what the network has then"
            )
        return Snapshot(
            site=self.site.name,
            round=self.round,
            base=self.base,
            layout=self.layout,
            names=self._names,
            arrays=self._held,
            stays=storable(self._stays),
            torch=self._torch,
            floored=self._floored,
            own=self._own,
            scales=self._scales.to_bytes() if self._scales else b"",
            carry=self.site.carry(),
            lost=self._missing and not self.site.begun,
            metrics={name: (self.metrics.get(name), self.confirmed.get(name)) for name in self._metrics},
        ).to_bytes()

    @classmethod
    def from_bytes(cls, site: Client, blob: bytes) -> GlobalModel:
        """Make the object again that `to_bytes` has stored.

        Parameters
        ----------
        site : secagg.Client
            A client of the same site. What was carried is restored into it.
        blob : bytes
            As `to_bytes` returned it.

        Raises
        ------
        FormatError
            If it is something else, or was written by another release that stores more (`DigestError` if it is
            damaged).
        MismatchError
            If another site has stored it.
        StateError
            If the configuration of `site` needs scales (``precision: previous``), and that of the stored model did not.
        LayoutError, ConfigError
            If the configuration of `site` does not fit the model.

        Warns
        -----
        UserWarning
            If what was carried does not fit the configuration, or the site: then it is lost.
        """
        snapshot = Snapshot.from_bytes(blob)
        if snapshot.site != site.name:
            raise MismatchError(
                f"the stored global model is that of site {snapshot.site!r}, this is {site.name!r}: each site has its "
                "own tensors and its own carry"
            )
        layout = snapshot.layout.under(site.config)
        if [spec.names for spec in layout.tensors] != [spec.names for spec in snapshot.layout.tensors]:
            raise LayoutError(
                "the stored global model has tensors that stay at the site by the configuration of `site`"
            )
        site.check(layout, _tie(layout, snapshot.arrays))
        model = cls.__new__(cls)
        model.site, model.layout, model.round, model.base = site, layout, snapshot.round, snapshot.base
        model._held, model._names, model._torch = dict(snapshot.arrays), snapshot.names, snapshot.torch
        model._stays, model._floored, model._own = dict(snapshot.stays), snapshot.floored, snapshot.own
        model._absent, model._missing = False, snapshot.lost
        model._metrics = tuple(snapshot.metrics)
        model.metrics, model.confirmed = snapshot.means(0), snapshot.means(1)
        model._scales = None
        if site.config.aggregation.precision == "previous":
            if not snapshot.scales:
                raise StateError(
                    "the stored global model has no scales, which precision: previous needs: take the one that is "
                    "stored on the server with load_model"
                )
            model._scales = Scales.from_bytes(snapshot.scales)
        try:
            if not snapshot.lost:  # else the client says so when it encrypts
                site.restore_carry(snapshot.carry)
        except MismatchError as error:
            site.restore_carry(b"")
            warn(f"what error feedback carried is lost: {error}")
        return model

    def differs(self, local: Any) -> tuple[str, float] | None:
        """Find out before training whether a network holds the global model, as `load` writes it, in its own dtypes.

        Parameters
        ----------
        local : torch.nn.Module, or mapping of str to torch.Tensor or numpy.ndarray
            As of `check`. What is not sent, the site's own tensors, may have any values.

        Returns
        -------
        tuple of str and float, or None
            The tensor that is farthest from the global model, and by how much, NaN if that is no number; None if all
            values are those of the global model.

        Raises
        ------
        LayoutError
            As `check`.
        """
        state = _state_of(local)
        self.check(state)
        largest = {
            name: float(np.abs(difference(name, state[name], self._held[spec.name])).max(initial=0))
            for spec in self.layout.sent
            if not is_metric(spec.name)
            for name in spec.names
        }
        name = max(largest, key=lambda name: (largest[name] != largest[name], largest[name]))  # NaN before all
        return (name, largest[name]) if largest[name] != 0 else None

    @property
    def _unit(self) -> float:
        return metric_unit(self.layout, self.site.config)

    def _under(self, calibration: Update | None) -> Update | Scales | None:
        """Return what the scales of an update are given by: `calibration`, or what the rounds before have measured."""
        if self._scales is None:
            return calibration
        if calibration is not None:
            raise ConfigError(
                "a calibration is given, and with precision: previous the global model has its scales by itself"
            )
        return self._scales

    def _following(self, source: Update) -> Scales | None:
        """Return the scales of the round that begins with an aggregate or stored model, just decrypted, if it has any.

        It reads of `source` once more, which may fail: to be asked before anything is taken over.
        """
        if self._scales is None:
            return None
        scales = self.site.scales_after(source)
        if scales is None:  # to measure once more would leave the global model of a whole round as it is
            raise StateError(
                f"{source!r} was decrypted, and the scales that follow from it are gone: another thread has used this "
                "client meanwhile; give each global model a client of its own"
            )
        return scales

    def _difference(
        self, local: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return what has changed in each tensor of the layout, by its first name; metrics as they are."""
        numbers = metric_tensors(self._metrics, metrics, self._unit) if self._metrics or metrics else {}
        missing, extra = self.layout.names - local.keys() - numbers.keys(), local.keys() - set(self._names)
        if missing or extra:
            refuse_wrapper(local)
            fault, names = ("lacks", sorted(missing)) if missing else ("also has", sorted(extra))
            shown = ", ".join(map(repr, names[:3])) + ("" if len(names) <= 3 else f" … ({len(names)} tensors)")
            raise LayoutError(f"what was trained {fault} {shown}: give the tensors of the global model")
        changed = dict(numbers)
        for spec in self.layout.tensors:
            if spec.name in numbers:
                continue
            start = self._held[spec.name]
            changed[spec.name] = difference(spec.name, local[spec.name], start)
            for name in spec.names[1:]:
                if local[name] is not local[spec.name] and not np.array_equal(
                    difference(name, local[name], start), changed[spec.name], equal_nan=True
                ):
                    raise LayoutError(
                        f"tensors {spec.name!r} and {name!r} are one in the global model, and have different values "
                        "after training: tie them, or make the global model of a network that does not"
                    )
            if spec.name in self._floored and (to_array(spec.name, local[spec.name])[1] < 0).any():
                raise RangeError(
                    f"tensor {spec.name!r} is negative after training, but is one that never can be: find out why "
                    "training diverged, or give it a name that `nonnegative` does not match"
                )
        return changed

    def _own_of(self, local: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tensors that stay at the site, as they are in `local` where that has them."""
        own = [name for name in self._names if name not in self.layout.names and name in local]
        return self._stays | {name: own_copy(local[name]) for name in own}

    def _read_model(self, model: Update) -> dict[str, NDArray[Any]]:
        """Return the tensors of an encrypted global model that are not the site's own, by first names."""
        self._check_layout(check_update(model).header)
        found = self.site.decrypt_model(model, like=_tie(self.layout, self._held))
        return {spec.name: found[spec.name] for spec in self.layout.sent if not is_metric(spec.name)}

    def _check_layout(self, header: Header) -> None:
        """Raise `LayoutError` if an aggregate or model is of another model, or has another order of tensors."""
        fault = self.layout.difference(header.layout)
        if fault:
            raise LayoutError(
                f"the {header.kind} of round {header.round} is of another model than this site's: {fault}"
            )

    def _sent(self, header: Header, sent: Mapping[str, NDArray[Any]], stays: dict[str, Any]) -> None:
        """Take over the site's own tensors, and remember what has been sent."""
        self._own += (header.contributions[0].nonce,)
        self._held |= {spec.name: sent[spec.name] for spec in self.layout.role("local")}
        self._stays = stays

    def _listed(self, header: Header) -> bytes | None:
        """Return the nonce of the own update that must be in an aggregate: if several were made, any of them."""
        listed = {contribution.nonce for contribution in header.contributions}
        return next((nonce for nonce in self._own if nonce in listed), self._own[-1] if self._own else None)

    def _as_given(self, arrays: Mapping[str, NDArray[Any]], stays: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return arrays, by first names, and what stays, as tensors of the libraries of the state that was given."""
        torch = sys.modules.get("torch")
        if self._torch and torch is None:
            raise StateError("the global model has tensors of torch: import torch first")
        tied = _tie(self.layout, arrays)
        tensors = {
            name: torch.from_numpy(array) if torch is not None and name in self._torch else array
            for name, array in tied.items()
        }
        if stays is None:
            stays = {name: own_copy(value) for name, value in self._stays.items()}
        every = tensors | dict(stays)
        return {name: every[name] for name in self._names if name in every}


def _state_of(model: Any) -> Mapping[str, Any]:
    """Return the state dict of a network, or the one that was given."""
    if isinstance(model, Mapping):
        return model
    if hasattr(model, "state_dict"):
        return network_state(model)
    raise LayoutError(
        f"a network or its state dict, a mapping of names to tensors, is needed; got {type(model).__name__}"
    )


def _of_torch(value: Any) -> Any:
    """Return an array as torch's, for a network of torch; what is none as it is."""
    return sys.modules["torch"].from_numpy(value) if isinstance(value, np.ndarray) else value


def _tie(layout: Layout, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays, by the first names of their tensors, under all names: one array each."""
    return {name: arrays[spec.name] for spec in layout.tensors for name in spec.names}
