"""One cell of the tables: settings that go through the same rounds, in turn, with the same training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...demo.children import Children
from ...scheme.tensors import to_array
from ...setup.progress import Report
from ...site import network_state
from .federations import Federation, RoundCost, State, start
from .task import Brain

#: Called after each round: its rows, and the models that all settings have then.
Keep = Callable[[list[dict[str, Any]], Mapping[str, State]], None]


@dataclass(frozen=True)
class Cell:
    """What is compared.

    Parameters
    ----------
    sites : int
        How many.
    seed : int
        Of network and training.
    settings : tuple of str
        In turn in each round.
    """

    sites: int
    seed: int
    settings: tuple[str, ...]


def run_cell(
    cell: Cell, network: str, rounds: range, models: Mapping[str, State], folder: Path, keep: Keep, report: Report
) -> None:
    """Take all settings of a cell through its rounds: each does a round before any does the next.

    Parameters
    ----------
    cell : Cell
        What is compared.
    network : str
        What is trained, as of `Brain`.
    rounds : range
        Those that are to be done.
    models : mapping of str to state dict
        From which they go on, by setting; empty for the first round. The federations are new then, so that what error
        feedback carried from the round before is lost: at most what rounding has dropped from one update.
    folder : Path
        Existing folder for kits, logs and the servers' files.
    keep : callable
        Called after each round.
    report : callable
        Called with turns done, and their number.
    """
    task = Brain(network, cell.sites, cell.seed)
    first = {name: to_array(name, value)[1] for name, value in network_state(task.network).items()}
    with Children() as children, ExitStack() as stack:
        federations = {name: start(name, cell.sites, folder / name, children, stack) for name in cell.settings}
        for name, federation in federations.items():
            federation.join(models.get(name, first))
        turns = rounds.stop * len(federations)
        for round in rounds:
            rows: list[dict[str, Any]] = []
            for name, federation in federations.items():
                report(round * len(federations) + len(rows), turns)
                rows.append(_row(name, federation, task, round))
            keep(rows, {name: federation.state() for name, federation in federations.items()})
        report(turns, turns)


def _row(setting: str, federation: Federation, task: Brain, round: int) -> dict[str, Any]:
    cost = federation.take_part(task, round)
    federation.load(task.network)
    return make_row(setting, round, task.dice(), cost)


def make_row(setting: str, round: int, dice: float, cost: RoundCost) -> dict[str, Any]:
    """Return one round of one setting.

    Its steps are means over the sites, except for `add_seconds`, the server's for all updates. `round_seconds` is what
    the round takes where sites work at the same time: the slowest until its update is in the sum, the server, and the
    slowest from there. What a site waits for in its upload, the addition of its own update, is in both.
    """
    sites = cost.sites
    until = max(site.train + site.encrypt + site.upload for site in sites)
    after = max(site.download + site.decrypt for site in sites)
    steps = ("train", "encrypt", "upload", "download", "decrypt")
    return {
        "setting": setting,
        "round": round,
        "dice": dice,
        "nbytes": fmean(site.nbytes for site in sites),
        **{f"{step}_seconds": fmean(getattr(site, step) for site in sites) for step in steps},
        "add_seconds": cost.add,
        "round_seconds": until + cost.add + after,
    }
