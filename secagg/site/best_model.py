"""The best global model so far, in the folder of a site's kit: encrypted, and beside it why it is the best.

A global model is measured by each site when a round begins from it. What the sites have measured travels in their
updates of that round, so that all of them know the mean when the round has ended, and the model has gone on. The last
model of a training has no such mean.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import FormatError, SecAggError, StateError, StorageError
from ..storage.files import os_errors, replace_file
from ..wire.header import check_round
from ..wire.update import Update
from .folder import BEST_FACTS_FILE, BEST_FILE, MODEL_FILE, NEW_BEST_FILE
from .global_model import GlobalModel


@dataclass(frozen=True)
class Best:
    """Why a global model is the best.

    Parameters
    ----------
    metric : str
        The key metric: the first of the configuration's.
    value : float
        Its weighted mean over the sites, the largest of the rounds whose sums this site has seen.
    round : int
        The round that began from the model.
    base : str
        What training of that round began from, hexadecimal: it tells the model.
    """

    metric: str
    value: float
    round: int
    base: str


def keep_for_best(folder: Path, model: GlobalModel) -> None:
    """See to it that the global model, from which a round is ending, lies in the folder: see `keep_best`."""
    path = folder / MODEL_FILE
    try:
        with Update.open(path) as stored:
            if (stored.header.round, stored.header.base) == (model.round, model.base):
                return
    except SecAggError:
        pass
    model.save_model(path)


def keep_best(folder: Path, round: int, metric: str, means: Mapping[str, float]) -> Best | None:
    """Keep the model in the folder, from which a round began, if it is the best so far; return the facts if it is.

    Whatever interrupts it, there is a best model: the one before until the facts name the new one, beside it.

    Parameters
    ----------
    folder : Path
        The kit's.
    round : int
        The round.
    metric : str
        The key metric.
    means : mapping of str to float
        The means of the round. Without one of the key metric, nothing is known of the model.
    """
    if metric not in means:
        return None
    before = find_best(folder)
    # What is of a later round, or here before any round has ended, is of another training.
    if before is not None and before.metric == metric and before.round < round and before.value >= means[metric]:
        return None
    with os_errors(StorageError, f"cannot write {str(folder / BEST_FILE)!r}"):
        _settle(folder, before)
        with Update.open(folder / MODEL_FILE) as model:
            best = Best(metric, means[metric], round, (model.header.base or b"").hex())
        with (folder / MODEL_FILE).open("rb") as source, replace_file(folder / NEW_BEST_FILE) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        with replace_file(folder / BEST_FACTS_FILE, 0o600) as file:
            file.write(json.dumps(asdict(best)).encode())
        _settle(folder, best)
    return best


def find_best(folder: Path) -> Best | None:
    """Return why the model that is kept is the best; None if there is none, or it cannot be told any more."""
    try:
        with os_errors(StorageError, "it cannot be read"):
            facts = json.loads((folder / BEST_FACTS_FILE).read_bytes())
        best = Best(str(facts["metric"]), float(facts["value"]), check_round(facts["round"]), str(facts["base"]))
        if not math.isfinite(best.value):
            raise FormatError("the mean is no number")
    except (SecAggError, ValueError, TypeError, KeyError):
        return None
    return None if _place(folder, best) is None else best


def open_best(folder: Path) -> Update:
    """Return the model that `find_best` is about; `StateError` if there is none."""
    best = find_best(folder)
    place = None if best is None else _place(folder, best)
    if place is None:
        raise StateError(f"{folder} has no best model yet")
    return Update.open(place)


def forget_best(folder: Path) -> None:
    """Remove what is the best of another training."""
    with os_errors(StorageError, f"cannot remove {str(folder / BEST_FILE)!r}"):
        for name in (BEST_FACTS_FILE, BEST_FILE, NEW_BEST_FILE):
            (folder / name).unlink(missing_ok=True)


def _place(folder: Path, best: Best) -> Path | None:
    """Return the file with the model of the facts: the new one, if they were written last."""
    for path in (folder / BEST_FILE, folder / NEW_BEST_FILE):
        with suppress(SecAggError), Update.open(path) as model:
            header = model.header
            if (header.round, (header.base or b"").hex()) == (best.round, best.base):
                return path
    return None


def _settle(folder: Path, best: Best | None) -> None:
    """Give the model of the facts its name."""
    if best is not None and _place(folder, best) == folder / NEW_BEST_FILE:
        (folder / NEW_BEST_FILE).replace(folder / BEST_FILE)
