"""The figure of the gate's history: what each commit costs, by a calibration of the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .chart import Chart
from .numbers import show_machine, show_ratio
from .style import Theme, looks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMMAND = "make bench-check GATE=--record"
#: As many commits as can be told apart.
_MOST = 40

Line = Mapping[str, Any]


def gate_chart(history: Sequence[Line]) -> Chart:
    """Return the figure of the lines of ``history.jsonl``."""
    last = history[-1]
    rows = [
        f"{row['name']} {show_ratio(row['ratio'])} ({show_ratio(row['low'])} to {show_ratio(row['high'])})"
        for row in last["rows"]
    ]
    return Chart(
        "history",
        f"The gate's history, {len(history)} run{'' if len(history) == 1 else 's'}",
        "Time by a calibration of the same run, commit by commit. "
        f"The last, {last['commit'][:8]}, by its base: {'; '.join(rows)}.",
        "Points: time by the calibration of the same run, so that machines can be compared. Bars: the interval of "
        "change by base, carried over. Hollow: an interval that excludes 1.",
        COMMAND,
        last["date"],
        show_machine(last["machine"]),
        partial(_draw, history[-_MOST:]),
    )


def _draw(history: Sequence[Line], theme: Theme) -> Figure:
    names = list(dict.fromkeys(row["name"] for line in history for row in line["rows"]))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = new_figure(max(6, 3.8 * columns), 0.6 + 2.3 * lines)
    look = looks(names)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        style = look[name]
        for place, row in ((n, row) for n, line in enumerate(history) for row in line["rows"] if row["name"] == name):
            value = row["calibrated"] if row["calibrated"] is not None else row["ratio"]
            span = [[value * (1 - row["low"] / row["ratio"])], [value * (row["high"] / row["ratio"] - 1)]]
            changed = not row["low"] <= 1 <= row["high"]
            axes.errorbar(
                place,
                value,
                yerr=[[max(0.0, part[0])] for part in span],
                color=style.colour,
                marker="o",
                markersize=6,
                capsize=3,
                markerfacecolor=theme.ground if changed else style.colour,
            )
        axes.set_title(name)
        low, high = axes.get_ylim()
        axes.set_ylim(0.85 * low, 1.1 * high)  # so that noise does not fill the height
        axes.set_xlim(-0.6, len(history) - 0.4)
        step = 1 + len(history) // 9
        axes.set_xticks(
            range(0, len(history), step),
            [line["commit"][:7] for line in history[::step]],
            rotation=45,
            ha="right",
            size=8,
        )
        axes.grid(axis="y", alpha=0.8)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supylabel("time, × calibration of the same run", size=10)
    figure.supxlabel("commit", size=10)
    return figure
