"""The tables of the report: rows of text, which the page shows as HTML and the docs as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ..clara import published
from ..clara.settings import TITLES
from ..clara.summary import PARTS, lines
from ..results import Results
from .folder import Folder
from .growth import title_of
from .numbers import (
    mid,
    show_bytes,
    show_count,
    show_machine,
    show_number,
    show_ratio,
    show_source,
    show_target,
    show_time,
)

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    caption : str
        What it shows.
    head : sequence of str
        Of the columns; the first one names the rows.
    rows : sequence of sequence of str
        The cells.
    note : str
        What a reader must know.
    source : str
        The command, and when and on what it ran.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    source: str = ""


def targets_table(files: Iterable[Results]) -> Table:
    """Return what was to be reached, and whether it was, of files that have such rows."""
    rows = []
    for results in files:
        for row in results.data["targets"]:
            place = show_row_source(row) if "processor" in row else show_source(results)
            met = "met" if row["met"] else "NOT MET"
            measured = f"{show_number(row['measured'])} {row['unit']}".strip()
            command = row.get("command", results.command)
            rows.append((row["title"], measured, show_target(row), met, row.get("detail", ""), f"{command}; {place}"))
    reached = sum(row[3] == "met" for row in rows)
    return Table(
        f"{reached} of {len(rows)} targets met",
        ("what", "measured", "target", "", "from", "command; when, and on what"),
        rows,
    )


def show_row_source(row: Mapping[str, Any]) -> str:
    """Return when and on what a row was measured that says so itself."""
    return f"{row['date'][:10]}, {show_machine(row)}"


def model_table(results: Results) -> Table:
    """Return what each setting costs, of kind ``"model"``."""
    raw = results.data["model"]["raw_nbytes"]
    rows = []
    for row in results.data["rows"]:
        if row.get("problem"):
            rows.append((row["title"], *[NONE] * 8, row["problem"]))
            continue
        times = (show_time(mid(row[f"{step}_seconds"])) for step in ("encrypt", "add", "decrypt"))
        peaks = (_size(row.get(f"{side}_peak_nbytes")) for side in ("site", "server"))
        sizes = (show_bytes(row["up_nbytes"]), show_bytes(row["down_nbytes"]), show_ratio(row["up_nbytes"] / raw))
        rows.append((row["title"], *sizes, *times, *peaks, show_number(row["max_error"])))
    head = (
        "setting",
        "up",
        "down",
        "by raw",
        "encrypt",
        "add",
        "decrypt",
        "site's memory",
        "server's memory",
        "largest error",
    )
    model = results.data["model"]
    return Table(
        f"{model['name']}: {model['parameters']:,} parameters, {show_bytes(raw)} of float32, planned for "
        f"{results.data['sites']} sites",
        head,
        rows,
        "Times are medians of one update, or of a sum of two; memory is that above model, libraries and keys; "
        f"{_errors(model)}.",
        _source(results),
    )


def _errors(model: Mapping[str, Any]) -> str:
    return f"errors are of a mean of values to {model['max_abs']:g}, which is max_abs where a setting has one"


def peers_table(results: Results) -> Table:
    """Return what ours and others take, of kind ``"peers"``."""
    rows = []
    for row in results.data["rows"]:
        if row.get("problem"):
            rows.append((row["title"], *[NONE] * 9, row["problem"]))
            continue
        rows.append(
            (
                row["title"],
                show_bytes(row["up_nbytes"]),
                show_time(mid(row["encode_seconds"])),
                show_time(mid(row["add_seconds"])),
                show_time(mid(row["finish_seconds"])),
                show_bytes(row["down_nbytes"]),
                show_time(mid(row["decode_seconds"])),
                _size(row["site_peak_nbytes"]),
                _size(row["server_peak_nbytes"]),
                NONE if row["max_error"] is None else show_number(row["max_error"]),
                row.get("note") or "",
            )
        )
    head = ("", "up", "encode", "server: read, add", "finish", "down", "decode", "site's memory", "server's memory")
    return Table(
        f"{results.data['model']['name']} by each, {results.data['sites']} sites",
        (*head, "largest error", ""),
        rows,
        "Medians; read and add: for each message; memory: peak above the start; "
        f"{_errors(results.data['model'])}; our means are rounded to float32.",
        _source(results),
    )


def clara_table(results: Results) -> Table:
    """Return the published table beside ours, of kind ``"clara"``: the first seed, whose times are undisturbed."""
    rows = []
    for line in _lines(results):
        theirs = published.TABLE.get(line.setting, {}).get(line.sites)
        message = published.MESSAGE_MB.get(line.setting)
        increase = NONE if theirs is None or theirs.increase is None else f"{theirs.increase:+.1f} %"
        rows.append(
            (
                TITLES.get(line.setting, line.setting),
                str(line.sites),
                show_bytes(line.nbytes),
                NONE if message is None else f"{message} MB",
                _clock(line.seconds),
                NONE if theirs is None else theirs.time,
                f"{line.dice:.3f} ({line.round})",
                NONE if theirs is None else f"{theirs.dice:.3f} ({theirs.epoch})",
                NONE if line.setting == "raw" else f"{line.increase:+.1f} %",
                increase,
            )
        )
    head = ("setting", "sites", "message", "Clara's", "training", "Clara's", "best Dice (round)", "Clara's (epoch)")
    return Table(
        f"Clara Train's table, and ours: {results.data['rounds']} rounds",
        (*head, "over raw", "Clara's"),
        rows,
        f"Over raw: training noise and all. Clara's: 100 rounds of 10 epochs on V100 GPUs; {published.SOURCE}.",
        _source(results),
    )


def increase_table(results: Results) -> Table:
    """Return what HE adds to a round, step by step, of kind ``"clara"``."""
    rows = []
    for line in _lines(results):
        if line.setting == "raw":
            continue
        half = f" ± {line.added.half:.3f}" if line.added.half < float("inf") else ""
        share = f"{100 * line.added.mean / published.ROUND_SECONDS:.2f} %"
        parts = (f"{line.parts[part]:+.3f}" for part in PARTS)
        cells = (f"{line.added.mean:+.3f}{half}", f"{line.noise:+.3f}", share)
        rows.append((TITLES.get(line.setting, line.setting), str(line.sites), *parts, *cells))
    head = ("setting", "sites", *(f"{part}, s" for part in PARTS), "HE adds, s", "training, s", "of Clara's raw round")
    return Table(
        "What HE adds to a round",
        head,
        rows,
        "Means over the rounds, each less the raw round of its turn; training: what is left, noise; ±: half of the "
        f"95 % interval. Clara's raw round is {published.ROUND_SECONDS:.0f} s.",
        _source(results),
    )


def many_table(results: Results) -> Table | None:
    """Return the run of many sites beside the published one, of kind ``"clara"``; None if it was not made."""
    many = results.data.get("many") or {"rows": ()}
    rows = []
    for row in many["rows"]:
        cells = []
        for step in ("encrypt", "decrypt", "upload"):
            ours, theirs = row[f"{step}_seconds"], published.MANY.get(row["setting"], {}).get(step)
            measured = row["setting"] != "raw" or step == "upload"
            cells.append(f"{fmean(ours):.3f} ± {stdev(ours) if len(ours) > 1 else 0:.3f}" if measured else NONE)
            cells.append(NONE if theirs is None else f"{theirs[0]:.2f} ± {theirs[1]:.2f}")
        message = published.MESSAGE_MB.get(row["setting"])
        sizes = (show_bytes(row["nbytes"]), NONE if message is None else f"{message} MB")
        rows.append((TITLES.get(row["setting"], row["setting"]), *sizes, *cells))
    if not rows:
        return None
    head = ("setting", "message", "Clara's", "encrypt, s", "Clara's", "decrypt, s", "Clara's", "upload, s", "Clara's")
    return Table(
        f"{many['sites']} sites: mean ± standard deviation",
        head,
        rows,
        "Clara's server was on AWS, and its sites' links differed.",
        _source(results),
    )


def growth_tables(results: Results) -> Iterator[Table]:
    """Yield slopes, limits and what ten thousand sites take, of kind ``"growth"``; those that have rows."""
    data, source = results.data, _source(results)
    if slopes := data["slopes"]:
        rows = [
            (
                _words(row["what"]),
                title_of(row["setting"]),
                f"{row['slope']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['r_squared']:.4f}",
            )
            for row in slopes
        ]
        note = "1 is in proportion, 0 does not depend; by least squares of the logarithms."
        yield Table("Fitted slopes", ("what", "setting", "slope", "95 % interval", "R²"), rows, note, source)
    if limits := data["limits"]:
        firsts = [(row["what"], _setting(row), _most(row.get("at")), row["why"]) for row in limits]
        note = " ".join(["A dash: more than were tried.", *data.get("breaks_first", ())])
        yield Table("What breaks first", ("what", "setting", "most sites", "why"), firsts, note, source)
    if extrapolation := data.get("extrapolation"):
        many = [
            (row["what"], _setting(row), _with_unit(row["value"], row["unit"]), row["how"]) for row in extrapolation
        ]
        sites = f"{extrapolation[0]['sites']:,} sites, {show_count(extrapolation[0]['parameters'])} parameters"
        yield Table(f"What {sites} take", ("what", "setting", "value", "how it is known"), many, "", source)


def sizes_table(folder: Folder, sites: str = "30") -> Table | None:
    """Return exact sizes by raw of each setting and model for so many sites; None if there is no ``sizes.csv``."""
    rows = [row for row in folder.sizes if row["sites"] == sites]
    models = {row["model"]: int(row["parameters"]) for row in rows}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        size = show_ratio(int(row["up_nbytes"]) / (4 * int(row["parameters"]))) if row["up_nbytes"] else NONE
        cells.setdefault(row["setting"], {})[row["model"]] = size
    if not cells:
        return None
    return Table(
        f"Updates by raw float32, {sites} sites",
        ("setting", *(f"{name}, {show_count(count)}" for name, count in models.items())),
        [(title_of(name), *(mine.get(model, NONE) for model in models)) for name, mine in cells.items()],
        "Exact, not measured: `benchmarks/sizes.csv` has the bytes, and other numbers of sites.",
        "make sizes",
    )


def _lines(results: Results) -> list[Any]:
    return [line for cell in results.data["cells"] if cell["seed"] == 0 for line in lines(cell)]


def _source(results: Results) -> str:
    return f"{results.command}; {show_source(results)}"


def _size(nbytes: float | None) -> str:
    return NONE if nbytes is None else show_bytes(nbytes)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _words(name: str) -> str:
    return name.replace("_nbytes", ", bytes").replace("_seconds", ", time").replace("_", " ")


def _setting(row: Mapping[str, Any]) -> str:
    return title_of(row["setting"]) if row.get("setting") else "any"


def _most(sites: float | None) -> str:
    return NONE if sites is None else f"{sites:,}"


def _with_unit(value: float, unit: str) -> str:
    return show_bytes(value) if unit == "B" else show_time(value) if unit == "s" else f"{show_number(value)} {unit}"
