"""A task in a federation, from joining to the files of the final and the best model: all that ``secagg site`` does."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..client import Client
from ..errors import ConfigError
from ..trust.kit import SiteKit, site_kit
from ..trust.kit_files import locked
from ..wire.layout import Layout
from .final_model import check_final_model, write_final_model
from .first_model import load_first
from .global_model import GlobalModel
from .loop import check_examples, check_rounds, take_part
from .participant import Participant
from .record import SiteRecord
from .reporter import Logged, Reporter
from .session import Session
from .task import CheckedTask, Task

#: Opens a site's connection, by its kit, for updates of a layout; it is closed in the end.
Connect = Callable[[SiteKit, Layout], AbstractContextManager[Session]]


def run_task(
    kit: SiteKit | str | os.PathLike[str],
    connect: Connect,
    task: Task | CheckedTask,
    rounds: int,
    *,
    reporter: Reporter | None = None,
    keep: Callable[[SiteRecord], None] = lambda record: None,
    start: Path | None = None,
    start_by: str | None = None,
    out: Path | None = None,
    best: Path | None = None,
) -> dict[str, float]:
    """Train a task in a federation, until that has done its rounds; another call goes on where this was interrupted.

    Metrics that the configuration names, of what ``task.validate`` measures of each global model, travel encrypted with
    the updates, and all sites learn their means; by the first of them, larger being better, the best model is kept in
    the folder of the kit.

    Parameters
    ----------
    kit : path or SiteKit
        The site's kit: its folder is locked until the end, and holds what another process goes on from.
    connect : callable
        ``connect(kit, layout)`` opens the connection, a context manager that yields a `Session`.
    task : Task
        What is trained.
    rounds : int
        Of the federation, also those without this site.
    reporter : Reporter, optional
        Is told what happens; without one, the logger ``secagg.site`` is.
    keep : callable
        Called with the record of each round of this site.
    start : Path, optional
        File of the first global model, see `load_first`; without it, that is the task's own.
    start_by : str, optional
        Site from whose first model all begin: it stores that on the server, encrypted, and the others wait for it.
    out : Path, optional
        File for the final model: ``.safetensors``, ``.pt`` or ``.pth``, see `write_final_model`.
    best : Path, optional
        The same for the global model with the best mean of the configuration's first metric. The final model is not
        among them: sites measure it when another round begins.

    Returns
    -------
    dict of str to float
        The metrics of the final global model at this site; the model of `task` holds it.

    Raises
    ------
    ConfigError
        If a number, a file's name or the task cannot be used, or another process of the site is at work.
    TaskError
        If the code of the task raises anything.
    KeyFileError, IdentityError
        If the kit is damaged, or not that of a site; if it has expired, or the site has been revoked.
    QuorumError
        If the others stay away.
    SecAggError
        Whatever else a model, an update, an aggregate or a call is refused for.
    """
    check_rounds(rounds)
    kit, reporter = site_kit(kit), reporter or Logged()
    kit.project.check_time()
    check_files(kit, out, best)
    with locked(kit.folder):
        site = Client.load(kit)
        checked = task if isinstance(task, CheckedTask) else CheckedTask(type(task).__name__, task)
        check_examples(site, checked)
        if start is not None:
            load_first(checked, start)
        model = GlobalModel(site, checked.state)
        with connect(kit, model.layout) as session:
            participant = Participant(kit, session, model, reporter, start_by)
            with reporter.step(f"join the federation, for {session.timeout:g} s at most"):
                participant.join()
            metrics = take_part(participant, checked, rounds, keep)
        checked.load(model.state)  # validation may have changed it, as BatchNorm's statistics
        if out is not None:
            write_final_model(out, checked.state)
        if best is not None:  # last: if it cannot be read, the final model is there
            _write_best(participant, checked, best)
            checked.load(model.state)
    return metrics


def check_files(kit: SiteKit, out: Path | None, best: Path | None) -> None:
    """Find out before hours of training whether the models can be written; errors as of `check_final_model`."""
    if best is not None and not kit.config.metrics:
        raise ConfigError(
            "there is nothing to choose the best model by: name what the sites measure in the configuration, such as "
            "metrics: [dice]"
        )
    for path in (out, best):
        if path is not None:
            check_final_model(path)
    if out is not None and best is not None and out.resolve() == best.resolve():
        raise ConfigError(f"the final model and the best one would both be {out}: name two files")


def _write_best(participant: Participant, task: CheckedTask, path: Path) -> None:
    best = participant.best
    if best is None:
        participant.reporter.warning(
            f"{path} is not written: there is no mean of {participant.model.metric_names[0]} of any round, because not "
            "all sites have measured it, or this one has not seen the sums"
        )
        return
    task.load(participant.best_state())
    write_final_model(path, task.state)
    participant.reporter.news(
        f"{path}: the global model that round {best.round} began from, with the best {best.metric}: {best.value:.4f}, "
        "mean of all sites"
    )
