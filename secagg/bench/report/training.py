"""Figures of Clara's tables: how well each setting learns, and where the seconds of a round go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..clara.settings import TITLES
from ..clara.summary import PARTS
from ..results import Results
from .chart import Chart
from .numbers import show_machine, show_time
from .style import End, Look, Theme, looks, name_ends, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEANING = "; ".join(f"{name}: {what}" for name, what in TITLES.items() if name != what) + "."
#: How far a Dice may be from that of raw.
_NEAR = 0.02
STEPS = ("train", *PARTS)

Rows = Sequence[Mapping[str, Any]]
#: Of one setting, by the seed.
Runs = Mapping[int, Rows]


def by_setting(results: Results) -> Mapping[int, Mapping[str, Runs]]:
    """Return the rows of each seed, by the number of sites and the setting, both in order."""
    found: dict[int, dict[str, dict[int, Rows]]] = {}
    for cell in sorted(results.data["cells"], key=lambda cell: (cell["sites"], cell["seed"])):
        runs: dict[str, list[Mapping[str, Any]]] = {}
        for row in cell["rows"]:
            runs.setdefault(row["setting"], []).append(row)
        for setting in sorted(runs, key=lambda name: (list(TITLES).index(name) if name in TITLES else 99, name)):
            found.setdefault(cell["sites"], {}).setdefault(setting, {})[cell["seed"]] = runs[setting]
    return found


def mean_dice(runs: Runs) -> list[tuple[float, float, float, float]]:
    """Return of each round that has one its number, and the mean, least and greatest Dice of the seeds."""
    dice: dict[float, list[float]] = {}
    for rows in runs.values():
        for row in rows:
            if row["dice"] is not None:
                dice.setdefault(row["round"], []).append(row["dice"])
    return [(number, fmean(values), min(values), max(values)) for number, values in sorted(dice.items())]


def mean_seconds(runs: Runs, step: str) -> float:
    """Return the seconds of a step of a round, the mean of all."""
    return fmean(row[f"{step}_seconds"] for rows in runs.values() for row in rows)


def dice_chart(results: Results) -> Chart:
    """Return the figure of Dice per round of a file of kind ``"clara"``."""
    cells = by_setting(results)
    last = "; ".join(
        f"{sites} sites: "
        + ", ".join(
            f"{name} {points[-1][1]:.3f}" for name, runs in _of_all(settings).items() if (points := mean_dice(runs))
        )
        for sites, settings in cells.items()
    )
    return Chart(
        "dice",
        f"Dice per round, {results.data['rounds']} rounds",
        f"Held-out Dice of the global model after each round, by setting and number of sites. After the last: {last}.",
        "Above: the seeds that all settings have, on the same training; grey is from the worst to the best seed of "
        "raw, the noise of training. Below: each less raw of the same seed and round, the mean of all its seeds, from "
        f"the worst to the best; the band is ± {_NEAR:g}. {_MEANING}",
        results.command,
        results.date,
        show_machine(results.machine),
        partial(_draw_dice, results),
    )


def _draw_dice(results: Results, theme: Theme) -> Figure:
    cells = by_setting(results)
    look = looks(list(TITLES))
    figure = new_figure(max(6.5, 4.2 * len(cells)), 6.2)
    panels = figure.subplots(2, len(cells), sharex=True, sharey="row", squeeze=False, height_ratios=(1.6, 1))
    ends: dict[Axes, list[End]] = {}
    for (above, below), (sites, settings) in zip(panels.T, cells.items(), strict=True):
        less = {name: _less_raw(runs, settings.get("raw", {})) for name, runs in settings.items() if name != "raw"}
        _draw_noise(above, settings.get("raw", {}), theme)
        for axes, of in ((above, _of_all(settings)), (below, less)):
            ends[axes] = []
            for name, runs in of.items():
                if points := mean_dice(runs):
                    colour = look.get(name, look["raw"]).colour
                    _draw_curve(axes, points, look.get(name, look["raw"]))
                    sign = "+" if axes is below else ""
                    ends[axes].append((*points[-1][:2], f"{name} {round(points[-1][1], 3) + 0.0:{sign}.3f}", colour))
            axes.grid(alpha=0.8)
        below.axhspan(-_NEAR, _NEAR, color=theme.muted, alpha=0.15, linewidth=0)
        below.axhline(0, color=theme.muted, linewidth=1)
        above.set_title(f"{sites} sites")
        below.set_xlabel("round")
        below.xaxis.get_major_locator().set_params(integer=True)
    panels[0, 0].set_ylabel("held-out Dice of the global model")
    panels[1, 0].set_ylabel("Dice less raw's")
    name_ends(figure, theme, ends)
    return figure


def _of_all(settings: Mapping[str, Runs]) -> dict[str, Runs]:
    """Return the runs of the seeds that all settings have: means of others are not comparable."""
    seeds = set.intersection(*(set(runs) for runs in settings.values()))
    return {name: {seed: runs[seed] for seed in seeds} for name, runs in settings.items()}


def _draw_noise(axes: Axes, raw: Runs, theme: Theme) -> None:
    """Shade what seeds do to the raw run."""
    if len(raw) > 1 and (points := mean_dice(raw)):
        numbers, _, lows, highs = (list(column) for column in zip(*points, strict=True))
        axes.fill_between(numbers, lows, highs, color=theme.muted, alpha=0.18, linewidth=0)


def _draw_curve(axes: Axes, points: Sequence[tuple[float, float, float, float]], look: Look) -> None:
    numbers, middles, lows, highs = (list(column) for column in zip(*points, strict=True))
    axes.plot(numbers, middles, **look.style | {"markersize": 4}, markevery=max(1, len(numbers) // 8))
    axes.fill_between(numbers, lows, highs, color=look.colour, alpha=0.12, linewidth=0)


def _less_raw(runs: Runs, raw: Runs) -> Runs:
    """Return rows of the differences in Dice to raw of the same seed and round, where both are known."""
    found = {}
    for seed in runs.keys() & raw.keys():
        base = {row["round"]: row["dice"] for row in raw[seed] if row["dice"] is not None}
        known = (row for row in runs[seed] if row["dice"] is not None and row["round"] in base)
        found[seed] = [{"round": row["round"], "dice": row["dice"] - base[row["round"]]} for row in known]
    return found


def steps_chart(results: Results) -> Chart:
    """Return the figure of where the time of a round goes of a file of kind ``"clara"``."""
    cells = {sites: _of_all(settings) for sites, settings in by_setting(results).items()}
    told = "; ".join(
        f"{sites} sites: " + ", ".join(f"{name} {show_time(_added(runs))}" for name, runs in settings.items())
        for sites, settings in cells.items()
    )
    return Chart(
        "steps",
        "Where the time of a round goes",
        f"Seconds of a round by step. Beside training, a round takes: {told}.",
        "Left: a whole round, training included, to scale. Right: the same without training, on a scale of its own. "
        + _MEANING,
        results.command,
        results.date,
        show_machine(results.machine),
        partial(_draw_steps, cells),
    )


def _added(runs: Runs) -> float:
    return sum(mean_seconds(runs, step) for step in STEPS[1:])


def _draw_steps(cells: Mapping[int, Mapping[str, Runs]], theme: Theme) -> Figure:
    bars = [(sites, name, runs) for sites, settings in cells.items() for name, runs in settings.items()]
    # A gap between numbers of sites, from above.
    groups = list(dict.fromkeys(sites for sites, _, _ in bars))
    places = [number + 0.8 * groups.index(sites) for number, (sites, _, _) in enumerate(bars)]
    look = looks(STEPS)
    figure = new_figure(11, 1.6 + 0.31 * (len(bars) + 0.8 * len(groups)))
    whole, rest = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.6))
    for axes, steps in ((whole, STEPS), (rest, STEPS[1:])):
        ends = [0.0] * len(bars)
        for step in steps:
            seconds = [mean_seconds(runs, step) for _, _, runs in bars]
            style = look[step]
            axes.barh(places, seconds, 0.75, ends, color=style.colour, hatch=style.hatch, label=step)
            ends = [end + more for end, more in zip(ends, seconds, strict=True)]
        for place, end in zip(places, ends, strict=True):
            axes.annotate(
                show_time(end) if end else "none",
                (end, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=9,
            )
        axes.set(ylim=(places[-1] + 0.6, -0.6), xlim=(0, 1.18 * max(max(ends), 1e-9)))
        axes.grid(axis="x", alpha=0.8)
        axes.tick_params(axis="y", length=0)
    whole.set_yticks(places, [f"{sites} sites  {name}" for sites, name, _ in bars])
    whole.set(title="a whole round", xlabel="seconds of a round, mean")
    rest.set(title="without training", xlabel="seconds of a round, mean")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside upper left", ncols=len(STEPS), frameon=False)
    return figure
