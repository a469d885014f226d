"""A MONAI bundle takes part in a federation, by one file of configuration beside its own."""

from __future__ import annotations

import logging
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.apps.utils import get_logger
from monai.engines import Evaluator, Trainer

import secagg
from secagg.errors import ConfigError, show
from secagg.site import Session, SiteRecord, load_network, network_state, run_task
from secagg.trust import SiteKit, Tls, load_site_kit

File = str | os.PathLike[str]


def federate(
    trainer: Trainer,
    evaluator: Evaluator | None = None,
    *,
    kit: File,
    server: str,
    rounds: int,
    weight: float,
    timeout: float = 600.0,
    report: File | None = None,
    start: File | None = None,
    start_by: str | None = None,
    out: File | None = None,
    best: File | None = None,
) -> dict[str, float]:
    """Train a bundle in a federation, as ``secagg site`` trains a task; started again, go on with it.

    ``configs/secagg.json`` beside the bundle's own ``configs/train.json``::

        {"run": [{"_target_": "secagg.integrations.monai.federate",
                  "trainer": "@train#trainer", "evaluator": "@validate#evaluator",
                  "kit": "/etc/secagg/site-1", "server": "fl.example.org:8443",
                  "rounds": 10, "weight": "$len(@train#dataset)"}]}

    A round is ``trainer.run()`` for as many epochs as the trainer's ``max_epochs``, from the global model, whatever the
    bundle's handlers write into the network when training starts. What was trained is encrypted and sent; the mean of
    all sites is checked and decrypted, and the evaluator measures that. Of its metrics those that the configuration of
    the federation names travel encrypted, and every site knows their means.

    Parameters
    ----------
    trainer : monai.engines.Trainer
        With a ``network``, alike at all sites in the beginning.
    evaluator : monai.engines.Evaluator, optional
        Of the same network, with a key metric. A site without one measures nothing.
    kit : path
        Folder of the site's kit, as opened by ``secagg unpack``.
    server : str
        Where the server listens, ``host:port``.
    rounds : int
        Of the federation, also those without this site.
    weight : float
        The private weight of this site in the mean: its number of training examples.
    timeout : float
        Longest try to reach the server, in seconds.
    report : path, optional
        File to which each round appends a line of JSON.
    start, start_by, out, best : optional
        As of `secagg.site.run_task`: files of the first, the final and the best global model, and the site whose first
        model all begin from.

    Returns
    -------
    dict of str to float
        The evaluator's metrics of the last global model, which the network holds then.

    Raises
    ------
    ConfigError
        If trainer, evaluator, weight, rounds, address or files are of no use: before training.
    TaskError
        If the bundle's own code raises anything. This site goes on when the bundle is started again.
    SecAggError
        Whatever kit, model, update, aggregate or a call are refused for. MONAI puts its own error around it.
    """

    def connect(kit: SiteKit, layout: secagg.Layout) -> Session:
        from secagg.integrations.grpc import SiteSession

        tls = Tls.load(kit.tls)
        return SiteSession(server, kit.name, tls=tls, timeout=timeout, project=kit.project, layout=layout)

    def keep(record: SiteRecord) -> None:
        if report is not None:
            record.append_to(Path(report))

    opened = load_site_kit(kit)
    task = BundleTask(trainer, evaluator, weight)
    if evaluator is not None:
        _check_comparison(evaluator, opened.config.metrics)
    _show_news()
    first, final, chosen = (None if file is None else Path(file) for file in (start, out, best))
    return run_task(
        opened, connect, task, rounds, keep=keep, start=first, start_by=start_by, out=final, best=chosen
    )


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

    def train(self, round: int, report: Callable[[float, float], None] = lambda done, total: None) -> None:
        """Train for the epochs of one round."""
        trainer, state = self._trainer, self._trainer.state
        state.max_epochs, before = state.epoch + self._epochs, state.iteration
        total = self._epochs * (state.epoch_length or 0)

        def count(engine: Engine) -> None:
            report(engine.state.iteration - before, total)

        with trainer.add_event_handler(Events.ITERATION_COMPLETED, count), _held(trainer, self.model):
            trainer.run()
        if state.iteration <= before:
            raise ConfigError(f"the trainer has run no iteration in round {round}, so that there is nothing to send")

    def _validate(self) -> dict[str, float]:
        """Return the evaluator's metrics that are numbers, the key metric first; the network stays as it is."""
        evaluator = self._evaluator
        assert evaluator is not None
        with _held(evaluator, self.model) as begun:
            evaluator.run(max(self._trainer.state.epoch, 1))  # where handlers draw its curves
            load_network(self.model, begun)
        key, found = evaluator.state.key_metric_name, evaluator.state.metrics
        return {
            name: float(found[name]) for name in (key, *sorted(found.keys() - {key})) if _is_number(found.get(name))
        }


@contextmanager
def _held(engine: Engine, network: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """Let a run of an engine begin with what the network holds now, whatever the bundle's handlers write into that.

    Those that load weights when a run starts, such as MONAI's ``CheckpointLoader``, come before; what comes later, at
    the start of an epoch or of an iteration, is refused.

    Yields
    ------
    dict
        A copy of what it holds.
    """
    begun = {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in network_state(network).items()
    }
    unchecked = True

    def load(engine: Engine) -> None:
        load_network(network, begun)

    def check(engine: Engine) -> None:
        nonlocal unchecked
        if unchecked and (name := _differing(network_state(network), begun)) is not None:
            raise ConfigError(
                f"a handler of the {type(engine).__name__} has written something else into the network than the global "
                f"model, into {name!r}, which would be sent as if it had been learnt: take it out"
            )
        unchecked = False

    # Attached last, they are called last; and they leave the engine again.
    with engine.add_event_handler(Events.STARTED, load), engine.add_event_handler(Events.ITERATION_STARTED, check):
        yield begun


def _differing(state: dict[str, Any], begun: dict[str, Any]) -> str | None:
    """Return the name of a tensor that is another one than before."""
    tensors = ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))
    return next((name for name, value in tensors if not torch.equal(value, begun[name])), None)


def _network(what: str, engine: object, kind: type[Engine]) -> torch.nn.Module:
    """Return the network of an engine of a bundle."""
    if not isinstance(engine, kind):
        raise ConfigError(
            f"the {what} is a {type(engine).__name__}; give an engine of MONAI, a {kind.__name__}, such as "
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


def _check_comparison(evaluator: Evaluator, metrics: Sequence[str]) -> None:
    """Refuse a key metric by which the worst model would be taken for the best."""
    key = evaluator.state.key_metric_name
    if metrics and metrics[0] == key and not evaluator.metric_cmp_fn(1.0, 0.0):
        raise ConfigError(
            f"of {key!r}, the first of the configuration's metrics, less is better by this bundle, and the global "
            "model with the largest mean would be kept as the best: let metrics begin with a score, such as Dice"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _show_news() -> None:
    """Let what happens be seen as MONAI shows its own, unless the bundle has set up logging."""
    if not logging.getLogger("secagg.site").hasHandlers():
        get_logger("secagg.site")
