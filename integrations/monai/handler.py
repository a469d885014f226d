"""The Ignite handler: a MONAI trainer takes part in encrypted federated averaging."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ignite.engine import Events

import secagg
from secagg.errors import LayoutError, StateError, VerificationError

if TYPE_CHECKING:
    from ignite.engine import Engine


class SecAggHandler:
    """Loads the global model when local training starts, and encrypts what was learnt when it completes.

    Attach it to a ``SupervisedTrainer``, or to any Ignite engine with a ``network``, in one line:
    ``SecAggHandler(site, weight=n_examples).attach(trainer)``, or as one of ``train_handlers``. A round is then
    ``trainer.run()``, an exchange of `update` for the aggregate, and `receive`. One handler serves all rounds; the
    trainer may be a new one each round.

    What is sent is the difference (local − global) of every float tensor of the state dict, in its order. The site's
    integer and bool tensors, such as BatchNorm's ``num_batches_tracked``, stay its own. The global model is held in
    main memory whatever the network's device, and 16-bit floats are held and sent as float32, so that small mean
    differences are not lost in rounding; the network keeps its dtypes. If training raises an exception, or is ended by
    ``terminate(skip_completed=True)``, there is no update.

    Each update says which global model its training began from (`base`), and `receive` takes only the sum of updates
    that began from the same one. A site that restarts or joins late makes a handler as at first, lets `load_model` take
    the encrypted global model that another site has stored on the server with `save_model`, and then `receive` the
    aggregates since.

    Parameters
    ----------
    site : secagg.Client
        Encrypts and decrypts.
    weight : float
        Weight of this site in the mean: its number of examples.
    global_state : mapping of str to torch.Tensor, optional
        State dict of the global model. Without it the network's own state when training first starts is taken, which
        must then be the same at all sites (made from one seed, say).
    round : int
        Round that comes next, for a site that has kept `global_state` and `base` over a restart.
    base : bytes, optional
        What training of that round begins from: `base` of the handler that `global_state` comes from. Without it, and
        in round 0 only, the digest of the global model.
    upload_path : path, optional
        File to encrypt to, a frame at a time, in place of `update`; a file of an earlier round is removed when
        training starts.

    Raises
    ------
    RangeError
        If the weight is not one that the configuration allows.
    StateError
        If a round is given without its `base`.
    LayoutError, ConfigError
        If the global model cannot be aggregated.

    Attributes
    ----------
    site : secagg.Client
        Another one may take its place between two calls: the keys of an earlier epoch read what was stored under them.
    round : int
        Round of the next, or current, local training; `receive` counts it up.
    base : bytes or None
        What training of that round begins from, 32 bytes: the digest of the initial global model, then
        `secagg.Update.next_base` of each aggregate. None before the global model is known.
    update : secagg.Update or None
        The encrypted difference, once training has completed and no `upload_path` is given.
    encrypt_seconds, decrypt_seconds : float
        Wall-clock time that the latest encryption and the latest decryption took.
    """

    def __init__(
        self,
        site: secagg.Client,
        *,
        weight: float,
        global_state: Mapping[str, torch.Tensor] | None = None,
        round: int = 0,
        base: bytes | None = None,
        upload_path: str | os.PathLike[str] | None = None,
    ) -> None:
        site.check_weight(weight)
        if round != 0 and base is None:
            raise StateError(
                f"round {round} needs its base: give that of the handler which was at this round, or take the model "
                "that is stored on the server with load_model"
            )
        self.site = site
        self.weight = weight
        self.round = round
        self.upload_path = None if upload_path is None else Path(upload_path)
        self.update: secagg.Update | None = None
        self.encrypt_seconds = 0.0
        self.decrypt_seconds = 0.0
        self.base = base
        self._global: dict[str, torch.Tensor] | None = None
        if global_state is not None:
            self._begin(global_state)

    @property
    def global_state(self) -> dict[str, torch.Tensor] | None:
        """State dict of the global model on the CPU, with this site's integer tensors; None before the first training.

        ``load_state_dict`` takes it; 16-bit floats are held as float32. Do not change its tensors in place.
        """
        return None if self._global is None else dict(self._global)

    def attach(self, engine: Engine) -> None:
        """Take part in the training of an engine.

        Parameters
        ----------
        engine : monai.engines.SupervisedTrainer
            Or another Ignite engine whose attribute ``network`` is the model; without one, training raises `TypeError`.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def receive(self, aggregate: secagg.Update, receipt: secagg.Receipt | None = None) -> None:
        """Check and decrypt the mean difference, apply it to the global model, and count the round up.

        If anything is raised, global model, base and round stay as they were.

        Parameters
        ----------
        aggregate : secagg.Update
            The aggregate of this round. This site need not be in it.
        receipt : secagg.Receipt, optional
            The server's, for this site's update of the round, which must then be in the aggregate.

        Raises
        ------
        RoundMismatchError
            If the aggregate is of another round.
        VerificationError
            If its updates began from another global model, or the one that `receipt` is for is not among them.
        StateError
            If there is no global model yet to apply it to.
        SecAggError
            Whatever makes the aggregate unfit: see `secagg.Client.decrypt`.
        """
        if self._global is None:
            raise StateError("no global model to apply the mean to: give global_state, or train first")
        start = time.perf_counter()
        mean = self.site.decrypt(aggregate, like=self._global, round=self.round, base=self.base, receipt=receipt)
        self.decrypt_seconds = time.perf_counter() - start
        self.base = aggregate.next_base
        self._global = {
            name: value + mean[name] if value.is_floating_point() else value for name, value in self._global.items()
        }
        self.round += 1

    def save_model(self, path: str | os.PathLike[str]) -> None:
        """Write the encrypted global model, from which the current round begins, to a file for the server to keep.

        Raises
        ------
        StateError
            If there is no global model yet.
        StorageError
            If the file cannot be written.
        """
        if self._global is None:
            raise StateError("no global model to save: give global_state, or train first")
        self.site.encrypt_model(path, self._global, round=self.round, base=self.base)

    def load_model(self, model: secagg.Update) -> None:
        """Go on from an encrypted global model that any site has saved: take over its tensors, round and base.

        The site's integer tensors stay. If anything is raised, global model, base and round stay as they were.

        Parameters
        ----------
        model : secagg.Update
            Of kind ``"model"``.

        Raises
        ------
        StateError
            If there is no global model yet whose place it could take.
        VerificationError
            If it does not say what training from it begins from.
        SecAggError
            Whatever makes it unfit: see `secagg.Client.decrypt_model`.
        """
        if self._global is None:
            raise StateError("no global model to replace: give global_state, the state dict of the network")
        state = self.site.decrypt_model(model, like=self._global)
        if model.header.base is None:
            raise VerificationError(
                f"the model of round {model.header.round} was stored without a base, so nobody can tell whether others "
                "train from the same one: store it with SecAggHandler.save_model"
            )
        self._global, self.round, self.base = state, model.header.round, model.header.base

    def _begin(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take a state dict as the global model."""
        held = _held(state)
        self.base = self.base or self.site.base(held)
        self._global = held

    def _start(self, engine: Engine) -> None:
        """Load the global model into the network."""
        self.update = None
        if self.upload_path is not None:
            self.upload_path.unlink(missing_ok=True)
        network = _network(engine)
        if self._global is None:
            self._begin(network.state_dict())
        assert self._global is not None
        self.site.layout(self._global)  # what could not be encrypted after training must not be trained
        try:
            network.load_state_dict(self._global)  # casts to the network's dtypes, copies to its device
        except RuntimeError as error:
            raise LayoutError(f"the global model is of another network: {error}") from error

    def _complete(self, engine: Engine) -> None:
        """Encrypt the difference of the network from the global model that it started from."""
        local, start_state = _network(engine).state_dict(), self._global
        assert start_state is not None
        difference = {name: _difference(value, start_state[name]) for name, value in local.items()}
        start = time.perf_counter()
        if self.upload_path is None:
            self.update = self.site.encrypt(difference, weight=self.weight, round=self.round, base=self.base)
        else:
            self.site.encrypt_to(self.upload_path, difference, weight=self.weight, round=self.round, base=self.base)
        self.encrypt_seconds = time.perf_counter() - start
        self._global = {
            name: value if value.is_floating_point() else difference[name] for name, value in start_state.items()
        }


def _network(engine: Engine) -> torch.nn.Module:
    """Return the network of an engine without a data-parallel wrapper, so that names are the same at all sites."""
    network = getattr(engine, "network", None)
    if isinstance(network, torch.nn.DataParallel):
        network = network.module
    if not isinstance(network, torch.nn.Module):
        raise TypeError(
            f"{type(engine).__name__} has no network; attach to a trainer such as monai.engines.SupervisedTrainer"
        )
    return network


def _held(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a copy of a state dict in main memory, its floats in float32 or wider."""
    held = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise LayoutError(f"{name!r} of the state dict is a {type(value).__name__}; only tensors can be aggregated")
        held[name] = value.detach().to("cpu", _wide(value.dtype), copy=True)
    return held


def _difference(local: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return (local − start) as the global model is held; of an integer tensor a copy of the local one.

    The network started from `start` rounded to its own dtype: that is what is subtracted, or training would seem to
    have made the rounding error.
    """
    value = local.detach().to("cpu", start.dtype, copy=True)
    return value - start.to(local.dtype).to(start.dtype) if start.is_floating_point() else value


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
