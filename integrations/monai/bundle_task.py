"""What a bundle trains and measures in a federation: one round of its trainer, one run of its evaluator."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer

from secagg.errors import ConfigError, SecAggError, TaskError, show
from secagg.site import load_network, network_state

from .distributed import load_first, together

Report = Callable[[float, float], None]


class BundleTask:
    """What a bundle trains, as a `secagg.site.Task`; it has ``validate`` where there is an evaluator.

    Parameters
    ----------
    trainer, evaluator, weight
        As of `federate`. The trainer is kept over the rounds: optimiser, schedulers and the count of epochs go on.

    Raises
    ------
    ConfigError
        If one of them is of no use.

    Attributes
    ----------
    model : torch.nn.Module
        The trainer's network.
    examples : float
        The weight.
    """

    def __init__(self, trainer: Trainer, evaluator: Evaluator | None, weight: float) -> None:
        self.model, self.examples = _network("trainer", trainer, Trainer), weight
        if not isinstance(weight, bool) and weight == 0:
            raise ConfigError("the weight is 0, so this site has no training data: look at the bundle's data set")
        self._trainer, self._evaluator = trainer, evaluator
        self._epochs = trainer.state.max_epochs
        if not isinstance(self._epochs, int) or self._epochs < 1:
            raise ConfigError(
                f"the trainer's max_epochs is {show(self._epochs)}; let it be the epochs of one round, at least 1, by "
                '"train#trainer#max_epochs" in the file of configuration'
            )
        if evaluator is not None:
            _check_evaluator(evaluator, self.model)
            self.validate = self._validate

    def train(self, round: int, report: Report = lambda done, total: None) -> None:
        """Train for the epochs of one round, at all ranks."""
        together(lambda: ("train", round))
        self._train(round, report)

    def lead(self, work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Do at rank 0 what trains and validates this task, and return its result: the others `follow`."""
        try:
            result = work()
        except TaskError:  # some rank may be in the midst of its work: whoever has started them ends them all
            raise
        except SecAggError as error:
            _fail_together(error)
        together(lambda: ("end", 0))
        load_first(self.model)
        return result

    def follow(self) -> dict[str, float]:
        """Train and validate with rank 0, until that has done its work; the network is its network then."""
        while True:
            what, round = together(lambda: ("", 0))[0]
            if what == "train":
                self._train(round, lambda done, total: None)
            elif what == "validate":
                self._measure()
            else:
                load_first(self.model)
                return {}

    def _train(self, round: int, report: Report) -> None:
        load_first(self.model)
        trainer, state = self._trainer, self._trainer.state
        state.max_epochs, before = state.epoch + self._epochs, state.iteration
        total = self._epochs * (state.epoch_length or 0)

        def count(engine: Engine) -> None:
            report(engine.state.iteration - before, total)

        with (
            trainer.add_event_handler(Events.ITERATION_COMPLETED, count),
            _held(trainer, self.model, _copied(self.model)),
        ):
            trainer.run()
        if state.iteration <= before:
            raise ConfigError(f"the trainer has run no iteration in round {round}, so that there is nothing to send")

    def _validate(self) -> dict[str, float]:
        """Return the evaluator's metrics that are numbers, the key metric first; the network stays as it is."""
        together(lambda: ("validate", 0))
        return self._measure()

    def _measure(self) -> dict[str, float]:
        evaluator = self._evaluator
        assert evaluator is not None
        load_first(self.model)
        begun = _copied(self.model)
        with _held(evaluator, self.model, begun):
            evaluator.run(max(self._trainer.state.epoch, 1))  # where handlers draw its curves
        load_network(self.model, begun)
        key, found = evaluator.state.key_metric_name, evaluator.state.metrics
        return {
            name: float(found[name]) for name in (key, *sorted(found.keys() - {key})) if _is_number(found.get(name))
        }


@contextmanager
def _held(engine: Engine, network: torch.nn.Module, begun: dict[str, Any]) -> Iterator[None]:
    """Let a run of an engine begin with these tensors, whatever the bundle's handlers write into its network.

    Those that load weights when a run starts, such as MONAI's ``CheckpointLoader``, come before; what comes later, at
    the start of an epoch or of an iteration, is refused.
    """
    due: dict[str, Any] | None = begun
    del begun  # a copy of the network, which is not kept any longer than it is needed

    def load(engine: Engine) -> None:
        if due is not None:
            load_network(network, due)

    def check(engine: Engine) -> None:
        nonlocal due
        if due is not None and (name := _differing(network_state(network), due)) is not None:
            raise ConfigError(
                f"a handler of the {type(engine).__name__} has written something else into the network than the global "
                f"model, into {name!r}, which would be sent as if it had been learnt: take it out"
            )
        due = None

    # Attached last, they are called last; and they leave the engine again.
    with engine.add_event_handler(Events.STARTED, load), engine.add_event_handler(Events.ITERATION_STARTED, check):
        yield


def _copied(network: torch.nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in network_state(network).items()
    }


def _differing(state: dict[str, Any], begun: dict[str, Any]) -> str | None:
    """Return the name of a tensor that is another one than before."""
    tensors = ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))
    return next((name for name, value in tensors if not torch.equal(value, begun[name])), None)


def _network(what: str, engine: object, kind: type[Engine]) -> torch.nn.Module:
    """Return the network of an engine of a bundle."""
    if not isinstance(engine, kind):
        raise ConfigError(
            f"the {what} is a {type(engine).__name__}; give MONAI's {kind.__name__}, such as "
            f'"@{"train#trainer" if kind is Trainer else "validate#evaluator"}"'
        )
    network = getattr(engine, "network", None)
    if not isinstance(network, torch.nn.Module):
        raise ConfigError(
            f"the {what}, a {type(engine).__name__}, has no network: sites train one network together, as that of a "
            "SupervisedTrainer; one with two, such as a GanTrainer, needs a loop of its own with the SecAggHandler"
        )
    return network


def _check_evaluator(evaluator: object, network: torch.nn.Module) -> None:
    own = network_state(_network("evaluator", evaluator, Evaluator))
    assert isinstance(evaluator, Evaluator)
    trained = network_state(network)
    if own.keys() != trained.keys() or any(
        isinstance(value, torch.Tensor) and value.data_ptr() != own[name].data_ptr() for name, value in trained.items()
    ):
        raise ConfigError(
            "the evaluator has another network than the trainer, and would never measure the global model: let both "
            'have the same reference, such as "@network"'
        )
    if evaluator.state.key_metric_name is None:
        raise ConfigError(
            'the evaluator has no key metric: give it key_val_metric, or leave out "evaluator" where none is measured'
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _fail_together(error: SecAggError) -> NoReturn:
    def fail() -> NoReturn:
        raise error

    together(fail)
    raise error  # which it has done
