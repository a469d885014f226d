"""The tasks that ``secagg demo`` trains, and ``secagg site`` without ``--task``.

White matter in the MNI152 brain; with ``--data FOLDER`` a segmentation of one's own data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, show
from ..setup.progress import Report
from ..trust.project import Project

#: What ``--data`` trains, as `secagg.site.task_class.load_task` finds it.
SEGMENTATION = "secagg.integrations.monai:Segmentation"


class MNI152:
    """White-matter segmentation on a part of the MNI152 brain: a task as of `secagg.site.task.Task`.

    Parameters
    ----------
    part : str
        Which part of the training data is this site's: ``2/3`` for the second of three.
    seed : int
        Of the initial network, the same at all sites, and of the order of the patches.
    threads : int
        Of PyTorch; 1, so that sites can share a machine.

    Raises
    ------
    ConfigError
        If there is no such part, or a number is none.
    ImportError
        If MONAI or another library of the extra ``monai`` is missing.
    """

    def __init__(self, part: str = "1/1", seed: int = 0, threads: int = 1) -> None:
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", part) if isinstance(part, str) else None
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"part is {show(part)}: write 2/3 for the second of three parts")
        self._number, self._seed = int(match[1]), check_least("seed", seed, 0)
        check_least("threads", threads)

        import torch  # these take seconds: after all that can be wrong with the options

        from . import mni152

        torch.set_num_threads(threads)
        self._mni152 = mni152
        self._patches = mni152.site_patches(self._number - 1, int(match[2]))
        self._validation = mni152.validation_patches()
        self.examples = len(self._patches)
        self.model = mni152.make_network(seed)

    def train(self, round: int, report: Report) -> None:
        """Train the network for two passes over the patches of this site."""
        from ignite.engine import Engine, Events

        trainer = self._mni152.make_trainer(self.model, self._patches, seed=(self._seed, round, self._number))

        def show(engine: Engine) -> None:
            report(engine.state.iteration, (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0))

        trainer.add_event_handler(Events.ITERATION_COMPLETED, show)
        trainer.run()

    def validate(self) -> dict[str, float]:
        """Return the mean Dice of the network on the held-out patches."""
        return {"dice": self._mni152.dice(self.model, self._validation)}


def data_arguments(
    data: Path, fold: str | None, project: Project, options: Mapping[str, Any], report: Report
) -> dict[str, Any]:
    """Return with which arguments a `SEGMENTATION` is made.

    Parameters
    ----------
    data : Path
        Folder of the data.
    fold : str or None
        Which part is held out; None: as it is by default.
    project : Project
        Under whose manifest sites train.
    options : mapping of str to object
        What else the user wants.
    report : callable
        Shows how much of the data was read.

    Raises
    ------
    ConfigError
        If an option is one of these.
    """
    arguments = {"data": data, "block": project.task, "report": report} | ({} if fold is None else {"fold": fold})
    for name in options:
        if name in ("data", "block", "report", "fold"):
            raise ConfigError(f"--option {name} is none of --data: folder and fold are --data and --fold")
    return {**arguments, **options}


def check_least(option: str, value: int, least: int = 1) -> int:
    """Return the value of an option, or raise `ConfigError` if it is no whole number, or below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{option} is {show(value)}; use {least} or more")
    return value
