"""Looks for secrets in bytes: any 16 bytes of one, in several encodings, at any place."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

#: So many bytes of a secret, one after another, are a find: by chance they come in no place.
WINDOW = 16
#: A window of fewer different bytes says nothing: zeros and the like are everywhere.
LEAST_DISTINCT = 8
#: A larger secret is looked for at its beginning, its end and so many places between them.
PLACES = 64

_LARGE = 256
_PREFIX = 8
_TABLE_BITS = 20
_MIX = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 1 << 20
_PAGE = 4096


class Needles:
    """Secrets, each with a name."""

    def __init__(self) -> None:
        self._needles: dict[int, dict[bytes, str]] = {}
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        self._prefixes = np.empty(0, dtype=np.uint64)

    def add(self, name: str, secret: bytes) -> None:
        """Look for bytes: as they are, backwards, in hexadecimal and in base64, of 16 bytes of them or more."""
        assert len(secret) >= WINDOW, name
        for place, encoded in _places(len(secret)):
            window = secret[place : place + WINDOW]
            if len(set(window)) < LEAST_DISTINCT:
                continue
            self._add(name, window)
            if not encoded:
                continue
            self._add(f"{name}, backwards", window[::-1])
            self._add(f"{name}, in hexadecimal", window.hex().encode())
            self._add(f"{name}, in hexadecimal", window.hex().upper().encode())
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                self._add(f"{name}, in base64", encode(window[:15]))

    def add_number(self, name: str, number: int) -> None:
        """Look for a large number: as bytes, in Python's digits of 30 bits, and as text."""
        nbytes = max(WINDOW, -(-number.bit_length() // 8))
        self.add(name, number.to_bytes(nbytes, "little"))
        digits = [number >> shift & (1 << 30) - 1 for shift in range(0, number.bit_length(), 30)]
        self.add(f"{name}, a number of Python", np.array(digits, dtype="<u4").tobytes())
        self.add_text(f"{name}, in decimal", str(number))

    def add_text(self, name: str, text: str) -> None:
        """Look for text: in UTF-8 and UTF-16, of 16 characters of it or more; and for what is made of its bytes."""
        self.add(name, text.encode())
        for place in range(len(text) - WINDOW + 1):
            self._add(f"{name}, in UTF-16", text[place : place + WINDOW].encode("utf-16-le"))

    def found_in(self, data: bytes) -> set[str]:
        """Return the names of what is found in bytes."""
        self._index()
        view = np.frombuffer(data, dtype=np.uint8)
        found: set[str] = set()
        for start in range(0, view.size, _PIECE):
            piece = view[start : start + _PIECE + 2 * WINDOW + _PREFIX]
            for shift in range(_PREFIX):
                words = piece[shift:][: (piece.size - shift) // _PREFIX * _PREFIX].copy().view("<u8")
                places = np.flatnonzero(self._table[words * _MIX >> np.uint64(64 - _TABLE_BITS)])
                nearest = np.searchsorted(self._prefixes, words[places])
                places = places[self._prefixes[nearest % self._prefixes.size] == words[places]]
                for place in places.tolist():
                    offset = _PREFIX * place + shift
                    for needle, name in self._needles[int(words[place])].items():
                        if name not in found and piece[offset : offset + len(needle)].tobytes() == needle:
                            found.add(name)
        return found

    def found_below(self, folder: Path) -> set[str]:
        """Return the names of what is found in the files below a folder, and in their names."""
        found: set[str] = set()
        for path in sorted(folder.rglob("*")):
            found |= self.found_in(str(path).encode())
            if path.is_file():
                found |= self.found_in(path.read_bytes())
        return found

    def found_in_process(self, number: int) -> set[str]:
        """Return the names of what is found in all memory of a process, which stands still meanwhile, or should."""
        found: set[str] = set()
        for piece in process_memory(number):
            found |= self.found_in(piece)
        return found

    def __len__(self) -> int:
        return sum(map(len, self._needles.values()))

    def _add(self, name: str, needle: bytes) -> None:
        prefix = int.from_bytes(needle[:_PREFIX], "little")
        self._needles.setdefault(prefix, {}).setdefault(needle, name)

    def _index(self) -> None:
        if self._prefixes.size != len(self._needles):
            self._prefixes = np.array(sorted(self._needles), dtype=np.uint64)
            self._table[self._prefixes * _MIX >> np.uint64(64 - _TABLE_BITS)] = True


def process_memory(number: int) -> Iterator[bytes]:
    """Yield all that a process could read itself, as a core image has it, and its arguments and variables."""
    for name in ("cmdline", "environ"):
        yield Path(f"/proc/{number}/{name}").read_bytes()
    with Path(f"/proc/{number}/maps").open() as maps, Path(f"/proc/{number}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)", line)
            if match is None or match[3] in ("[vvar]", "[vvar_vclock]", "[vsyscall]"):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            try:
                yield from _written(os.pread(memory.fileno(), end - start, start))
            except OSError:  # a reservation without memory behind it
                continue


def _written(data: bytes) -> Iterator[bytes]:
    """Yield the runs of pages that are not zero: most memory of most processes was never written."""
    pages = np.frombuffer(data, dtype=np.uint64).reshape(-1, _PAGE // 8).any(axis=1)
    edges = np.flatnonzero(np.diff(pages.astype(np.int8), prepend=0, append=0)) * _PAGE
    for start, end in edges.reshape(-1, 2).tolist():
        yield data[start:end]


def _places(nbytes: int) -> list[tuple[int, bool]]:
    """Return where windows begin, and whether they are looked for in other encodings, too."""
    last = nbytes - WINDOW
    if nbytes <= _LARGE:
        return [(place, True) for place in range(last + 1)]
    spread = sorted({*range(0, last, max(1, last // PLACES)), last})
    # Three in a row: base64 has three alignments.
    near = {place + shift for place in spread[:: PLACES // 4] for shift in range(3) if place + shift <= last}
    return [(place, place in near) for place in sorted({*spread, *near})]
