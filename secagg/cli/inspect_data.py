"""``secagg inspect dataset.json``: what a data set is of, and a ``task:`` block for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..storage.yaml_file import to_yaml
from ..ui.progress import progress
from ..ui.units import show_count

#: What lists a data set.
DATASET_FILE = "dataset.json"


def show_data(path: Path, row: Callable[[str, object], None]) -> None:
    """Describe the data set of a ``dataset.json``, after reading all its labels.

    Parameters
    ----------
    path : Path
        The file.
    row : callable
        Called with name and value of each line.

    Raises
    ------
    ConfigError
        If it is not in the shape of the Medical Segmentation Decathlon, or a label has other values than it says.
    """
    from ..integrations.monai.decathlon import Decathlon
    from ..integrations.monai.planning import propose

    data = Decathlon.load(path.parent)
    with progress(f"read the labels of {show_count(len(data.files), 'case')}") as report:
        cases = data.cases(report)
    with progress("look for what suits them") as report:
        settings = propose(data, cases, report)
    size, spacing = (np.median([getattr(case, name) for case in cases], axis=0) for name in ("size", "spacing"))
    row("kind", "a data set in the shape of the Medical Segmentation Decathlon; its labels fit")
    row("cases", len(cases))
    row("channels", ", ".join(data.modality))
    row("classes", ", ".join(data.labels))
    row("median size", f"{' × '.join(f'{edge:g}' for edge in size)} voxels")
    row("median spacing", f"{' × '.join(f'{edge:.3g}' for edge in spacing)} mm")
    print("\nfor project.yaml, so that all sites train alike; change what you know better:\n", flush=True)
    print(to_yaml({"metrics": settings.metrics, "task": settings.block}, flow=True), end="", flush=True)
