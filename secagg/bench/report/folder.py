"""What a folder of results holds: each file checked, so that a figure never fails halfway or draws half of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FormatError, show
from ...storage.files import os_errors
from ..results import Results

_NUMBER, _NUMBERS, _MAYBE, _FLAG = "a number", "a list of numbers", "a number or null", "true or false"
_MODEL = {"name": "a text", "parameters": _NUMBER, "raw_nbytes": _NUMBER}
_VALUES = {**_MODEL, "max_abs": _NUMBER}
_TARGETS = [
    {"title": "a text", "measured": _NUMBER, "limit": _NUMBER, "at_least": _FLAG, "unit": "a text", "met": _FLAG}
]
_PARTS = {f"{part}_seconds": _NUMBER for part in ("train", "encrypt", "upload", "add", "download", "decrypt", "round")}

_TURN = {"seconds": _NUMBER, "cpu_seconds": _NUMBER, "store_cpu_seconds": _NUMBER}

#: What is read of each kind. A list stands for any number of what is in it; a row with a ``problem`` has no numbers.
_SHAPES: Mapping[str, Any] = {
    "model": {
        "model": _VALUES,
        "sites": _NUMBER,
        "rows": [
            {
                "setting": "a text",
                "title": "a text",
                "lib": "a text",
                "scheme": "a text",
                "up_nbytes": _NUMBER,
                "down_nbytes": _NUMBER,
                "encrypt_seconds": _NUMBERS,
                "add_seconds": _NUMBERS,
                "decrypt_seconds": _NUMBERS,
                "max_error": _NUMBER,
            }
        ],
    },
    "peers": {
        "model": _VALUES,
        "sites": _NUMBER,
        "rows": [
            {
                "name": "a text",
                "group": "a text",
                "title": "a text",
                "version": "a text",
                "encode_seconds": _NUMBERS,
                "up_nbytes": _NUMBER,
                "add_seconds": _NUMBERS,
                "finish_seconds": _NUMBERS,
                "down_nbytes": _NUMBER,
                "decode_seconds": _NUMBERS,
                "server_peak_nbytes": _MAYBE,
                "site_peak_nbytes": _MAYBE,
                "max_error": _MAYBE,
            }
        ],
        "targets": _TARGETS,
    },
    "clara": {
        "model": _MODEL,
        "rounds": _NUMBER,
        "cells": [
            {
                "sites": _NUMBER,
                "seed": _NUMBER,
                "rows": [{"setting": "a text", "round": _NUMBER, "dice": _MAYBE, "nbytes": _NUMBER, **_PARTS}],
            }
        ],
        "targets": _TARGETS,
    },
    "growth": {
        "parameters": [
            {
                "setting": "a text",
                "parameters": _NUMBER,
                "up_nbytes": _NUMBER,
                "encrypt_seconds": _NUMBER,
                "add_seconds": _NUMBER,
                "decrypt_seconds": _NUMBER,
                "site_peak_nbytes": _MAYBE,
                "server_peak_nbytes": _MAYBE,
            }
        ],
        "sites": [
            {
                "setting": "a text",
                "sites": _NUMBER,
                "parameters": _NUMBER,
                "up_nbytes": _NUMBER,
                "down_nbytes": _NUMBER,
                "add_seconds": _NUMBER,
                "decrypt_seconds": _NUMBER,
                "server_peak_nbytes": _MAYBE,
            }
        ],
        "links": [
            {
                "setting": "a text",
                "sites": _NUMBER,
                "parameters": _NUMBER,
                "bits_per_second": _NUMBER,
                "round_seconds": _NUMBER,
                "raw_round_seconds": _NUMBER,
            }
        ],
        "slopes": [
            {
                "what": "a text",
                "setting": "a text",
                "slope": _NUMBER,
                "low": _NUMBER,
                "high": _NUMBER,
                "r_squared": _NUMBER,
            }
        ],
        "limits": [{"what": "a text", "at": _MAYBE, "why": "a text"}],
        "extrapolation": [
            {
                "what": "a text",
                "value": _NUMBER,
                "unit": "a text",
                "how": "a text",
                "sites": _NUMBER,
                "parameters": _NUMBER,
            }
        ],
    },
    "leakage": {
        "images": _NUMBER,
        "candidates": _NUMBER,
        "seconds": _NUMBER,
        "settings": [
            {
                "title": "a text",
                "edge": _NUMBER,
                "pictures": ["a text"],
                "rows": [
                    {
                        "name": "a text",
                        "title": "a text",
                        "psnr": _NUMBER,
                        "ssim": _NUMBER,
                        "identified": _MAYBE,
                        "clear": _MAYBE,
                        "pictures": ["a text"],
                    }
                ],
            }
        ],
    },
    "shards": {
        "rows": [
            {
                "title": "a text",
                "where": "a text",
                "sites": _NUMBER,
                "update_nbytes": _NUMBER,
                "nbytes": _NUMBER,
                "heads_seconds": _NUMBER,
                "worker_nbytes": _NUMBER,
                **{side: [_TURN] for side in ("read_1", "sum_1", "read_2", "sum_2")},
            }
        ],
        "memory": [
            {
                "title": "a text",
                "sites": _NUMBER,
                "update_nbytes": _NUMBER,
                "shards": _MAYBE,
                "workers": _NUMBER,
                "above_nbytes": _NUMBER,
                "above_import_nbytes": _NUMBER,
            }
        ],
        "rates": {"sum_seconds": _NUMBER, "head_seconds": _NUMBER, "where": "a text"},
        "simulation": [
            {
                "name": "a text",
                "plan": dict.fromkeys(
                    (
                        *("sites", "update_nbytes", "nodes", "cores", "node_bits", "site_bits", "latency"),
                        *("stream", "gets", "copy_seconds", "slow"),
                    ),
                    _NUMBER,
                ),
                "stages": [
                    {"name": "a text", "seconds": _NUMBER, "nbytes": _NUMBER, "requests": _NUMBER, "bound": "a text"}
                ],
                **dict.fromkeys(("added_seconds", "node_nbytes", "driver_nbytes"), _NUMBER),
            }
        ],
        "prices": dict.fromkeys(("storage", "puts", "gets", "egress", "node", "kept"), _NUMBER),
        "costs": [
            dict.fromkeys(
                (
                    *("sites", "update_nbytes", "nodes", "shards", "added_seconds", "puts", "gets"),
                    *("storage", "requests", "egress", "machines", "total"),
                ),
                _NUMBER,
            )
        ],
        "server": {
            "nbytes_per_second": _MAYBE,
            "enough": [{"update_nbytes": _NUMBER, "nodes": _NUMBER, "sites": _MAYBE}],
        },
    },
    "bench": {
        "targets": [{**_TARGETS[0], "name": "a text", "date": "a text", "processor": "a text", "cores": _NUMBER}]
    },
}
_HISTORY = {
    "date": "a text",
    "commit": "a text",
    "machine": {"processor": "a text", "cores": _NUMBER},
    "rows": [{"name": "a text", "ratio": _NUMBER, "low": _NUMBER, "high": _NUMBER, "calibrated": _MAYBE}],
}


@dataclass(frozen=True)
class Folder:
    """The results of a folder.

    Parameters
    ----------
    models : mapping of str to Results
        Those of kind ``"model"``, by the name of the file without its suffix.
    peers, clara, growth, bench, leakage, shards : Results or None
        Those of the kind, of which a folder has one at most; ``leakage`` is in it, or in that of its name beside it.
    history : sequence of mapping
        The lines of ``history.jsonl``, oldest first.
    sizes : sequence of mapping
        The rows of ``sizes.csv``, in the folder or in that above it; all texts.
    """

    models: Mapping[str, Results]
    peers: Results | None
    clara: Results | None
    growth: Results | None
    bench: Results | None
    leakage: Results | None
    shards: Results | None
    history: Sequence[Mapping[str, Any]]
    sizes: Sequence[Mapping[str, str]]


def read_folder(path: Path) -> Folder:
    """Read and check all results of a folder.

    Raises
    ------
    FormatError
        If it cannot be read, or a file in it is damaged, is no file of results, or is a second one of its kind.
    """
    with os_errors(FormatError, f"cannot read the folder {str(path)!r}"):
        names = sorted(file.name for file in path.iterdir())
    models: dict[str, Results] = {}
    others: dict[str, tuple[Path, Results]] = {}
    beside = path.absolute().parent / "leakage" / "leakage.json"
    files = [path / name for name in names if name.endswith(".json")]
    for file in [*files, beside] if beside.is_file() else files:
        found = read_file(file)
        if found.kind == "model":
            models[file.stem] = found
        elif found.kind in others:
            raise FormatError(
                f"{others[found.kind][0]} and {file} are both of kind {found.kind!r}: leave one of them in the folder"
            )
        else:
            others[found.kind] = (file, found)
    one = {kind: results for kind, (_, results) in others.items()}
    return Folder(
        models,
        one.get("peers"),
        one.get("clara"),
        one.get("growth"),
        one.get("bench"),
        one.get("leakage"),
        one.get("shards"),
        history=_read_history(path / "history.jsonl") if "history.jsonl" in names else (),
        sizes=_read_sizes(path),
    )


def read_file(path: Path) -> Results:
    """Read one file of results, and check that it has what its kind has; `FormatError` if not."""
    found = Results.load(path)
    shape = _SHAPES.get(found.kind) if isinstance(found.kind, str) else None
    if shape is None:
        raise FormatError(f"{path} is of kind {show(found.kind)}; a report has {', '.join(_SHAPES)}")
    _check(found.data, shape, f"{path}: data")
    _check(found.machine, {"processor": "a text", "cores": _NUMBER}, f"{path}: machine")
    for name in ("command", "date"):
        _check(getattr(found, name), "a text", f"{path}: {name}")
    return found


def _read_history(path: Path) -> list[Mapping[str, Any]]:
    with os_errors(FormatError, f"cannot read {str(path)!r}"):
        lines = path.read_text(encoding="utf-8").splitlines()
    found: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{path}, line {number}: {error}; remove the line") from error
        _check(entry, _HISTORY, f"{path}, line {number}")
        found.append(entry)
    return found


def _read_sizes(folder: Path) -> list[Mapping[str, str]]:
    for path in (folder / "sizes.csv", folder.absolute().parent / "sizes.csv"):
        if path.is_file():
            with os_errors(FormatError, f"cannot read {str(path)!r}"), path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
    return []


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            raise FormatError(f"{where} is {show(value)}, not a mapping")
        if value.get("problem"):
            return
        for name, inner in shape.items():
            if name not in value:
                raise FormatError(f"{where} has no {name!r}: measure again, or remove the file")
            _check(value[name], inner, f"{where}.{name}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise FormatError(f"{where} is {show(value)}, not a list")
        for number, entry in enumerate(value):
            _check(entry, shape[0], f"{where}[{number}]")
    elif not _fits(value, shape):
        raise FormatError(f"{where} is {show(value)}, not {shape}")


def _fits(value: Any, shape: str) -> bool:
    if shape == _NUMBERS:
        return isinstance(value, list) and bool(value) and all(_is_number(one) for one in value)
    if shape == _FLAG:
        return isinstance(value, bool)
    return isinstance(value, str) if shape == "a text" else _is_number(value) or (shape == _MAYBE and value is None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
