"""The Ignite handler: a MONAI trainer takes part in encrypted federated averaging."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ignite.engine import Events

import secagg
from secagg.errors import ConfigError, LayoutError, StateError
from secagg.site import GlobalModel

from .distributed import differs, load_first, rank, several, together

if TYPE_CHECKING:
    import torch
    from ignite.engine import Engine


class SecAggHandler:
    """Loads the global model when local training starts, and encrypts what was learnt when it completes.

    Attach it to a ``SupervisedTrainer``, or to any Ignite engine with a ``network``, in one line:
    ``SecAggHandler(model, weight=n_examples).attach(trainer)``, or as one of ``train_handlers``. A round is then
    ``trainer.run()``, an exchange of `update` for the aggregate, and ``handler.apply(aggregate)``. One handler serves
    all rounds; the trainer may be a new one each round, and its network on any device and of any float dtype.

    Other handlers that write weights when training starts, such as MONAI's ``CheckpointLoader``, come before this one.
    What the network holds when the first iteration begins is held against the global model, once in a run: what else
    has been written into it would be sent as if it had been learnt.

    The network may be wrapped at one site and plain at another, by ``torch.compile``, which
    ``SupervisedTrainer(compile=True)`` calls, ``DataParallel`` or ``DistributedDataParallel``: see
    `secagg.site.network_state`.

    Where several processes train one network (``torch.distributed``, with a world of 2 or more), rank 0 is the site:
    it alone has the global model, and with it the key, and encrypts. The others are given None in its place, and each
    rank attaches its handler, runs its trainer and calls `apply`. All ranks then train from what rank 0 has loaded, and
    hold the same after `apply`; an error at one is raised at all. They wait for rank 0 while it exchanges what it
    sends, so that the ``timeout`` of ``init_process_group`` has to be longer than a round of the federation.

    Where a round begins with a calibration (``precision: auto``, the default of exact schemes), the handler needs to be
    told how to exchange it, and waits for the scales of the round between training and encryption:
    ``SecAggHandler(model, weight=n, calibrate=lambda update: session.calibrate(update, "scales.secagg"))``. If that
    raises an error, because the others stay away, say, it comes out of ``trainer.run()``, and the network still holds
    what was trained: `complete` goes on with it.

    If training raises an exception, or is ended by ``terminate(skip_completed=True)``, there is no update.

    Parameters
    ----------
    model : secagg.site.GlobalModel or None
        Made from the network, which must be the same at all sites (made from one seed, say). None at other ranks
        than 0.
    weight : float
        Weight of this site in the mean: its number of examples, of all ranks together.
    calibrate : callable, optional
        Takes this site's calibration, an `Update`, and returns the sum of all sites', the scales of the round, which
        the handler closes after use. Needed where `GlobalModel.calibrates`, and not called elsewhere.
    upload_path : path, optional
        File to encrypt to, a frame at a time, in place of `update`; a file of an earlier round is removed when
        training starts.

    Raises
    ------
    ConfigError
        If something else than a `GlobalModel` is given, or one at a rank other than 0; or if `calibrate` is needed and
        missing.
    RangeError
        If the weight is not one that the configuration allows.

    Attributes
    ----------
    update : secagg.Update or None
        The encrypted difference, once training has completed and no `upload_path` is given; at rank 0.
    metrics : dict of str to float
        What this site has measured of the global model that training begins from, by names that the configuration
        has: set it before training completes. It is encrypted with the update; `GlobalModel.metrics` has the means.
    encrypt_seconds : float
        Wall-clock time that the latest encryption took, after the scales had come.
    """

    def __init__(
        self,
        model: GlobalModel | None,
        *,
        weight: float,
        calibrate: Callable[[secagg.Update], secagg.Update] | None = None,
        upload_path: str | os.PathLike[str] | None = None,
    ) -> None:
        def check() -> int:
            _check_rank(model)
            if model is None:
                return 0
            if model.calibrates and calibrate is None:
                raise ConfigError(
                    "each round begins with a calibration (aggregation.precision is 'auto'): tell the SecAggHandler "
                    "how to exchange it, calibrate=lambda update: session.calibrate(update, 'scales.secagg')"
                )
            model.site.check_weight(weight)
            return model.round

        self._round = together(check)[0]
        self.model = model
        self._calibrate = calibrate
        self.weight = weight
        self.upload_path = None if upload_path is None else Path(upload_path).absolute()
        self.update: secagg.Update | None = None
        self.metrics: dict[str, float] = {}
        self.encrypt_seconds = 0.0
        self._network: torch.nn.Module | None = None  # that was trained last
        self._unchecked: Engine | None = None  # whose first iteration is yet to come

    @property
    def round(self) -> int:
        """Round of the next, or current, training: that of the global model, at all ranks."""
        return self._round if self.model is None else self.model.round

    def attach(self, engine: Engine) -> None:
        """Take part in the training of an engine.

        Parameters
        ----------
        engine : monai.engines.SupervisedTrainer
            Or another Ignite engine whose attribute ``network`` is the model. Training raises an error before its
            first step: `LayoutError` if there is none, or it is not that of the global model; `StateError` if another
            handler has written into it what is not the global model.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def complete(self, engine: Engine) -> None:
        """Encrypt what an engine has trained: by itself when training completes, and by you if that raised an error.

        Parameters
        ----------
        engine : monai.engines.SupervisedTrainer
            Whose network holds what was trained from the global model of the round.

        Raises
        ------
        SecAggError
            Whatever `GlobalModel.encrypt` refuses, or `calibrate` raises.
        """
        if self._unchecked is not None:  # there was no iteration, or another handler has swallowed what that raised
            self._check(engine)
        together(lambda: self._encrypt(engine))

    def apply(
        self, aggregate: secagg.Update | None, receipt: secagg.Receipt | None = None, *, may_lack_own: bool = False
    ) -> bool:
        """Check and decrypt the mean, apply it to the global model, and load that into the network that was trained.

        After the last round the network is the global model. If anything is raised for the aggregate, both stay as
        they were.

        Parameters
        ----------
        aggregate, receipt, may_lack_own
            As of `GlobalModel.apply`. At other ranks than 0 there is no aggregate: None.

        Returns
        -------
        bool
            As of `GlobalModel.apply`.

        Raises
        ------
        SecAggError
            Whatever `GlobalModel.apply` and `GlobalModel.load` refuse.
        """

        def apply() -> tuple[bool, int]:
            if self.model is None:
                return False, 0
            return self.model.apply(aggregate, receipt, may_lack_own=may_lack_own), self.model.round  # type: ignore[arg-type]

        applied, self._round = together(apply)[0]
        if self._network is not None:
            self._load(self._network)
        return applied

    def _start(self, engine: Engine) -> None:
        """Load the global model into the network."""

        def prepare() -> int:
            self.update = None
            self._forget_check()
            _check_rank(self.model)
            self._network = _network(engine)
            if self.model is not None and self.upload_path is not None:
                self.upload_path.unlink(missing_ok=True)
            return self.round

        self._round = together(prepare)[0]
        assert self._network is not None
        self._load(self._network)
        # Attached now, it comes after all that was there before; removed again, it costs later iterations nothing.
        engine.add_event_handler(Events.ITERATION_STARTED, self._check)
        self._unchecked = engine

    def _load(self, network: torch.nn.Module) -> None:
        together(lambda: None if self.model is None else self.model.load(network))
        load_first(network)

    def _check(self, engine: Engine) -> None:
        """Hold the network against the global model when the first iteration begins."""
        found = differs(_network(engine), self.model)
        if found is not None:
            number, name, largest = found
            where = f"of rank {number} " if several() else ""
            raise StateError(
                f"training would not begin from the global model: when the first iteration began, the network {where}"
                f"differed from it by up to {largest:.3g} in {name!r}, which would be sent as if it had been learnt. "
                "Attach what writes weights when training starts, such as a CheckpointLoader, before the SecAggHandler"
            )
        self._forget_check()

    def _forget_check(self) -> None:
        engine, self._unchecked = self._unchecked, None
        if engine is not None and engine.has_event_handler(self._check, Events.ITERATION_STARTED):
            engine.remove_event_handler(self._check, Events.ITERATION_STARTED)

    def _encrypt(self, engine: Engine) -> None:
        if self.model is None:
            return
        local = _network(engine)
        with self._scales(self.model, local) as scales:
            start = time.perf_counter()
            if self.upload_path is None:
                self.update = self.model.encrypt(local, self.weight, scales, self.metrics)
            else:
                self.model.encrypt_to(self.upload_path, local, self.weight, scales, self.metrics)
            self.encrypt_seconds = time.perf_counter() - start

    def _scales(self, model: GlobalModel, local: torch.nn.Module) -> AbstractContextManager[secagg.Update | None]:
        """Return the scales of the round, if it has any to wait for."""
        if self._calibrate is None or not model.calibrates:
            return nullcontext()
        return self._calibrate(model.calibrate(local, self.weight, self.metrics))


def _check_rank(model: object) -> None:
    """Raise `ConfigError` unless there is a global model at rank 0 and there alone."""
    if rank() != 0 and model is not None:
        raise ConfigError(
            f"rank {rank()} is given a {type(model).__name__}: rank 0 alone has the global model and the key; give the "
            "SecAggHandler None at the others"
        )
    if rank() == 0 and not isinstance(model, GlobalModel):
        also = "" if model is not None else ", and None at other ranks than 0 only, once they are initialised"
        raise ConfigError(
            f"a SecAggHandler is given a {type(model).__name__}; give it the global model: "
            f"SecAggHandler(GlobalModel(site, network), weight=…){also}"
        )


def _network(engine: Engine) -> torch.nn.Module:
    """Return the network of an engine; `LayoutError` without one."""
    network: torch.nn.Module | None = getattr(engine, "network", None)
    if network is None:
        raise LayoutError(
            f"{type(engine).__name__} has no attribute network: set it to the module that the sites train together, "
            "such as torch.nn.ModuleDict({'g': g_network, 'd': d_network}) of a GanTrainer or AdversarialTrainer: "
            "trainer.network = both, and GlobalModel(site, both)"
        )
    return network
