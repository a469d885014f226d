"""How figures look: two themes, colours that the colour-blind can tell, names at the ends of lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, each with a marker and a line of its own: nothing rests on colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C00", "#7F7F7F")
_MARKERS = "osD^vPX*"
_LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


@dataclass(frozen=True)
class Theme:
    """Colours of what is drawn: of text, of what stands back, of lines of the grid, and of the ground."""

    name: str
    ink: str
    muted: str
    grid: str
    ground: str

    @property
    def dark(self) -> bool:
        """Whether the ground is dark."""
        return self.name == "dark"

    def readable(self, colour: str) -> Any:
        """Return a colour for text, in which the given one is still seen: darker or lighter than that."""
        from matplotlib.colors import to_rgb

        share = 0.45 if self.dark else 0.35
        return tuple(
            (1 - share) * one + share * other for one, other in zip(to_rgb(colour), to_rgb(self.ink), strict=True)
        )


LIGHT = Theme("light", "#1a1a1a", "#5c5c5c", "#dddddd", "#ffffff")
DARK = Theme("dark", "#eeeeee", "#b0b0b0", "#3a3f47", "#15181d")
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Look:
    """Of one thing that is drawn, the same in all parts of a figure."""

    colour: str
    marker: str
    line: Any
    hatch: str

    @property
    def style(self) -> dict[str, Any]:
        """What `Axes.plot` takes."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "markersize": 6, "linewidth": 1.8}


def looks(names: Sequence[str]) -> Mapping[str, Look]:
    """Return a look for each name, in their order; from the ninth on they differ in marker and line alone."""
    size = len(_COLOURS)
    return {
        name: Look(
            _COLOURS[place % size],
            _MARKERS[(place + place // size) % size],
            _LINES[(place + place // size) % size],
            _HATCHES[(place + place // size) % size],
        )
        for place, name in enumerate(dict.fromkeys(names))
    }


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Let figures that are made and saved in this block have a theme's colours."""
    from matplotlib import rc_context

    texts = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "hatch.color")
    style: Any = {
        **dict.fromkeys(texts, theme.ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), theme.muted),
        **dict.fromkeys(grounds, theme.ground),
        "grid.color": theme.grid,
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "hatch.linewidth": 0.8,
        "text.parse_math": False,  # names of models and titles are text
        "svg.hashsalt": "secagg",  # the same results make the same file
    }
    with rc_context(style):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def log_axis(axis: Axis, show: Callable[[float], str], most: int = 8) -> None:
    """Let an axis be logarithmic, with labels such as 10 MB: the more between powers of ten the less it spans."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0) if high / low < 3000 and most > 4 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+ ", " ", show(value))))
    axis.set_minor_locator(NullLocator())  # hundreds of ticks would take most of the time


#: Where a line ends (x and y), its name, and its colour.
End = tuple[float, float, str, str]


def name_ends(figure: Figure, theme: Theme, ends: Mapping[Axes, Sequence[End]]) -> None:
    """Write names right of each axes, at the heights of what they name, apart from each other, with lines to there.

    The limits and scales of the axes are set before.
    """
    figure.draw_without_rendering()  # the layout decides how many lines of text fit
    for axes, names in ends.items():
        gap = 1.25 * float(axes.xaxis.label.get_fontsize()) * figure.dpi / 72 / axes.get_window_extent().height
        to_axes = axes.transData + axes.transAxes.inverted()
        ordered = sorted(names, key=lambda end: tuple(to_axes.transform(end[:2])[::-1] * (1, -1)))
        heights = [float(to_axes.transform(end[:2])[1]) for end in ordered]
        for (x, y, name, colour), height in zip(ordered, spread(heights, gap), strict=True):
            axes.annotate(
                name,
                (x, y),
                xytext=(1.04, height),
                textcoords="axes fraction",
                va="center",
                color=theme.readable(colour),
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colour,
                    "alpha": 0.5,
                    "linewidth": 0.8,
                    "shrinkB": 4,
                    "relpos": (0, 0.5),
                },
            )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return places between 0 and 1 that are at least `gap` apart, in the order of `places`, which ascend, and near.

    Where there is no room for so many, they stick out on both sides.
    """
    groups: list[tuple[float, int]] = []  # the middle of each group of neighbours that touch, and how many they are
    for place in places:
        middle, count = place, 1
        while True:
            half = gap * (count - 1) / 2
            middle = 0.5 if half > 0.5 else min(max(middle, half), 1 - half)
            if not groups or middle - groups[-1][0] >= gap * (groups[-1][1] + count) / 2:
                break
            below, few = groups.pop()
            middle, count = (below * few + middle * count) / (few + count), few + count
        groups.append((middle, count))
    return [middle + gap * (number - (count - 1) / 2) for middle, count in groups for number in range(count)]
