"""A whole run: its cells, one after the other, and the round of many sites."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...demo.mni152 import MAX_SITES
from ...demo.task import check_least
from ...errors import ConfigError, PrecisionWarning, PrivacyWarning
from ...scheme.aggregation import MAX_CLIENTS
from ...ui.progress import progress
from ...ui.units import show_count
from ..results import Results
from .cell import Cell, run_cell
from .federations import State
from .many import run_many
from .progress_file import Options, WorkingFolder
from .settings import TITLES, WHOLE
from .summary import targets
from .task import NETWORKS


def run_clara(options: Options, out: Path) -> Results:
    """Measure what is not yet measured, save all of it as `out`, and remove the working folder.

    Interrupted, by a signal or the loss of power, it goes on from the last whole round when it is called again with the
    same options.

    Raises
    ------
    ConfigError
        If an option is of no use, or the working folder beside `out` is of a run with others.
    SecAggError
        Whatever a federation ends by.
    """
    check_options(options)
    folder = out.with_name(f"{out.name}.work")
    with warnings.catch_warnings(), WorkingFolder.open(folder, options) as work:
        # That two sites know of each other, layers are in the clear, and values are rounded, is what is measured.
        warnings.simplefilter("ignore", PrivacyWarning)
        warnings.simplefilter("ignore", PrecisionWarning)
        for cell in cells(options):
            _run_cell(cell, options, work)
        _run_many(options, work)
        model = NETWORKS[options.network].make(0).state_dict()
        parameters = sum(value.numel() for value in model.values())
        data = {
            "model": {
                "name": NETWORKS[options.network].title,
                "parameters": parameters,
                "tensors": len(model),
                "raw_nbytes": 4 * parameters,
            },
            "rounds": options.rounds,
            "cells": work.cells,
            "many": {"sites": options.many, "rows": work.many},
            # They are of the whole model.
            "targets": targets(work.cells) if options.network == Options.network else [],
        }
        results = Results("clara", f"{options.command()} --out {shlex.quote(str(out))}", data)
        results.save(out)
        work.remove()
    return results


def check_options(options: Options) -> None:
    """Raise `ConfigError` if an option is of no use."""
    for number in options.sites:
        if not 2 <= number <= MAX_SITES:
            raise ConfigError(f"--sites has {number}; the brain can be shared by 2 to {MAX_SITES} sites")
    if len(set(options.sites)) != len(options.sites):
        raise ConfigError(f"--sites has a number twice: {' '.join(map(str, options.sites))}")
    check_least("--rounds", options.rounds)
    check_least("--seeds", options.seeds)
    if options.many != 0:
        check_least("--many", options.many, 2)
    if options.many > MAX_CLIENTS:
        raise ConfigError(f"--many is {options.many}; use {MAX_CLIENTS} or less")


def cells(options: Options) -> list[Cell]:
    """Return what is compared: all settings for each number of sites, and the whole ones again with other seeds."""
    least = min(options.sites)
    first = [Cell(sites, 0, tuple(TITLES)) for sites in options.sites]
    return first + [Cell(least, seed, WHOLE) for seed in range(1, options.seeds)]


def _run_cell(cell: Cell, options: Options, work: WorkingFolder) -> None:
    done = work.rounds_done(cell)
    name = f"{show_count(cell.sites, 'site')}, seed {cell.seed}"
    if done == options.rounds:
        print(f"{name}: done before", flush=True)
        return
    if done:
        print(f"{name}: going on after {show_count(done, 'round')}", flush=True)
        work.add_break(cell)
    began = time.perf_counter()

    def keep(rows: list[dict[str, Any]], models: Mapping[str, State]) -> None:
        nonlocal began
        round = rows[0]["round"]
        work.add_round(cell, rows, models, round == options.rounds - 1)
        shown = ", ".join(f"{row['setting']} {row['dice']:.4f}" for row in rows)
        now = time.perf_counter()
        here = f"{name}, round {round} ({round + 1} of {options.rounds})"
        print(f"{here}: Dice {shown}; {now - began:.0f} s", flush=True)
        began = now

    with progress(
        f"{name}: {show_count(options.rounds, 'round')} of {show_count(len(cell.settings), 'setting')}"
    ) as report:
        work.runs.mkdir()
        run_cell(cell, options.network, range(done, options.rounds), work.models(cell), work.runs, keep, report)
    work.clear()


def _run_many(options: Options, work: WorkingFolder) -> None:
    done = {row["setting"] for row in work.many}
    left = [setting for setting in WHOLE if setting not in done] if options.many else []
    if not left:
        return
    with progress(f"{options.many} sites, without training") as report:
        for number, setting in enumerate(left):
            report(number, len(left))
            work.runs.mkdir()
            row = run_many(setting, options.network, options.many, work.runs)
            work.add_many(row)
            work.clear()
            print(f"{options.many} sites, {setting}: {row['nbytes'] / 1e6:.2f} MB a message", flush=True)
        report(len(left), len(left))
