"""What a plan shows and writes: a table of the choices, advice on ``max_abs``, and the configuration."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config import Config
from ..errors import ConfigError, StorageError
from ..scheme.params import CKKSParams, QuantisedParams
from ..setup.bounds import HEADROOM, SPREAD, TYPICAL_BITS, Sample
from ..setup.planner import Plan, Row
from ..storage.files import os_errors
from ..storage.yaml_file import to_yaml
from ..ui.words import security

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

#: Patterns of ``max_abs`` that are shown; the file holds all.
_MAX_PATTERNS = 8


def print_table(rows: Sequence[Row], best: Row) -> None:
    """Print one row a choice, the recommended one marked, and below it what rules others out."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    costs = [row.cost for row in rows if row.cost is not None]
    unit, name = next(
        ((unit, name) for unit, name in _UNITS if max(cost.update_nbytes for cost in costs) >= unit), _UNITS[-1]
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # of 80 columns at most
    for title in ("", "he.lib", "scheme"):
        table.add_column(title, no_wrap=True)
    for title in (f"up {name}", f"down {name}", "× raw", "bits", "encrypt", "decrypt"):
        table.add_column(title, justify="right", no_wrap=True)
    problems: dict[str, int] = {}
    for row in rows:
        cells = ["–"] * 6
        if row.cost is not None:
            sizes = (f"{nbytes / unit:.3f}" for nbytes in (row.cost.update_nbytes, row.cost.aggregate_nbytes))
            cells[:4] = [*sizes, f"{row.cost.expansion:.2f}", f"{row.cost.precision:.1f}"]
        if row.seconds is not None:
            cells[4:] = map(_time, row.seconds)
        if row.problem is not None:
            cells[5] = f"[{problems.setdefault(row.problem, len(problems) + 1)}]"
        chosen = row is best
        name_cells = ("▸" if chosen else "", row.choice.lib, row.choice.name)
        # Text in brackets would be read as markup.
        texts = [text.replace("[", r"\[") for text in (*name_cells, *cells)]
        table.add_row(*texts, style="bold" if chosen else "" if row.usable else "dim")
    console = Console()
    wide = Console(width=max(console.width, 160), highlight=False)  # rather wrapped by the terminal than cut
    with wide.capture() as capture:  # rich would end the program when the reader of a pipe is gone
        wide.print(table)
    print(*(line.rstrip() for line in capture.get().rstrip().splitlines()), "", *_caption(rows), sep="\n")
    for problem, number in problems.items():
        print(f"[{number}] {problem}")


def _caption(rows: Sequence[Row]) -> list[str]:
    """Return what the table means, in lines of at most 80 characters."""
    levels = {f"{row.cost.config.params.scheme} {security(row.cost.config.params)}": None for row in rows if row.cost}
    trusts: dict[str, dict[str, None]] = {}
    for row in rows:
        trusts.setdefault(row.trust, {})[row.choice.lib] = None
    texts = [
        "up, down: an update, the aggregate of all sites; × raw: update by float32 values",
        "bits: of max_abs, that the error of the mean leaves",
        "encrypt, decrypt: estimated from a few blocks on this machine",
        f"security: {', '.join(levels)} (classical, ePrint 2024/463)",
        *(f"{', '.join(libs) if len(trusts) > 1 else 'trust'}: {trust}" for trust, libs in trusts.items()),
    ]
    return [line for text in texts for line in textwrap.wrap(text, 80, subsequent_indent="  ")]


def publish_words(config: Config) -> list[str]:
    """Return what a scheme demands of who publishes the model, line by line; nothing of exact schemes."""
    if not isinstance(config.params, CKKSParams):
        return []
    return [
        "CKKS: a mean that leaves the sites leaks about the key; publish models from an exact scheme, BGV or FLASHE"
    ]


def bounds_words(max_abs: float | Mapping[str, float], sample: Sample | None) -> list[str]:
    """Return what ``max_abs`` is and where it comes from, line by line."""
    if sample is None:
        return [
            f"max_abs is the default, {max_abs:g}, and typical values are assumed to be 1/{2**TYPICAL_BITS:g} of it:",
            "give a sample update as --updates. Differences of models are often far smaller, and each halving of",
            "max_abs is a bit of precision; a value beyond it is an error.",
        ]
    name, largest = sample.peak
    words = f"the largest value of the sample, which is {largest:.3g} in {name!r}"
    if not isinstance(max_abs, Mapping):
        return [f"max_abs is {max_abs:g}: {HEADROOM:g} × {words}"]
    count = len(max_abs) - 1
    return [
        f"max_abs is {max_abs['default']:g}: {HEADROOM:g} × {words};",
        f"what is over {SPREAD:g} × smaller has a number of its own, by {count} pattern{'s' if count > 1 else ''}",
    ]


def pattern_lines(max_abs: float | Mapping[str, float]) -> list[str]:
    """Return the first patterns of ``max_abs``, line by line."""
    patterns = [item for item in max_abs.items() if item[0] != "default"] if isinstance(max_abs, Mapping) else []
    lines = [f"  {pattern}: {bound:g}" for pattern, bound in patterns[:_MAX_PATTERNS]]
    return lines + ([f"  and {len(patterns) - _MAX_PATTERNS} more"] if len(patterns) > _MAX_PATTERNS else [])


def refuse_existing(path: Path) -> None:
    """Raise `ConfigError` if a file is there already, which is never overwritten, or no folder for it."""
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists; a configuration is never overwritten: name a new file with --out")
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")


def write_config(path: Path, config: Config, comments: Sequence[str]) -> None:
    """Write a configuration as YAML below comments; errors as of `refuse_existing`, also if it cannot be written."""
    parts = [f"# {line}\n" for line in comments]
    for key, value in config.to_dict().items():
        parts.append(to_yaml({key: value}, flow=key == "he"))  # a list of primes on one line, patterns on their own
    with os_errors(StorageError, f"cannot write {str(path)!r}"):
        try:
            # A comment names files, whose names need not be text.
            with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(parts)
        except FileExistsError:
            refuse_existing(path)
            raise


def comments(plan: Plan, command: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Return what stands above the configuration in its file: how it was made, `texts`, and advice."""
    lines = [f"made by: {shlex.join(command)}", *texts, f"trust: {plan.best.trust}"]
    if isinstance(plan.config.params, QuantisedParams):
        lines.append("with `overflow: clip`, values beyond max_abs are clipped and counted instead of being an error")
    lines += [
        "max_weight: the largest weight that any site gives, such as its number of examples",
        "min_clients: the fewest sites of a round; with two, each can compute the other's update from the mean",
    ]
    return lines


def _time(seconds: float) -> str:
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"
