"""Figures of what one update costs: every backend with one model, and beside what others have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..results import Results
from .chart import Chart
from .numbers import done, mid, show_bytes, show_machine, show_ratio, show_seconds, show_time
from .style import Theme, log_axis, looks, name_ends, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Of a model's name within the figure; its heading has all of it.
_MOST_CHARACTERS = 40


def size_chart(stem: str, results: Results) -> Chart:
    """Return the figure of size against time of a file of kind ``"model"``."""
    rows, model = done(results), results.data["model"]
    least = min(rows, key=lambda row: row["up_nbytes"])
    fastest = min(rows, key=lambda row: mid(row["encrypt_seconds"]))
    return Chart(
        f"size-{stem}",
        f"Size against time: {model['name']}, {model['parameters']:,} parameters",
        f"Size of an update against the time that it takes to make one, of {len(rows)} settings, both logarithmic. Raw "
        f"float32 is {show_bytes(model['raw_nbytes'])}. Smallest: {least['title']}, {show_bytes(least['up_nbytes'])}. "
        f"Fastest: {fastest['title']}, {show_time(mid(fastest['encrypt_seconds']))}.",
        "Lower is smaller, further left is faster; what lies below the dashed line is smaller than the model itself. "
        "Bars: fastest and slowest repetition.",
        results.command,
        results.date,
        show_machine(results.machine),
        partial(_draw_size, results),
    )


def _draw_size(results: Results, theme: Theme) -> Figure:
    rows, raw = done(results), results.data["model"]["raw_nbytes"]
    look = looks(sorted({row["lib"] for row in rows}))
    figure = new_figure(9.5, 5.2)
    axes = figure.subplots()
    ends = []
    for row in rows:
        times, nbytes, style = row["encrypt_seconds"], row["up_nbytes"], look[row["lib"]]
        middle = mid(times)
        spans = [[middle - min(times)], [max(times) - middle]]
        axes.errorbar(
            middle,
            nbytes,
            xerr=spans,
            color=style.colour,
            marker=style.marker,
            markersize=8,
            alpha=0.85,
            elinewidth=1,
            capsize=3,
        )
        ends.append((middle, nbytes, f"{row['title']}  {show_ratio(nbytes / raw)}", style.colour))
    axes.margins(0.08)
    axes.autoscale_view()
    log_axis(axes.xaxis, show_seconds)
    log_axis(axes.yaxis, show_bytes)
    axes.axhline(raw, color=theme.muted, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"{_short(results.data['model']['name'])} as float32: {show_bytes(raw)}",
        (0.01, raw),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 4),
        textcoords="offset points",
        color=theme.muted,
    )
    axes.set(xlabel="to encrypt and serialise an update, time (log)", ylabel="update, size (log)")
    axes.grid(alpha=0.8)
    name_ends(figure, theme, {axes: ends})
    return figure


def _short(name: str) -> str:
    """Return a name that fits into the figure, which would else give way to it."""
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


#: Of the peers' figure: what each part shows, and in what unit. `server` is what the server does with one message.
_PARTS: Sequence[tuple[str, str, Any]] = (
    ("message of a site", "up_nbytes", show_bytes),
    ("encode and serialise", "encode_seconds", show_time),
    ("server: read and add one", "add_seconds", show_time),
    ("server: peak memory", "server_peak_nbytes", show_bytes),
)


def peers_chart(results: Results) -> Chart:
    """Return the figure of a file of kind ``"peers"``."""
    rows, model = done(results), results.data["model"]
    sizes = "; ".join(f"{row['title']} {show_bytes(row['up_nbytes'])}" for row in rows)
    return Chart(
        "peers",
        f"Beside others: {model['name']}, {model['parameters']:,} parameters, {results.data['sites']} sites",
        f"Message, time to encode, time of the server for each message, and memory of the server, of {len(rows)} "
        f"libraries in one run, logarithmic, each as so many times plain float32. Messages: {sizes}.",
        "Every library in its own process, on the same cores, in turns; × is by plain float32 in the same run.",
        results.command,
        results.date,
        show_machine(results.machine),
        partial(_draw_peers, results),
    )


def _draw_peers(results: Results, theme: Theme) -> Figure:
    rows = done(results)
    raw = next((row for row in rows if row["group"] == "raw"), None)
    look = looks(["secagg", "peer", "raw"])
    figure = new_figure(12.5, 1.3 + 0.42 * len(rows))
    panels: Sequence[Axes] = figure.subplots(1, len(_PARTS), sharey=True)
    for axes, (title, key, show) in zip(panels, _PARTS, strict=True):
        values = [_value(row, key) for row in rows]
        known = [value for value in values if value]
        axes.set(title=title, ylim=(len(rows) - 0.5, -0.5))
        if not known:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=theme.muted)
            continue
        start = min(known) / 3
        axes.set_xlim(start, max(known) * 60)
        log_axis(axes.xaxis, show_seconds if show is show_time else show, most=4)
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            style = look[row["group"]]
            if not value:
                axes.text(
                    0.03, place, "not measured", transform=axes.get_yaxis_transform(), va="center", color=theme.muted
                )
                continue
            axes.barh(place, value - start, left=start, height=0.55, color=style.colour, hatch=style.hatch)
            base = _value(raw, key) if raw is not None and raw is not row else 0
            axes.annotate(
                show(value) + (f"  {show_ratio(value / base)}" if base else ""),
                (value, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=9,
                color=theme.readable(style.colour),
            )
        axes.tick_params(axis="x", labelsize=8.5)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [row["title"] for row in rows])
    return figure


def _value(row: Mapping[str, Any], key: str) -> float:
    """Return a number of a row, the median of repetitions; 0 if it was not measured."""
    value = row[key]
    return mid(value) if isinstance(value, list) else float(value or 0)
