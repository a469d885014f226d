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
    source : str
        When and on what it was measured.
    draw : callable
        Takes a `Theme` and returns the figure.
    """

    name: str
    title: str
    alt: str
    note: str
    command: str
    source: str
    draw: Callable[[Theme], Figure]

    def png(self) -> bytes:
        """Return the figure as a picture on white, of so few colours that a repository can keep it."""
        from PIL import Image

        target = BytesIO()
        with Image.open(BytesIO(self._save(LIGHT, "png", {"Software": None}))) as picture:
            picture.convert("RGB").quantize(160).save(target, "PNG", optimize=True)
        return target.getvalue()

    def data_uri(self, theme: Theme) -> str:
        """Return the figure as an SVG of outlines, which needs no font, in a URI that holds all of it."""
        return f"data:image/svg+xml;base64,{b64encode(self._save(theme, 'svg', {'Date': None})).decode()}"

    def _save(self, theme: Theme, kind: str, metadata: dict[str, None]) -> bytes:
        target = BytesIO()
        with styled(theme):
            self.draw(theme).savefig(target, format=kind, metadata=metadata)
        return target.getvalue()
