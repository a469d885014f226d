"""The demo's picture: how well both federations learn, what they send, and where the seconds of a round go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import STEPS, RoundResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of each federation: colour (Okabe and Ito's, which the colour-blind can tell), marker, line and layer. Where the
#: curves are one, the raw one is seen around the encrypted one.
_STYLES: dict[str, dict[str, Any]] = {
    "encrypted": {"color": "#0072B2", "marker": "o", "markersize": 5, "linewidth": 1.8, "linestyle": "-", "zorder": 4},
    "raw": {"color": "#E69F00", "marker": "s", "markersize": 10, "linewidth": 4, "linestyle": (0, (2, 1)), "zorder": 3},
}
#: Of text in these colours: that orange is too light to be read on white.
_INK = {"encrypted": "#0072B2", "raw": "#8F5F00"}

_GREY = "#666666"
_FONT_SIZE = 11.0

Results = Mapping[str, Sequence[RoundResult]]


def write_picture(path: Path, results: Results) -> None:
    """Write the picture as a PNG, from what `draw` takes."""
    draw(results).savefig(path)


def draw(results: Results) -> Figure:
    """Return the picture of an encrypted and a raw federation.

    Parameters
    ----------
    results : mapping of str to sequence of RoundResult
        The rounds of ``"encrypted"`` and of ``"raw"``, as many.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"font.size": _FONT_SIZE, "axes.titlesize": _FONT_SIZE + 1, "axes.titlelocation": "left"}
    with rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        curves, sizes, seconds = figure.subplots(1, 3, width_ratios=(1.25, 0.75, 1.4))
        _draw_dice(curves, results)
        _draw_sizes(sizes, results)
        _draw_seconds(seconds, results)
    return figure


def _draw_dice(axes: Axes, results: Results) -> None:
    """Draw the curves on a scale of their own, each with its name and last value at its end."""
    for run, rows in results.items():
        axes.plot([row.dice for row in rows], **_STYLES[run])
    last = max(len(rows) for rows in results.values()) - 1
    span = max(last, 1)
    axes.set(title="held-out Dice of the global model", xlabel="round", xlim=(-0.1 * span, last + 0.5 * span))
    axes.set_xticks(range(0, last + 1, 1 + last // 6))
    axes.margins(y=0.2)
    axes.grid(axis="y", alpha=0.3)
    # Beside the ends of both curves, one label above the other: these may be one point.
    order = sorted(results, key=lambda run: results[run][-1].dice, reverse=True)
    for run, side in zip(order, (1, -1), strict=True):
        axes.annotate(
            f"{run}\n{results[run][-1].dice:.4f}",
            (last, results[run][-1].dice),
            xytext=(11, side),
            textcoords="offset points",
            va="bottom" if side > 0 else "top",
            color=_INK[run],
            weight="bold",
            linespacing=1.0,
        )


def _draw_sizes(axes: Axes, results: Results) -> None:
    """Draw one bar for each federation, with its size above it."""
    nbytes = {run: _mean(rows, "nbytes") for run, rows in results.items()}
    top = max(nbytes.values())
    for place, (run, size) in enumerate(nbytes.items()):
        axes.bar(place, size / 1e6, width=0.6, color=_STYLES[run]["color"])
        text = f"{size / 1e6:.3g} MB"
        if run != "raw":
            text += f"\n{size / nbytes['raw']:.3g} × raw"
        axes.annotate(
            text,
            (place, size / 1e6),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=_INK[run],
            weight="bold",
        )
    axes.set(title="message of a site", ylim=(0, 1.2 * top / 1e6), xlim=(-0.6, 1.6))
    axes.set_xticks(range(len(nbytes)), nbytes)
    axes.set_ylabel("MB")


def _draw_seconds(axes: Axes, results: Results) -> None:
    """Draw a point for each step and federation on one logarithmic scale, and write the time beside it."""
    times = {run: [_mean(rows, f"{step}_seconds") for step in STEPS] for run, rows in results.items()}
    known = [time for row in times.values() for time in row if time > 0]
    for run, shift in zip(times, (-0.17, 0.17), strict=True):
        style = _STYLES[run] | {"markersize": 8, "linestyle": "none"}
        for place, time in enumerate(times[run]):
            here = place + shift
            if not time:
                axes.text(0.02, here, f"{run}: none", transform=axes.get_yaxis_transform(), va="center", color=_GREY)
                continue
            axes.hlines(here, min(known) / 3, time, color=style["color"], linewidth=2, alpha=0.5)
            axes.plot(time, here, **style)
            beside: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(_time(time), (time, here), color=_INK[run], weight="bold", **beside)
    axes.set(title="a round, by step (log scale)", xscale="log", xlim=(min(known) / 3, max(known) * 12))
    axes.set_ylim(len(STEPS) - 0.5, -0.5)  # from above, in the order in which they happen
    axes.set_yticks(range(len(STEPS)), [f"{step}\n(all sites)" if step == "add" else step for step in STEPS])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms")
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)


def _mean(rows: Sequence[RoundResult], name: str) -> float:
    return float(sum(getattr(row, name) for row in rows) / len(rows))


def _time(seconds: float) -> str:
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.{1 if seconds < 0.00995 else 0}f} ms"
