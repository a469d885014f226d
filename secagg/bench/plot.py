"""Size against time: one point for each way to encrypt, and raw float32 as the line that they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of each library: colour (Okabe and Ito's, which the colour-blind can tell), a darker one for text, and marker.
_STYLES = {
    "tenseal": ("#0072B2", "#005A8E", "o"),
    "seal": ("#D55E00", "#A84A00", "s"),
    "pyfhel": ("#CC79A7", "#9A4676", "^"),
    "flashe": ("#009E73", "#007455", "D"),
}
_OTHER = ("#56B4E9", "#2B7CA8", "v")
_GREY = "#555555"

#: Where a label may stand beside its point, in points: the first place that is free counts.
_PLACES = (
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (9, 12, "left", "center"),
    (9, -12, "left", "center"),
    (-9, 12, "right", "center"),
    (-9, -12, "right", "center"),
    (9, 24, "left", "center"),
    (9, -24, "left", "center"),
    (-9, 24, "right", "center"),
    (-9, -24, "right", "center"),
)


def size_against_time(rows: Sequence[Mapping[str, Any]], raw_nbytes: int) -> Figure:
    """Return the figure.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of results of the kind ``"model"``: one without numbers is left out, that of raw float32 is the line.
    raw_nbytes : int
        Bytes of the model's values as float32.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    shown = [row for row in rows if row["problem"] is None and row["setting"] != "raw"]
    style: Any = {"font.size": 11.0, "axes.titlesize": 12.0, "axes.titlelocation": "left"}
    # A page may be dark: the figure brings its own ground.
    with rc_context(style | {"axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white"}):
        figure = Figure(figsize=(9, 5.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="a site sends, MB", ylabel="a site encrypts in, s")
        axes.set_title("size against time of one update")
        axes.axvline(raw_nbytes / 1e6, color=_GREY, linestyle="--", linewidth=1.5, zorder=1)
        for row in shown:
            colour, _, marker = _STYLES.get(row["lib"], _OTHER)
            axes.plot(*_point(row), marker=marker, color=colour, markersize=9, linestyle="none", zorder=3)
        _set_limits(axes, [_point(row) for row in shown], raw_nbytes / 1e6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_locator(NullLocator())
        axes.grid(which="major", alpha=0.3)
        _label(figure, axes, shown, rows, raw_nbytes)
    return figure


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["up_nbytes"] / 1e6, median(row["encrypt_seconds"])


def _set_limits(axes: Axes, points: Sequence[tuple[float, float]], raw: float) -> None:
    """Leave room for labels on all sides."""
    sizes, times = [raw, *(size for size, _ in points)], [time for _, time in points] or [1.0]
    axes.set_xlim(min(sizes) / 2.2, max(sizes) * 3)
    axes.set_ylim(min(times) / 2.2, max(times) * 2)


def _label(
    figure: Figure, axes: Axes, shown: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], raw_nbytes: int
) -> None:
    """Write its name beside each point, where no other name, no point and no line is."""
    from matplotlib.transforms import Bbox

    raw = next((row for row in rows if row["setting"] == "raw" and row["problem"] is None), None)
    seconds = "" if raw is None else f", packed in {1e3 * median(raw['encrypt_seconds']):.2g} ms"
    line = axes.annotate(
        f"raw float32: {raw_nbytes / 1e6:.3g} MB{seconds}",
        (raw_nbytes / 1e6, 0.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(6, 6),
        textcoords="offset points",
        color=_GREY,
        va="bottom",
    )
    figure.draw_without_rendering()
    x, bottom, top = axes.transData.transform((raw_nbytes / 1e6, 1.0))[0], axes.bbox.y0, axes.bbox.y1
    taken = [line.get_window_extent(), Bbox.from_extents(x - 2, bottom, x + 2, top)]
    taken += [_box_of_point(axes, row) for row in shown]
    for row in shown:
        taken.append(_name(axes, row, taken))


def _name(axes: Axes, row: Mapping[str, Any], taken: Sequence[Any]) -> Any:
    """Write a name at the first place that is free, and return its box; at the last one if none is."""
    _, ink, _ = _STYLES.get(row["lib"], _OTHER)
    name = row["setting"] if row["setting"].startswith(row["lib"]) else f"{row['setting']} ({row['lib']})"
    for x, y, horizontal, vertical in _PLACES:
        text = axes.annotate(
            name,
            _point(row),
            xytext=(x, y),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            color=ink,
            zorder=4,
        )
        box = text.get_window_extent()
        free = box.x0 > axes.bbox.x0 and box.x1 < axes.bbox.x1 and not any(box.overlaps(other) for other in taken)
        if free or (x, y, horizontal, vertical) == _PLACES[-1]:
            break
        text.remove()
    return box


def _box_of_point(axes: Axes, row: Mapping[str, Any]) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(_point(row))
    return Bbox.from_extents(x - 8, y - 8, x + 8, y + 8)
