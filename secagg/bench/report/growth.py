"""Figures of growth: with parameters, with sites, and over links."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..results import Results
from ..settings import SETTINGS
from .chart import Chart
from .numbers import show_bytes, show_count, show_machine, show_seconds, show_time
from .style import End, Look, Theme, log_axis, looks, name_ends, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PARAMETERS = (
    ("an update", "up_nbytes", show_bytes),
    ("encrypt and serialise", "encrypt_seconds", show_time),
    ("server: read and add one", "add_seconds", show_time),
    ("read and decrypt the sum", "decrypt_seconds", show_time),
    ("site: peak memory", "site_peak_nbytes", show_bytes),
    ("server: peak memory", "server_peak_nbytes", show_bytes),
)
_SITES = (
    ("server: add all", "add_seconds", show_time),
    ("server: peak memory", "server_peak_nbytes", show_bytes),
    ("the sum", "down_nbytes", show_bytes),
    ("read and decrypt the sum", "decrypt_seconds", show_time),
)

Row = Mapping[str, Any]
Part = tuple[str, str, Callable[[float], str]]


def growth_charts(results: Results) -> Iterator[Chart]:
    """Yield the figures of a file of kind ``"growth"``: those for which it has rows."""
    for axis, parts, what in (
        ("parameters", _PARAMETERS, "parameters of the model"),
        ("sites", _SITES, "sites of a round"),
    ):
        if rows := results.data[axis]:
            least, most = min(row[axis] for row in rows), max(row[axis] for row in rows)
            yield Chart(
                f"growth-{axis}",
                f"Growth with {axis}, {show_count(least)} to {show_count(most)}",
                f"{', '.join(title for title, _, _ in parts)} against the number of {what}, both logarithmic. An "
                f"update, from fewest to most: {'; '.join(_told(rows, axis))}.",
                "Both axes are logarithmic: a straight line of slope 1 is cost in proportion. " + _settings(rows),
                results.command,
                results.date,
                show_machine(results.machine),
                partial(_draw_growth, rows, axis, parts, what),
            )
    if rows := results.data["links"]:
        yield Chart(
            "growth-links",
            "A round over links, 10 Mbit/s to 10 Gbit/s",
            "Seconds of a round against the speed of each site's link, both logarithmic, encrypted and raw: "
            + "; ".join(_links_told(rows))
            + ".",
            "Links are simulated: bytes by bits a second, beside the time measured without them. " + _settings(rows),
            results.command,
            results.date,
            show_machine(results.machine),
            partial(_draw_links, rows),
        )


def show_speed(bits_per_second: float) -> str:
    """Return the speed of a link: 10 Mbit/s, 1 Gbit/s."""
    factor, unit = (1e9, "Gbit/s") if bits_per_second >= 1e9 else (1e6, "Mbit/s")
    return f"{bits_per_second / factor:g} {unit}"


def title_of(setting: str) -> str:
    """Return what a setting is called."""
    return SETTINGS[setting].title if setting in SETTINGS else setting


def _told(rows: Sequence[Row], axis: str) -> Iterator[str]:
    for setting, mine in _by_setting(rows).items():
        few, many = (pick(mine, key=lambda row: row[axis])["up_nbytes"] for pick in (min, max))
        yield f"{title_of(setting)} {show_bytes(few)} to {show_bytes(many)}"


def _links_told(rows: Sequence[Row]) -> Iterator[str]:
    for setting, mine in _by_setting(rows).items():
        slow, fast = (pick(mine, key=lambda row: row["bits_per_second"]) for pick in (min, max))
        yield (
            f"{title_of(setting)} {show_time(slow['round_seconds'])} at {show_speed(slow['bits_per_second'])} "
            f"(raw {show_time(slow['raw_round_seconds'])}), {show_time(fast['round_seconds'])} at "
            f"{show_speed(fast['bits_per_second'])} (raw {show_time(fast['raw_round_seconds'])})"
        )


def _settings(rows: Sequence[Row]) -> str:
    """Return what the short names in a figure mean."""
    return "; ".join(f"{name}: {title_of(name)}" for name in _by_setting(rows)) + "."


def _by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not row.get("problem"):
            found.setdefault(row["setting"], []).append(row)
    return found


def _draw_growth(rows: Sequence[Row], axis: str, parts: Sequence[Part], what: str, theme: Theme) -> Figure:
    figure = new_figure(10, 2.7 * (len(parts) // 2))
    look = looks(list(_by_setting(rows)))
    panels: Sequence[Axes] = list(figure.subplots(len(parts) // 2, 2, sharex=True).flat)
    ends = {}
    for axes, (title, key, show) in zip(panels, parts, strict=True):
        lines = {name: _line(mine, axis, key) for name, mine in _by_setting(rows).items()}
        axes.set_title(title)
        ends[axes] = _draw_lines(axes, lines, look, theme, show_count, show)
    for axes in panels[-2:]:
        axes.set_xlabel(f"{what} (log)")
    name_ends(figure, theme, ends)
    return figure


def _draw_links(rows: Sequence[Row], theme: Theme) -> Figure:
    measured = [row for mine in _by_setting(rows).values() for row in mine]
    kinds = sorted({(row["sites"], row["parameters"]) for row in measured})
    columns = min(3, len(kinds))
    lines_of = -(-len(kinds) // columns)
    figure = new_figure(max(7.5, 4.6 * columns), 0.5 + 3.4 * lines_of)
    look = looks([*_by_setting(rows), "raw float32"])
    panels: Sequence[Axes] = list(figure.subplots(lines_of, columns, squeeze=False).flat)
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    ends = {}
    for axes, kind in zip(panels, kinds, strict=False):
        mine = [row for row in measured if (row["sites"], row["parameters"]) == kind]
        lines = {name: _line(own, "bits_per_second", "round_seconds") for name, own in _by_setting(mine).items()}
        lines["raw float32"] = _line(_by_setting(mine)[mine[0]["setting"]], "bits_per_second", "raw_round_seconds")
        axes.set(title=f"{kind[0]} sites, {show_count(kind[1])} parameters", xlabel="link of each site (log)")
        ends[axes] = _draw_lines(axes, lines, look, theme, show_speed, show_time)
    for axes in panels[::columns]:
        axes.set_ylabel("a round, time (log)")
    name_ends(figure, theme, ends)
    return figure


def _line(rows: Sequence[Row], axis: str, key: str) -> list[tuple[float, float]]:
    return sorted((row[axis], row[key]) for row in rows if row[key])


def _draw_lines(
    axes: Axes,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    look: Mapping[str, Look],
    theme: Theme,
    show_x: Callable[[float], str],
    show_y: Callable[[float], str],
) -> list[End]:
    """Draw the lines that have points, and return their ends, to be named."""
    drawn = {name: line for name, line in lines.items() if line}
    if not drawn:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=theme.muted)
        return []
    for name, line in drawn.items():
        axes.plot(*zip(*line, strict=True), **look[name].style)
    axes.set(xscale="log", yscale="log")
    low, high = axes.get_ylim()
    if high < 4 * low:  # what hardly changes is seen to hardly change
        middle = (low * high) ** 0.5
        axes.set_ylim(middle / 2, 2 * middle)
    log_axis(axes.xaxis, show_x, most=4 if show_x is show_speed else 8)
    log_axis(axes.yaxis, show_seconds if show_y is show_time else show_y)
    axes.grid(alpha=0.8)
    axes.tick_params(labelsize=9)
    return [(*line[-1], name, look[name].colour) for name, line in drawn.items()]
