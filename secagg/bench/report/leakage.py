"""What a server reads out of updates, as pictures and in numbers."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..results import Results
from .chart import Chart
from .numbers import show_machine, show_source, show_time
from .style import Theme, new_figure
from .tables import NONE, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: From here on the attack without any encryption gives the images back, and a setting tells what encryption adds.
_READABLE = 0.9

_MOST_IMAGES = 3

Setting = Mapping[str, Any]


def leakage_chart(results: Results) -> Chart:
    """Return the true images beside those that the server reads, of the settings where it reads raw updates."""
    settings = _telling(results) or results.data["settings"]
    told = (f"{setting['title']}: {', '.join(map(_told, setting['rows']))}" for setting in settings)
    return Chart(
        "leakage",
        "What the server sees",
        f"Slices of a brain beside what was read out of their updates, by SSIM. {'. '.join(told)}.",
        "Each column: what an attack finds in the values that are clear. The first is the truth, the last what the "
        "server could guess without any update. SSIM: the mean over all images that were attacked.",
        results.command,
        results.date,
        show_machine(results.machine),
        partial(_draw, settings),
    )


def leakage_tables(results: Results) -> list[Table]:
    """Return a table of the settings where raw updates give the images back, and one of the others."""
    telling = _telling(results)
    others = [setting for setting in results.data["settings"] if setting not in telling]
    number, took = results.data["images"], show_time(results.data["seconds"])
    source = f"{results.command}; {show_source(results)}"
    note = (
        f"Means over {number} image{'s' if number != 1 else ''}. SSIM: 1 is the image itself. Identified: share of the "
        f"images that the server tells from {results.data['candidates'] - 1} others; by chance "
        f"{1 / results.data['candidates']:.2f}. Clear: share of the values that the server reads. All took {took}."
    )
    tables = [_table("Where raw updates give the images back", telling, note, source)] if telling else []
    return tables + (
        [_table("Where raw updates do not: nothing follows for encryption", others, note, source)] if others else []
    )


def _telling(results: Results) -> list[Setting]:
    return [
        setting
        for setting in results.data["settings"]
        if any(row["name"] == "raw" and row["ssim"] >= _READABLE for row in setting["rows"])
    ]


def _table(caption: str, settings: Sequence[Setting], note: str, source: str) -> Table:
    rows = [
        (
            setting["title"] if not place else "",
            row["title"],
            f"{row['psnr']:.1f}",
            f"{row['ssim']:.2f}",
            NONE if row["identified"] is None else f"{row['identified']:.2f}",
            NONE if row["clear"] is None else f"{100 * row['clear']:.1f} %",
        )
        for setting in settings
        for place, row in enumerate(setting["rows"])
    ]
    return Table(caption, ("setting", "encrypted", "PSNR, dB", "SSIM", "identified", "clear"), rows, note, source)


def _told(row: Mapping[str, Any]) -> str:
    return f"{row['title']} {row['ssim']:.2f}"


def _draw(settings: Sequence[Setting], theme: Theme) -> Figure:
    columns = 1 + max(len(setting["rows"]) for setting in settings)
    shown = [min(_MOST_IMAGES, len(setting["pictures"])) for setting in settings]
    figure = new_figure(1.22 * columns, sum(1.22 * lines + 0.95 for lines in shown))
    blocks = figure.subfigures(len(settings), 1, height_ratios=[1.22 * lines + 0.95 for lines in shown], squeeze=False)
    for block, setting, lines in zip(blocks.flat, settings, shown, strict=True):
        block.suptitle(setting["title"], x=0.01, ha="left", size=12)
        panels = block.subplots(lines, columns, squeeze=False)
        truth = {"title": "the image", "pictures": setting["pictures"]}
        for place, row in enumerate((truth, *setting["rows"])):
            for line in range(lines):
                panels[line][place].imshow(_image(row["pictures"][line], setting["edge"]), "gray", vmin=0, vmax=255)
            told = _folded(row["title"]) + (f"\nSSIM {row['ssim']:.2f}" if "ssim" in row else "\n")
            panels[0][place].set_title(told, size=8.5, loc="center", color=theme.ink)
        for axes in panels.flat:
            axes.set_axis_off()
    return figure


def _folded(title: str) -> str:
    """Return a title in two lines, that stands above a picture."""
    words, half = title.split(" "), len(title) / 2
    cut = next((number for number in range(1, len(words)) if len(" ".join(words[:number])) >= half), len(words))
    return "\n".join(filter(None, (" ".join(words[:cut]), " ".join(words[cut:]))))


def _image(picture: str, edge: int) -> Any:
    import numpy as np

    return np.frombuffer(b64decode(picture), np.uint8).reshape(edge, edge)
