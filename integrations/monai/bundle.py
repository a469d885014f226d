"""A MONAI bundle takes part in a federation, by one file of configuration beside its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from monai.apps.utils import get_logger
from monai.engines import Evaluator, Trainer

import secagg
from secagg.errors import ConfigError
from secagg.site import Reporter, Session, SiteRecord, run_task
from secagg.trust import SiteKit, Tls, load_site_kit

from .bundle_task import BundleTask
from .distributed import rank

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

    Where several processes train one network, as bundles for several GPUs do, rank 0 is the site, and the others train
    and measure with it. They wait for it while it waits for other sites: the ``timeout`` of ``init_process_group`` has
    to be longer than a round.

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
    SystemExit
        130 after Ctrl-C.
    """

    def connect(kit: SiteKit, layout: secagg.Layout) -> Session:
        from secagg.integrations.grpc import SiteSession

        tls = Tls.load(kit.tls)
        return SiteSession(server, kit.name, tls=tls, timeout=timeout, project=kit.project, layout=layout)

    def keep(record: SiteRecord) -> None:
        if report is not None:
            record.append_to(Path(report))

    def lead() -> dict[str, float]:
        opened = load_site_kit(kit)
        if evaluator is not None:
            _check_comparison(evaluator, opened.config.metrics)
        if report is not None:
            Path(report).open("ab").close()  # what cannot be written must not be found out after training
        first, final, chosen = (None if file is None else Path(file) for file in (start, out, best))
        return run_task(
            opened,
            connect,
            task,
            rounds,
            reporter=_Logged(),
            keep=keep,
            start=first,
            start_by=start_by,
            out=final,
            best=chosen,
        )

    task = BundleTask(trainer, evaluator, weight)
    try:
        return task.follow() if rank() else task.lead(lead)
    except KeyboardInterrupt:
        _Logged().warning("interrupted; the same command goes on")
        raise SystemExit(130) from None


def _check_comparison(evaluator: Evaluator, metrics: Sequence[str]) -> None:
    """Refuse a key metric by which the worst model would be taken for the best."""
    key = evaluator.state.key_metric_name
    if metrics and metrics[0] == key and not evaluator.metric_cmp_fn(1.0, 0.0):
        raise ConfigError(
            f"of {key!r}, the first of the configuration's metrics, less is better by this bundle, and the global "
            "model with the largest mean would be kept as the best: let metrics begin with a score, such as Dice"
        )


class _Logged(Reporter):
    """Writes to where the bundle logs; where nothing is set up, to standard output, as MONAI does."""

    def __init__(self) -> None:
        shown = logging.root.handlers and logging.root.isEnabledFor(logging.INFO)
        self._log = logging.getLogger(__name__) if shown else get_logger(__name__)

    @contextmanager
    def step(self, what: str) -> Iterator[Callable[[float, float], None]]:
        """Log its beginning; how far training is, the bundle's own handlers show."""
        self._log.info("%s", what)
        yield lambda done, total: None

    def news(self, line: str) -> None:
        """Log it as information."""
        self._log.info("%s", line)

    def warning(self, line: str) -> None:
        """Log it as a warning."""
        self._log.warning("%s", line)
