"""What the report shows, section by section, from what a folder holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .backends import peers_chart, size_chart
from .chart import Chart
from .folder import Folder
from .gate import COMMAND as GATE_COMMAND
from .gate import gate_chart
from .growth import growth_charts
from .leakage import leakage_chart, leakage_tables
from .numbers import done
from .shards import shards_tables
from .tables import (
    Table,
    clara_table,
    growth_tables,
    increase_table,
    many_table,
    model_table,
    peers_table,
    sizes_table,
    targets_table,
)
from .training import dice_chart, steps_chart


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Parameters
    ----------
    name : str
        Its anchor.
    title : str
        Its heading.
    text : str
        What it is about.
    command : str
        What makes that which it shows.
    charts : sequence of Chart
        Its figures.
    tables : sequence of Table
        Its tables. Without figures and tables nothing was measured, and the page says how it is.
    """

    name: str
    title: str
    text: str
    command: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def sections(folder: Folder) -> Iterator[Section]:
    """Yield all sections, also those for which the folder has nothing."""
    found = filter(None, (folder.peers, folder.clara, folder.bench))
    with_targets = [results for results in found if results.data["targets"]]  # a small run has none
    yield Section(
        "targets",
        "What was to be reached",
        "Each number that has a target, met or not.",
        "make bench",
        tables=[targets_table(with_targets)] if with_targets else [],
    )
    yield Section(
        "backends",
        "Size against time",
        "What one update costs under every setting, against plain float32.",
        "secagg bench MODEL --out FOLDER",
        [size_chart(stem, results) for stem, results in folder.models.items() if done(results)],
        [model_table(results) for results in folder.models.values()],
    )
    yield Section(
        "peers",
        "Beside others",
        "The same model through what else there is: in one run, on the same cores.",
        "secagg bench peers --out FOLDER/peers.json",
        [peers_chart(folder.peers)] if folder.peers and done(folder.peers) else [],
        [peers_table(folder.peers)] if folder.peers else [],
    )
    clara = folder.clara if folder.clara and folder.clara.data["cells"] else None
    yield Section(
        "clara",
        "Clara Train's tables",
        "What NVIDIA published of HE in Clara Train 4.0, repeated on one machine, with its params and with ours.",
        "secagg bench clara --out FOLDER/clara.json",
        [dice_chart(clara), steps_chart(clara)] if clara else [],
        [table for make in (clara_table, increase_table, many_table) if (table := make(clara))] if clara else [],
    )
    yield Section(
        "growth",
        "Growth",
        "How cost grows with parameters, with sites and over links, and what breaks first.",
        "secagg bench growth --out FOLDER/growth.json",
        list(growth_charts(folder.growth)) if folder.growth else [],
        list(growth_tables(folder.growth)) if folder.growth else [],
    )
    yield Section(
        "gate",
        "The gate's history",
        "Each run builds a change and its base and measures both in turn; what is slower beyond noise fails.",
        GATE_COMMAND,
        [gate_chart(folder.history)] if folder.history else [],
    )
    yield Section(
        "leakage",
        "What the server reads",
        "Attacks on real updates: what partial encryption leaves readable.",
        "secagg leak --out FOLDER",
        [leakage_chart(folder.leakage)] if folder.leakage else [],
        leakage_tables(folder.leakage) if folder.leakage else [],
    )
    yield Section(
        "shards",
        "Beyond one machine",
        "A round that is added where its updates lie: measured here, simulated on many machines, and what it costs.",
        "secagg bench shards --out FOLDER/shards.json",
        tables=list(shards_tables(folder.shards)) if folder.shards else [],
    )
    sizes = sizes_table(folder)
    yield Section(
        "sizes",
        "Exact sizes",
        "How large updates are is known without measuring; the suite holds the file against the code, byte for byte.",
        "make sizes",
        tables=[sizes] if sizes else [],
    )
