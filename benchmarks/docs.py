"""The numbers in README.md and docs/: generated from benchmarks/results, and nowhere written by hand.

``python benchmarks/docs.py`` writes them anew, ``--check`` says what is not as it would be written. A page has blocks,
``<!-- begin NAME: COMMAND -->`` to ``<!-- end NAME -->``; COMMAND is what measures it. A block for which there are no
results stays as it is. Pictures that a page shows are in docs/benchmarks, and say which results they show.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from secagg.bench.report.chart import Chart
from secagg.bench.report.folder import Folder, read_folder
from secagg.bench.report.numbers import done, mid, show_bytes, show_count, show_number, show_source, show_time
from secagg.bench.report.sections import sections
from secagg.bench.report.shards import costs_table, server_tables, speed_tables
from secagg.bench.report.tables import Table, show_row_source, targets_table
from secagg.bench.results import Results
from secagg.errors import FormatError, SecAggError

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PICTURES = "benchmarks/results", "docs/benchmarks"
PAGES = ("README.md", "docs/backends.md", "docs/leakage.md", "docs/beyond-one-machine.md", "docs/benchmarks.md")
REMEDY = "run `make report`, and commit what it changes"

#: What stands after the name of a block is for readers.
_BLOCK = re.compile(r"(<!-- begin ([a-z-]+)(?:: [^>]*)? -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)

_PROTECTS = {
    "CKKS": "updates, weights and sums from the server. Decryptions tell about the key: keep means at the sites",
    "BGV": "updates, weights and sums from the server; decryptions are exact and tell nothing of the key",
    "FLASHE": "updates, weights and sums from the server; sums are exact",
}

#: The rows of README's table that nobody measures, of `_COLUMNS`.
_COLUMNS = ("nvflare-he", "bare-tenseal", "tenseal", "seal-bgv-16", "smallest")
_SCHEMES = ("CKKS", "CKKS", "CKKS, same params", "BGV, 16-bit values", "FLASHE, measured scales")
_TOLD = (
    ("HE library on the server", "yes", "yes", "no", "no", "no"),
    ("sites' weights", "the server sees them", "up to you", "encrypted", "encrypted", "encrypted"),
    ("plaintext, NaN, another key", "added, decrypted in silence", "up to you", *3 * ["typed error, sum unchanged"]),
    ("a server that changes a sum", "unnoticed", "unnoticed", *3 * ["caught"]),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail where something would change")
    options = parser.parse_args()
    try:
        changed = list(differences(ROOT) if options.check else write(ROOT))
    except SecAggError as error:
        print(error, file=sys.stderr)
        return 1
    print(*changed, sep="\n")
    if options.check and changed:
        print(REMEDY, file=sys.stderr)
    return int(options.check and bool(changed))


def differences(root: Path) -> Iterator[str]:
    """Yield what is not as `write` would have it: blocks of pages, and pictures."""
    folder = read_folder(root / RESULTS)
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        for name, old, new in _blocks(page, text, folder):
            if new != old:
                yield f"{page}, block {name}: not what {RESULTS} says"
    for chart in _charts(folder):
        path = root / PICTURES / f"{chart.name}.png"
        if not path.is_file():
            yield f"{PICTURES}/{chart.name}.png: not there"
            continue
        with Image.open(path) as picture:
            told = picture.info.get("Source")
        if told != chart.stamp:
            yield f"{PICTURES}/{chart.name}.png: shows other results than {RESULTS} has"


def write(root: Path) -> Iterator[str]:
    """Write what differs, and yield the paths."""
    folder = read_folder(root / RESULTS)
    wrong = " ".join(differences(root))
    for chart in _charts(folder):
        path = root / PICTURES / f"{chart.name}.png"
        if f"{chart.name}.png" in wrong:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(chart.png())
            yield f"{PICTURES}/{chart.name}.png"
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        blocks = {name: new for name, _, new in _blocks(page, text, folder)}
        found = _BLOCK.sub(lambda match, blocks=blocks: match[1] + blocks[match[2]] + match[4], text)
        if found != text:
            (root / page).write_text(found, encoding="utf-8")
            yield page


def _charts(folder: Folder) -> list[Chart]:
    return [chart for section in sections(folder) for chart in section.charts]


def _blocks(page: str, text: str, folder: Folder) -> Iterator[tuple[str, str, str]]:
    """Yield of each block its name, its text, and what that should be."""
    found = list(_BLOCK.finditer(text))
    if len(found) != text.count("<!-- begin ") or len(found) != text.count("<!-- end "):
        raise FormatError(f"{page}: a block has no end, or an end no block")
    for match in found:
        if match[2] not in GENERATORS:
            raise FormatError(f"{page}: there is no block {match[2]!r}; there are {', '.join(GENERATORS)}")
        new = GENERATORS[match[2]](folder)
        yield match[2], match[3], match[3] if new is None else f"{new.strip()}\n"


def readme_table(folder: Folder) -> str | None:
    """The small table: what NVFlare, TenSEAL alone, and three of ours take of the same model in one run."""
    if folder.peers is None:
        return None
    found = {row["name"]: row for row in done(folder.peers)}
    missing = [name for name in _COLUMNS if name not in found]
    if missing:
        raise FormatError(
            f"{RESULTS}/peers.json has no numbers of {', '.join(missing)}: README.md has a column for each"
        )
    rows = [found[name] for name in _COLUMNS]
    model = folder.peers.data["model"]
    head = (
        "",
        f"NVFlare {_version(rows[0])} HE",
        "TenSEAL alone",
        "secagg, `clara`",
        "secagg, BGV",
        "secagg, `smallest`",
    )
    cells = [
        ("scheme", *_SCHEMES),
        ("update", *(show_bytes(row["up_nbytes"]) for row in rows)),
        ("site: encrypt, serialize", *(show_time(mid(row["encode_seconds"])) for row in rows)),
        ("server: read, add one", *(show_time(mid(row["add_seconds"])) for row in rows)),
        ("server: memory", *(_size(row["server_peak_nbytes"]) for row in rows)),
        (f"largest error, values to {model['max_abs']:g}", *(_error(row["max_error"]) for row in rows)),
        *_TOLD,
    ]
    return (
        f"{model['name']}, {show_count(model['parameters'])} parameters, {show_bytes(model['raw_nbytes'])} of "
        f"float32, {folder.peers.data['sites']} sites, one run:\n\n{_markdown(Table('', head, cells))}\n\n"
        f"`{folder.peers.command}`: {show_source(folder.peers)}; "
        "[docs/benchmarks.md](docs/benchmarks.md), [docs/backends.md](docs/backends.md)."
    )


def backends_table(folder: Folder) -> str | None:
    """What an update costs under each backend."""
    results = folder.models.get("segresnet")
    if results is None:
        return None
    model, rows, before = results.data["model"], [], ""
    for row in done(results):
        protects = _PROTECTS.get(row["scheme"], "nothing")
        times = (show_time(mid(row[f"{step}_seconds"])) for step in ("encrypt", "add", "decrypt"))
        sizes = (show_bytes(row["up_nbytes"]), show_bytes(row["down_nbytes"]))
        told = "as above" if protects == before else protects
        ratio = f"{row['up_nbytes'] / model['raw_nbytes']:.2f}"
        rows.append((row["title"], *sizes, ratio, *times, show_number(row["max_error"]), told))
        before = protects
    head = ("backend", "up", "down", "× raw", "encrypt", "add", "decrypt", "largest error", "protects")
    return (
        f"SegResNet: {model['parameters']:,} parameters, {show_bytes(model['raw_nbytes'])} of float32, planned for "
        f"{results.data['sites']} sites; values, and max_abs where it is named, are to {model['max_abs']:g}. "
        f"Measured by `{results.command}`, {show_source(results)}; a time is the median of one update, or of a sum "
        "of two.\n\n" + _markdown(Table("", head, rows))
    )


def ratios_table(folder: Folder) -> str | None:
    """Every requirement of `make bench`; where each was measured is a footnote."""
    if folder.bench is None:
        return None
    found = folder.bench.data["targets"]
    places = list(dict.fromkeys(show_row_source(row) for row in found))
    cells = []
    for row, (title, measured, target, met, detail, _) in zip(found, targets_table([folder.bench]).rows, strict=True):
        place = str(places.index(show_row_source(row)) + 1)
        cells.append((title, measured, target, met, detail, place))
    notes = "; ".join(f"{number}: {place}" for number, place in enumerate(places, 1))
    table = _markdown(Table("", ("", "measured", "target", "", "from", "on"), cells))
    return f"{table}\n\nMeasured on {notes}."


def nvflare_text(folder: Folder) -> str | None:
    """What NVFlare's HE takes of the same model."""
    if folder.peers is None:
        return None
    row = next((row for row in done(folder.peers) if row["name"] == "nvflare-he"), None)
    if row is None:
        raise FormatError(f"{RESULTS}/peers.json has no numbers of nvflare-he: docs/backends.md tells them")
    error = f"; largest error {_error(row['max_error'])}"
    encode, add, finish = (show_time(mid(row[f"{step}_seconds"])) for step in ("encode", "add", "finish"))
    sites = folder.peers.data["sites"]
    return (
        f"NVFlare {_version(row)} with the same model, its own classes (`{folder.peers.command}`, "
        f"{show_source(folder.peers)}, medians): encrypt and serialize {encode}, {show_bytes(row['up_nbytes'])} up and "
        f"{show_bytes(row['down_nbytes'])} down; the server takes {add} to read and add an update, {finish} to scale "
        f"the sum, and {_size(row['server_peak_nbytes'])} of memory for {sites} sites{error}. It sends one vector and "
        "one context a layer, and lets the server see the weights."
    )


def targets_text(folder: Folder) -> str | None:
    """What was to be shown beside peers, and of Clara's tables."""
    files = [results for results in (folder.peers, folder.clara) if results is not None]
    if not files:
        return None
    table = targets_table(files)
    return f"{table.caption}.\n\n{_markdown(table)}"


def section_text(name: str) -> Callable[[Folder], str | None]:
    """Return what generates the figures and tables of a section of the report."""

    def generate(folder: Folder) -> str | None:
        section = next(section for section in sections(folder) if section.name == name)
        parts = [
            f"![{chart.alt}](benchmarks/{chart.name}.png)\n\n**{chart.title}.** {chart.note} "
            f"`{chart.command}`, {chart.source}."
            for chart in section.charts
        ]
        return "\n\n".join([*parts, *map(_told, section.tables)]) or None

    return generate


def shards_text(choose: Callable[[Results], Iterable[Table]]) -> Callable[[Folder], str | None]:
    """Return what generates some of the tables of a round that is added where its updates lie."""

    def generate(folder: Folder) -> str | None:
        tables = [] if folder.shards is None else choose(folder.shards)
        return "\n\n".join(map(_told, tables)) or None

    return generate


def _told(table: Table) -> str:
    command, _, place = table.source.partition("; ")
    source = f"`{command}`, {place}." if place else f"`{command}`."
    return f"**{table.caption}.**\n\n{_markdown(table)}\n\n{' '.join(filter(None, (table.note, source)))}"


def _markdown(table: Table) -> str:
    head, *rows = (
        [cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in (table.head, *table.rows)
    )
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _version(row: Mapping[str, Any]) -> str:
    """The number of the first library: of "nvflare 2.9.0, tenseal 0.3.15" it is 2.9.0."""
    return str(row["version"]).partition(",")[0].rpartition(" ")[2]


def _size(nbytes: Any) -> str:
    return "–" if nbytes is None else show_bytes(nbytes)


def _error(value: Any) -> str:
    return "–" if value is None else show_number(value)


GENERATORS: Mapping[str, Callable[[Folder], str | None]] = {
    "readme": readme_table,
    "backends": backends_table,
    "ratios": ratios_table,
    "nvflare": nvflare_text,
    "targets": targets_text,
    **{name: section_text(name) for name in ("peers", "clara", "growth", "gate", "leakage", "sizes")},
    "shards-server": shards_text(server_tables),
    "shards-speed": shards_text(speed_tables),
    "shards-costs": shards_text(lambda results: [costs_table(results)]),
    "models": section_text("backends"),
}


if __name__ == "__main__":
    sys.exit(main())
