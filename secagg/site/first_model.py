"""The first global model: from a file, or made by one site, from which the others take it by way of the server.

Where neither is named, every site makes it, from one seed. In each case its digest is in all updates of round 0, and
the manifest may have it, too (``initial`` in the project file): then no site begins from another one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ..errors import LayoutError, StateError, VerificationError
from ..scheme.tensors import describe, is_torch, to_array
from ..setup.model_file import read_state
from ..trust.agreement import check_first_base
from ..trust.project import Project
from .folder import DOWNLOAD_FILE, MODEL_FILE
from .global_model import GlobalModel
from .reporter import Reporter
from .session import Session
from .task import CheckedTask

_POLL_SECONDS = 1.0


def load_first(task: CheckedTask, path: Path) -> None:
    """Let the model of a task begin with the tensors of a file.

    Parameters
    ----------
    task : CheckedTask
        Whose model it is.
    path : Path
        ``.npz``, ``.safetensors``, or a torch checkpoint (``.pt``, ``.pth``): all names of the model, in any order.

    Raises
    ------
    FormatError
        If the file is missing, of another kind, or damaged.
    LayoutError
        If it is of another model.
    """
    found, mine = read_state(path), task.state
    missing, extra = mine.keys() - found.keys(), found.keys() - mine.keys()
    if missing or extra:
        fault = f"lacks {min(missing)!r}" if missing else f"also has {min(extra)!r}"
        raise LayoutError(f"{path} {fault}: it is not of the model of the task")
    for name, value in mine.items():
        (_, here), (_, there) = describe(name, value), describe(name, found[name])
        if here != there:
            raise LayoutError(f"{path} has {name!r} in the shape {list(there)}, the model of the task in {list(here)}")
    try:
        task.load({name: _as(name, found[name], mine[name]) for name in mine})
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error


def _as(name: str, value: Any, like: Any) -> Any:
    """Return a tensor of a file as one of the library of the model's."""
    if is_torch(value) == is_torch(like):
        return value
    if is_torch(value):
        return to_array(name, value)[1]
    return sys.modules["torch"].from_numpy(value)


def begin_from(
    site: str, folder: Path, project: Project, session: Session, model: GlobalModel, reporter: Reporter
) -> bool:
    """Let a federation that has not begun do so from the first model of one site, stored encrypted on the server.

    Parameters
    ----------
    site : str
        Whose model it is: that site stores it, the others wait for it.
    folder : Path
        The kit's, where it is kept.
    project : Project
        The manifest, whose digest it must have, if there is one.
    session : Session
        Has joined.
    model : GlobalModel
        This site's, at round 0.
    reporter : Reporter
        Is told.

    Returns
    -------
    bool
        Whether the model is that site's now; False if the federation has gone on, and this site has to catch up: also
        the one that it began from, whose own model would be another one if it has lost its folder.

    Raises
    ------
    StateError
        If it has not come within the session's timeout; at the site itself, if the server has another one of it.
    VerificationError
        If it is another site's, or not the manifest's.
    SecAggError
        Whatever else it is refused for.
    """
    project.site(site)  # a name that nobody has would be waited for in vain
    if site == model.site.name:
        return _store_first(folder, session, model, reporter)
    deadline = time.monotonic() + session.timeout
    with reporter.step(f"wait for the first global model of {site}"):
        while 0 not in (status := session.status()).models:
            if status.round > 0:
                return False
            if time.monotonic() > deadline:
                raise StateError(f"{site} has not stored its first model within {session.timeout:g} s: start it")
            time.sleep(_POLL_SECONDS)
    with session.load_model(folder / DOWNLOAD_FILE, 0) as first:
        if first.header.site != site:
            raise VerificationError(f"the first model on the server is of {first.header.site}, not of {site}")
        base = model.layout.base(model.state_of(first))
        if base != first.header.base:  # what stands there is what that site says of it
            raise VerificationError(f"the first model of {site} is not the one that it is said to be")
        check_first_base(project, base)
        model.load_model(first)
    model.save_model(folder / MODEL_FILE)
    reporter.news(f"beginning from the first global model of {site}")
    return True


def _store_first(folder: Path, session: Session, model: GlobalModel, reporter: Reporter) -> bool:
    """Keep this site's first model, then store it on the server; what was kept and not stored yet is stored, too."""
    status = session.status()
    if status.round > 0:
        return False
    if 0 in status.models:
        with session.load_model(folder / DOWNLOAD_FILE, 0) as stored:
            if stored.header.site == model.site.name and stored.header.base != model.base:
                raise StateError(
                    f"{model.site.name} has stored another first model on the server than it has now, from which "
                    "others may have begun: begin with that one, or let the server begin with an empty run folder"
                )
    model.save_model(folder / MODEL_FILE)
    if session.save_model(folder / MODEL_FILE):
        reporter.news("stored its first global model on the server, for the others to begin from")
    return True
