"""``secagg inspect``: what a file says of itself, and what of a model travels in the clear."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import FormatError, KeyFileError, StateError, one_line, show_time
from ..scheme.report import PrecisionReport
from ..setup.packing import MAGIC as KIT_MAGIC
from ..site.folder import CARRY_FILE
from ..site.own_tensors import own_from_bytes
from ..site.snapshot import Snapshot, carry_of
from ..site.trained import Trained
from ..storage.files import open_regular, os_errors
from ..storage.objects import is_url
from ..storage.pinned import shown
from ..trust.key import ClientKey, ServerKey, load_key
from ..trust.kit_files import CLIENT_KEY_FILE, PROJECT_FILE, SERVER_KEY_FILE, find_file, is_server_kit
from ..trust.project import Project
from ..ui.units import show_count
from ..ui.words import params_rows, sum_rows
from ..wire.carry import StoredCarry
from ..wire.container import DIGEST_NBYTES, PREAMBLE_NBYTES, container_kind
from ..wire.header import Header
from ..wire.update import Update
from .inspect_data import DATASET_FILE, show_data

EXAMPLE = """secagg inspect update.secagg
secagg inspect server/he-server.key server/project.secagg
secagg inspect site-1
secagg inspect site-1/carry
secagg inspect s3://bucket/round-3/site-1.secagg
secagg inspect Task09_Spleen/dataset.json"""

#: What a site keeps that is no container, and what reads it, all of it, so that what is damaged is not said to be well.
_KEPT: dict[str, Callable[[bytes], object]] = {
    "a site's global model, as of GlobalModel.to_bytes(): in the clear, it stays at the site": Snapshot.from_bytes,
    "what error feedback carries, as of Client.carry(): in the clear, it stays at the site": StoredCarry.from_bytes,
    "a site's own tensors: in the clear, they stay at the site": own_from_bytes,
    "what a site has trained, until the round has its scales: in the clear, it stays at the site": Trained.from_bytes,
}

#: What the table of a report says.
_REPORT_WORDS = (
    "bits: log2(1 + 2 · rms / step), what the typical value takes; clipped: values beyond the bound",
    "dropped: share of the energy that was left out by rounding and clipping",
    "residual: norm of what was left out, due in the next round",
)

#: What the kinds of container are.
_KINDS = {
    "update": "update: what a site sends in a round",
    "aggregate": "aggregate: the sum of updates",
    "calibration": "calibration: of which size a site's update will be, wholly encrypted",
    "scales": "scales: the sum of calibrations, by which updates are rounded",
    "model": "model: the global model, stored for sites that come back, wholly encrypted",
}
_ZIP_MAGIC = b"PK\x03\x04"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Show header, sizes, fingerprints and clear tensors of an update, aggregate, key or manifest; never a secret.

    Updates and sums may lie in an object store; all of it is read, since its digests are checked. Of what a site keeps,
    it shows how precisely the latest update was sent, tensor by tensor. Of a data set, it checks
    the labels, and proposes what sites that train on such data agree on.
    """
    parser.add_argument(
        "file",
        nargs="+",
        help="an update, an aggregate, a calibration, scales, or the URL of one of these, a model, a client key, a "
        "server key, a project manifest, a kit or its folder, what a site keeps, or the dataset.json of a Medical "
        "Segmentation Decathlon task",
    )


def run(options: argparse.Namespace) -> None:
    """Verify the files as far as that goes without a key, and describe them."""
    for number, name in enumerate(options.file):
        if len(options.file) > 1:
            print(*([""] if number else []), f"{shown(name) if is_url(name) else name}:", sep="\n", flush=True)
        if is_url(name):
            with Update.open(name) as update:
                _show_update(update)
        else:
            _inspect(Path(name))


def _inspect(path: Path) -> None:
    if path.is_dir():
        _show_folder(path)
        return
    if path.name == DATASET_FILE:
        show_data(path, _row)
        return
    with os_errors(FormatError, f"cannot read {str(path)!r}"), open_regular(path) as file:
        beginning = file.read(DIGEST_NBYTES + len(_ZIP_MAGIC))
    if beginning.startswith(KIT_MAGIC):
        _row("kind", f"an encrypted kit: open it with `secagg unpack {path}`")
        return
    if beginning.endswith(_ZIP_MAGIC) and len(beginning) == DIGEST_NBYTES + len(_ZIP_MAGIC):
        _show_kept(path)
        return
    kind = container_kind(beginning[:PREAMBLE_NBYTES])
    if kind in ("client-key", "server-key"):
        _show_key(load_key(path))
    elif kind == "project":
        _show_project(Project.load(path))
    else:
        with Update.open(path) as update:
            _show_update(update)


def _show_folder(folder: Path) -> None:
    try:
        server = is_server_kit(folder)
    except KeyFileError as error:
        data = f", such as {folder / DATASET_FILE}" if (folder / DATASET_FILE).is_file() else ""
        raise FormatError(f"{folder} is a folder, and no kit's: name a file in it{data}") from error
    key = find_file(folder, SERVER_KEY_FILE if server else CLIENT_KEY_FILE)
    _row("kind", f"the folder of {'the server' if server else 'a site'}'s kit: inspect what is in it")
    for path in (folder / PROJECT_FILE, key, *sorted(set(folder.glob("*.secagg")) - {folder / PROJECT_FILE})):
        print(f"  secagg inspect {path}")
    carry = folder / CARRY_FILE
    if carry.is_file() and not server:
        print(f"  secagg inspect {carry}\n", flush=True)
        _show_kept(carry)


def _show_kept(path: Path) -> None:
    with os_errors(FormatError, f"cannot read {str(path)!r}"):
        blob = path.read_bytes()
    for kind, read in _KEPT.items():
        try:
            kept = read(blob)
        except FormatError:
            continue
        except StateError:  # some of its tensors are those of a library that this command does not load
            kept = None
        _row("kind", kind)
        if isinstance(kept, StoredCarry):
            _row("site", kept.site)
            _row("round", kept.carry.round)
        elif isinstance(kept, Trained):
            _row("round", kept.round)
        elif isinstance(kept, Snapshot):
            _row("site", kept.site)
            _row("round", kept.round)
            _row("layout", kept.layout.fingerprint)
        _row("size", f"{len(blob):,} bytes")
        carry = _carry_in(kept, blob)
        _show_report(carry.report if carry else None)
        return
    raise FormatError(f"{path} looks like what a site keeps, and is damaged, or of another release")


def _carry_in(kept: object, blob: bytes) -> StoredCarry | None:
    """Return what error feedback carries, of all that a site keeps: alone, or with its global model."""
    if isinstance(kept, StoredCarry):
        return kept
    try:
        carry = carry_of(blob)
    except FormatError:  # its own tensors
        return None
    return StoredCarry.from_bytes(carry) if carry else None


def _show_report(report: PrecisionReport | None) -> None:
    """Show how precisely the site's latest update was sent, if that is known."""
    if report is not None:
        _row("update", f"of round {report.round}, how precisely it was sent: the tensor first that lost most")
        print("", report, "", *_REPORT_WORDS, sep="\n")


def _show_key(key: ClientKey | ServerKey) -> None:
    secret = isinstance(key, ClientKey)
    _row("kind", "client key: decrypts every update, keep it from the server" if secret else "server key: no secret")
    _row("fingerprint", key.fingerprint)
    _row("epoch", _epoch(key.server.epoch if isinstance(key, ClientKey) else key.epoch))
    _rows(params_rows(key.params))


def _show_project(project: Project) -> None:
    _row("kind", "project manifest; its signature fits")
    _row("project", f"{project.name}, serial {project.serial}")
    _row("manifest", project.digest.hex())
    _row("earlier", _earlier(project))
    _row("authority", project.authority.hex())
    _row("valid", f"{show_time(project.issued)} to {show_time(project.expires)}")
    _row("epoch", _epoch(project.epoch))
    _row("key", project.key)
    _row("layout", project.layout.fingerprint if project.layout else "not known beforehand")
    _rows(params_rows(project.config.params) + sum_rows(project.config.params, project.config.aggregation))
    _row("encrypt", one_line(str(project.config.encrypt.to_value())))
    for name in ("stay", "metrics"):
        if values := getattr(project.config, name):
            _row(name, one_line(", ".join(values)))
    if project.storage:
        _row("storage", ", ".join(project.storage))
    for name, value in (project.task or {}).items():
        _row("task", f"{name}: {one_line(str(value))}")
    _row("members", f"the server and {len(project.sites)} sites")
    for member in (project.server, *project.sites):
        state = "REVOKED" if member.revoked else f"signs with {member.public.hex()}"
        print(f"  {member.name}  {state}, certificate {member.certificate}")


def _show_update(update: Update) -> None:
    header, layout = update.header, update.header.layout
    damaged = _damage(update)
    raw = 4 * (layout.size("encrypted") + layout.size("clear"))
    values = header.kind not in ("calibration", "scales")
    _row("kind", _KINDS[header.kind])
    _row("round", header.round)
    _row("epoch", _epoch(header.epoch))
    _row("sites", ", ".join(header.sites))
    _row("size", f"{update.nbytes:,} bytes in {show_count(header.frame_count, 'frame')}")
    if values:
        _row("expansion", f"{update.nbytes / max(raw, 1):.2f} × the {raw:,} bytes that its values take as float32")
    _row("digests", damaged or "all fit")
    if header.kind != "model":  # those of a model are AES-GCM's, in each block
        _row("tags", f"{show_count(header.tag_count, 'tag')}, by which sites verify the sum")
        _row("manifest", "none: it is of no project" if header.manifest is None else header.manifest.hex())
    _row("key", header.key)
    _row("layout", layout.fingerprint)
    _rows(params_rows(header.params) + sum_rows(header.params, header.aggregation))
    if header.calibration is not None:
        _row("scales", f"{header.calibration.hex()}, those of its round")
    if values:
        _show_roles(header)
    else:
        _row("encrypted", f"in which half-octave the largest value lies, of {show_count(len(layout.sent), 'tensor')}")
    if damaged:
        raise FormatError(f"the {header.kind} is damaged: {damaged}")


def _show_roles(header: Header) -> None:
    """Show which tensors are encrypted, which of them travel in the clear, and which not at all."""
    layout = header.layout
    for role, meaning in (("encrypted", "encrypted"), ("clear", "IN THE CLEAR"), ("local", "stays at the site")):
        specs = layout.role(role)
        if header.kind == "model":  # nothing of it is in the clear, and what stays is not in it
            specs = layout.sent if role == "encrypted" else () if role == "clear" else specs
        _row(meaning, f"{show_count(len(specs), 'tensor')}, {sum(spec.size for spec in specs):,} values")
        if role != "encrypted":
            for spec in specs:
                print(f"  {' = '.join(spec.names)}  {spec.dtype}{list(spec.shape)}")


def _earlier(project: Project) -> str:
    if not project.earlier:
        return "none: it is the first one"
    return ", ".join(f"{item.digest.hex()[:16]}… ({item.revoked} revoked)" for item in project.earlier)


def _damage(update: Update) -> str | None:
    try:
        for _ in update.frames():
            pass
    except FormatError as error:
        return str(error)
    return None


def _epoch(epoch: int) -> str:
    return f"{epoch} of the federation's key"


def _rows(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        _row(name, text)


def _row(name: str, value: object) -> None:
    print(f"{name:<18} {value}")
