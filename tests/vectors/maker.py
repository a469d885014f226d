"""What makes vectors with a fault: a good file, one change, and every digest anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from container import Container, canonical

Change = Callable[[Any], Any]

#: Whose keys a configuration has, where they are not its own.
KEYS = {
    "partly": "all",
    "seeded": "whole",
    "complex": "whole",
    "bgv-whole": "bgv",
    "bgv-partly": "signed",
    "bgv-auto": "signed",
}


def prefix_of(config: str) -> str:
    """What the names of a configuration's files begin with."""
    return "" if config == "all" else f"{config}-"


@dataclass
class Vector:
    """A file, what reads it, and the error that reading must raise."""

    name: str
    reads: str
    error: str
    fault: str
    blob: bytes = field(repr=False)
    config: str = "all"

    @property
    def file(self) -> str:
        return f"bad-{self.name}.secagg"


class Good:
    """The good files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.blobs = {path.name: path.read_bytes() for path in sorted(folder.glob("good-*.secagg"))}

    def __getitem__(self, name: str) -> Container:
        return Container.read(self.blob(name))

    def key(self, config: str, role: str = "client") -> Container:
        """A key of a configuration."""
        return self[f"{prefix_of(KEYS.get(config, config))}{role}-key"]

    def blob(self, name: str) -> bytes:
        return self.blobs[f"good-{name}.secagg"]


class Maker:
    """Collects vectors, the same for the same good files. `source` is the good file that a vector is made of."""

    def __init__(self, good: Good) -> None:
        self.good = good
        self.vectors: list[Vector] = []

    def add(self, name: str, error: str, fault: str, blob: bytes, reads: str = "add", config: str = "all") -> None:
        """A vector of any bytes."""
        self.vectors.append(Vector(name, reads, error, fault, blob, config))

    def edit(self, name: str, error: str, fault: str, change: Change, source: str = "update", **where: str) -> None:
        """A changed container."""
        container = self.good[source]
        change(container)
        self.add(name, error, fault, container.to_bytes(), **where)

    def header(self, name: str, error: str, fault: str, change: Change, source: str = "update", **where: str) -> None:
        """A changed header."""
        self.edit(name, error, fault, lambda container: change(container.header), source, **where)

    def text(self, name: str, fault: str, change: Callable[[bytes], bytes]) -> None:
        """A header of other bytes."""

        def rewrite(container: Container) -> None:
            container.header = change(canonical(container.header))

        self.edit(name, "FormatError", fault, rewrite)

    def flip(
        self, name: str, fault: str, place: int, source: str = "update", error: str = "DigestError", **where: str
    ) -> None:
        """One bit changed, and no digest made anew."""
        blob = bytearray(self.good.blob(source))
        blob[place] ^= 0x10
        self.add(name, error, fault, bytes(blob), **where)
