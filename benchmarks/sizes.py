"""Sizes of every backend, scheme and preset, for real models and many sites: exact, and kept in sizes.csv.

``python benchmarks/sizes.py`` makes the file anew, ``--check`` holds it against this code. Nothing is encrypted: all
follows from headers, params and codecs, and tests/bench/test_sizes.py holds them against what is really sent.

A row is a round of so many sites, `site-1` and so on, which is as many as the configuration allows; round 0, everything
encrypted, and neither a base nor a project named, as `secagg.setup.sizes` says.

lib, scheme, setting, preset
    The backend, its scheme, the name in `secagg.bench.settings`, and the preset that says the same, if one does; those
    of exact schemes are there twice, with ``max_abs`` and with measured scales.
model, parameters, sites
    The list of shapes in benchmarks/models, and how many float values it has, which are what is sent: running
    statistics among them.
up_nbytes, down_nbytes
    What a site sends and receives in the round; where scales are measured, with the calibration and the sum of these.
blocks
    Encrypted blocks that a site sends.
bits_a_parameter
    Bits that a site sends, by parameters.
largest, error_bound
    A bound on the error of each value of the mean, sites having equal weights, and the largest magnitude of values that
    it is for: ``max_abs``, with weights of ``max_weight``. Where scales are measured it is relative: 1 stands for the
    bound of a tensor, which is the power of the square root of 2 at or above its largest value, and weights are 1.
sum_nbytes
    What the server allocates for the sum of the updates.
problem
    Why so many sites cannot be added up like that; nothing else is known then.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from secagg.bench.settings import SETTINGS, Setting
from secagg.errors import SecAggError
from secagg.scheme.codec import codec_for
from secagg.scheme.presets import PRESETS
from secagg.setup.model_file import read_layout
from secagg.setup.sizes import sizes_of
from secagg.wire.layout import Layout

FOLDER = Path(__file__).parent
FILE = FOLDER / "sizes.csv"
REMEDY = "if the change is meant: make sizes, and commit benchmarks/sizes.csv"

MODELS = ("segresnet", "resnet50", "vit-b", "lora", "logistic")
SITES = (3, 10, 30, 100, 1000)

COLUMNS = (
    *("lib", "scheme", "setting", "preset", "model", "parameters", "sites", "up_nbytes", "down_nbytes", "blocks"),
    *("bits_a_parameter", "largest", "error_bound", "sum_nbytes", "problem"),
)

Row = dict[str, str]


def make_rows() -> Iterator[Row]:
    """Yield every row, in the order of the file."""
    layouts = {model: read_layout(FOLDER / "models" / f"{model}.json") for model in MODELS}
    for name, setting in SETTINGS.items():
        config = setting.config(SITES[0])
        known = {"lib": config.lib, "scheme": config.params.scheme, "setting": name, "preset": preset_of(setting)}
        for model, layout in layouts.items():
            for sites in SITES:
                row = known | {"model": model, "parameters": layout.size("encrypted"), "sites": sites}
                try:
                    row |= round_of(setting, layout, sites)
                except SecAggError as error:
                    row["problem"] = str(error).partition(": ")[0]  # what comes behind it is the remedy
                yield {column: str(row.get(column, "")) for column in COLUMNS}


def preset_of(setting: Setting) -> str:
    """Return the preset that says the same as a setting; "" if none does."""
    same = setting.config(SITES[0])
    presets = (name for name in PRESETS if Setting("", {"preset": name}, setting.fixed).config(SITES[0]) == same)
    return next(presets, "")


def round_of(setting: Setting, layout: Layout, sites: int) -> dict[str, object]:
    """Return what a round of so many sites means for a model; `SecAggError` if they cannot be added up."""
    config = setting.config(sites)
    sizes = sizes_of(config, layout, sites)
    largest = max(config.aggregation.bounds, default=1.0)
    error = codec_for(config.params, config.aggregation).mean_error(sites, float(sites), largest)
    return {
        "up_nbytes": sizes.up_nbytes,
        "down_nbytes": sizes.down_nbytes,
        "blocks": sizes.blocks,
        "bits_a_parameter": f"{8 * sizes.up_nbytes / layout.size('encrypted'):.3f}",
        "largest": f"{largest:g}",
        "error_bound": f"{error:.6g}",
        "sum_nbytes": sizes.sum_nbytes,
    }


def to_text(rows: Sequence[Row]) -> str:
    """Return the file."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def differences(text: str, rows: Sequence[Row]) -> list[str]:
    """Return how rows differ from a file, a line a row: which columns, what was there, and what is."""
    if text == to_text(rows):
        return []
    reader = csv.DictReader(io.StringIO(text), restval="")
    if tuple(reader.fieldnames or ()) != COLUMNS:
        return [f"the columns were {', '.join(reader.fieldnames or ('none',))}; they are {', '.join(COLUMNS)}"]
    was, now = ({_name(row): row for row in each} for each in (reader, rows))
    lines = [f"{name}: was there, is not" for name in was if name not in now]
    for name, row in now.items():
        if name not in was:
            lines.append(f"{name}: was not there, is")
            continue
        old = was[name]
        changed = [
            f"{column} was {old[column] or 'empty'}, is {row[column] or 'empty'}"
            for column in COLUMNS
            if old[column] != row[column]
        ]
        if changed:
            lines.append(f"{name}: {'; '.join(changed)}")
    return lines or ["no row differs, but their order or form"]


def check() -> list[str]:
    """Return how what this code makes differs from the file."""
    try:
        text = FILE.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [f"{FILE.name} cannot be read: {error}"]
    return differences(text, list(make_rows()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or check it; return the exit status."""
    parser = argparse.ArgumentParser(description="Make benchmarks/sizes.csv anew.")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if this code has other sizes")
    if not parser.parse_args(arguments).check:
        rows = list(make_rows())
        FILE.write_text(to_text(rows), encoding="utf-8")
        print(f"{FILE.name}: {len(rows)} rows")
        return 0
    found = check()
    print(*found, REMEDY if found else f"{FILE.name} is as this code makes it", sep="\n")
    return bool(found)


def _name(row: Row) -> str:
    return f"{row['setting']}, {row['model']}, {row['sites']} sites"


if __name__ == "__main__":
    sys.exit(main())
