"""The page: one file that asks for nothing else, and the figures once more as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import FormatError, StorageError
from ...setup.progress import Progress, silent
from ...storage.files import os_errors, replace_file
from .folder import read_folder
from .sections import Section, sections
from .style import DARK, LIGHT

PAGE = "report.html"


def write_report(folder: Path, out: Path, progress: Progress = silent) -> list[Path]:
    """Make the page and the pictures of all results of a folder.

    Parameters
    ----------
    folder : Path
        Of the files of results.
    out : Path
        Where page and pictures go; it is made, and files of the same names are replaced.
    progress : callable, optional
        Shows how far it is.

    Returns
    -------
    list of Path
        What was written, the page first.

    Raises
    ------
    FormatError
        If the folder holds no results, or a file of it is damaged or none of results.
    StorageError
        If a file cannot be written.
    """
    parts = list(sections(read_folder(folder)))
    charts = [chart for part in parts for chart in part.charts]
    if not charts and not any(part.tables for part in parts):
        raise FormatError(f"{folder} holds no results: `secagg bench peers --out {folder / 'peers.json'}` makes some")
    with os_errors(StorageError, f"cannot make the folder {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    written = [out / PAGE]
    images: dict[str, tuple[str, str]] = {}
    with progress(f"draw {len(charts)} figures") as report:
        for number, chart in enumerate(charts):
            report(number, len(charts))
            images[chart.name] = (chart.data_uri(LIGHT), chart.data_uri(DARK))
            written.append(out / f"{chart.name}.png")
            _write(written[-1], chart.png())
        report(len(charts), len(charts))
    _write(written[0], render(parts, images).encode())
    return written


def render(parts: Sequence[Section], images: dict[str, tuple[str, str]]) -> str:
    """Return the page; `images` has URIs of each figure on a light and on a dark ground."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("secagg.bench.report", "")
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(sections=parts, images=images)


def _write(path: Path, data: bytes) -> None:
    with replace_file(path) as file:
        file.write(data)
