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
from secagg.errors import ConfigError, LayoutError
from secagg.site import GlobalModel

if TYPE_CHECKING:
    import torch
    from ignite.engine import Engine


class SecAggHandler:
    """Loads the global model when local training starts, and encrypts what was learnt when it completes.

    Attach it to a ``SupervisedTrainer``, or to any Ignite engine with a ``network``, in one line:
    ``SecAggHandler(model, weight=n_examples).attach(trainer)``, or as one of ``train_handlers``. A round is then
    ``trainer.run()``, an exchange of `update` for the aggregate, and ``handler.model.apply(aggregate)``. One handler
    serves all rounds; the trainer may be a new one each round, and its network on any device and of any float dtype.

    The network may be wrapped at one site and plain at another, by ``torch.compile``, which
    ``SupervisedTrainer(compile=True)`` calls, ``DataParallel`` or ``DistributedDataParallel``: see
    `secagg.site.network_state`. Where several processes train one network, each has a handler, and one of them sends
    its update.

    Where a round begins with a calibration (``precision: auto``, the default of exact schemes), the handler needs to be
    told how to exchange it, and waits for the scales of the round between training and encryption:
    ``SecAggHandler(model, weight=n, calibrate=lambda update: session.calibrate(update, "scales.secagg"))``. If that
    raises an error, because the others stay away, say, it comes out of ``trainer.run()``, and the network still holds
    what was trained: `complete` goes on with it.

    If training raises an exception, or is ended by ``terminate(skip_completed=True)``, there is no update.

    Parameters
    ----------
    model : secagg.site.GlobalModel
        Made from the network, which must be the same at all sites (made from one seed, say).
    weight : float
        Weight of this site in the mean: its number of examples.
    calibrate : callable, optional
        Takes this site's calibration, an `Update`, and returns the sum of all sites', the scales of the round, which
        the handler closes after use. Needed where `GlobalModel.calibrates`, and not called elsewhere.
    upload_path : path, optional
        File to encrypt to, a frame at a time, in place of `update`; a file of an earlier round is removed when
        training starts.

    Raises
    ------
    ConfigError
        If something else than a `GlobalModel` is given, or `calibrate` is needed and missing.
    RangeError
        If the weight is not one that the configuration allows.

    Attributes
    ----------
    update : secagg.Update or None
        The encrypted difference, once training has completed and no `upload_path` is given.
    encrypt_seconds : float
        Wall-clock time that the latest encryption took, after the scales had come.
    """

    def __init__(
        self,
        model: GlobalModel,
        *,
        weight: float,
        calibrate: Callable[[secagg.Update], secagg.Update] | None = None,
        upload_path: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(model, GlobalModel):
            raise ConfigError(
                f"a SecAggHandler is given a {type(model).__name__}; give it the global model: "
                "SecAggHandler(GlobalModel(site, network), weight=…)"
            )
        if model.calibrates and calibrate is None:
            raise ConfigError(
                "each round begins with a calibration (aggregation.precision is 'auto'): tell the SecAggHandler how to "
                "exchange it, calibrate=lambda update: session.calibrate(update, 'scales.secagg')"
            )
        model.site.check_weight(weight)
        self.model = model
        self._calibrate = calibrate
        self.weight = weight
        self.upload_path = None if upload_path is None else Path(upload_path).absolute()
        self.update: secagg.Update | None = None
        self.encrypt_seconds = 0.0

    def attach(self, engine: Engine) -> None:
        """Take part in the training of an engine.

        Parameters
        ----------
        engine : monai.engines.SupervisedTrainer
            Or another Ignite engine whose attribute ``network`` is the model. Training raises `LayoutError` before its
            first iteration if there is none, or it is not that of the global model.
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
        local = _network(engine)
        with self._scales(local) as scales:
            start = time.perf_counter()
            if self.upload_path is None:
                self.update = self.model.encrypt(local, self.weight, scales)
            else:
                self.model.encrypt_to(self.upload_path, local, self.weight, scales)
            self.encrypt_seconds = time.perf_counter() - start

    def _start(self, engine: Engine) -> None:
        """Load the global model into the network."""
        self.update = None
        if self.upload_path is not None:
            self.upload_path.unlink(missing_ok=True)
        self.model.load(_network(engine))

    def _scales(self, local: torch.nn.Module) -> AbstractContextManager[secagg.Update | None]:
        """Return the scales of the round, if it has any to wait for."""
        if self._calibrate is None or not self.model.calibrates:
            return nullcontext()
        return self._calibrate(self.model.calibrate(local, self.weight))


def _network(engine: Engine) -> torch.nn.Module:
    """Return the network of an engine; `LayoutError` without one."""
    network: torch.nn.Module | None = getattr(engine, "network", None)
    if network is None:
        raise LayoutError(
            f"{type(engine).__name__} has no attribute network: set it to the module that the sites train together, "
            "such as torch.nn.ModuleDict({'g': trainer.g_network, 'd': trainer.d_network}) of a GanTrainer"
        )
    return network
