"""A figure of the report, and the files that it becomes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from .style import LIGHT, Theme, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """One figure.

    Parameters
    ----------
    name : str
        Of its file, without a suffix.
    title : str
        What it shows.
    alt : str
        What is seen in it, with its main numbers, for those who do not see it.
    note : str
        How it is to be read.
    command : str
        What repeats it.
    date : str
        When it was measured: ISO 8601.
    machine : str
        On what.
    draw : callable
        Takes a `Theme` and returns the figure.
    """

    name: str
    title: str
    alt: str
    note: str
    command: str
    date: str
    machine: str
    draw: Callable[[Theme], Figure]

    @property
    def source(self) -> str:
        """When and on what it was measured, for its caption."""
        return f"{self.date[:10]}, {self.machine}"

    @property
    def stamp(self) -> str:
        """What its picture says of where it comes from: another one after each measurement."""
        return f"{self.command}; {self.date}; {self.machine}"

    def png(self) -> bytes:
        """Return a picture on white, with its `stamp`, and of so few colours that a repository can keep it."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        told = PngInfo()
        told.add_itxt("Source", self.stamp)
        target = BytesIO()
        with Image.open(BytesIO(self._save(LIGHT, "png", {"Software": None}))) as picture:
            picture.convert("RGB").quantize(160).save(target, "PNG", optimize=True, pnginfo=told)
        return target.getvalue()

    def data_uri(self, theme: Theme) -> str:
        """Return the figure as an SVG of outlines, which needs no font, in a URI that holds all of it."""
        return f"data:image/svg+xml;base64,{b64encode(self._save(theme, 'svg', {'Date': None})).decode()}"

    def _save(self, theme: Theme, kind: str, metadata: dict[str, None]) -> bytes:
        target = BytesIO()
        with styled(theme):
            self.draw(theme).savefig(target, format=kind, metadata=metadata)
        return target.getvalue()
