"""``secagg inspect``: what a file says of itself, and what of a model travels in the clear."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import FormatError, show_time
from ..storage.files import os_errors
from ..trust.key import ClientKey, ServerKey, load_key
from ..trust.project import Project
from ..ui.units import show_count
from ..ui.words import lanes_rows, params_rows
from ..wire.container import PREAMBLE_NBYTES, container_kind
from ..wire.update import Update

EXAMPLE = """secagg inspect update.secagg
secagg inspect server/he-server.key
secagg inspect site-1/project.secagg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Show header, sizes, fingerprints and clear tensors of an update, aggregate, key or manifest; never a secret."""
    parser.add_argument(
        "file", type=Path, help="an update, an aggregate, a model, a client key, a server key or a project manifest"
    )


def run(options: argparse.Namespace) -> None:
    """Verify the file as far as that goes without a key, and describe it."""
    with os_errors(FormatError, f"cannot read {str(options.file)!r}"), options.file.open("rb") as file:
        preamble = file.read(PREAMBLE_NBYTES)
    kind = container_kind(preamble)
    if kind in ("client-key", "server-key"):
        _show_key(load_key(options.file))
    elif kind == "project":
        _show_project(Project.load(options.file))
    else:
        with Update.open(options.file) as update:
            _show_update(update)


def _show_key(key: ClientKey | ServerKey) -> None:
    secret = isinstance(key, ClientKey)
    _row("kind", "client key: decrypts every update, keep it from the server" if secret else "server key: no secret")
    _row("fingerprint", key.fingerprint)
    _row("epoch", _epoch(key.server.epoch if isinstance(key, ClientKey) else key.epoch))
    _rows(params_rows(key.params))


def _show_project(project: Project) -> None:
    _row("kind", "project manifest; its signature fits")
    _row("project", f"{project.name}, serial {project.serial}")
    _row("authority", project.authority.hex())
    _row("valid", f"{show_time(project.issued)} to {show_time(project.expires)}")
    _row("epoch", _epoch(project.epoch))
    _row("key", project.key)
    _row("layout", project.layout.fingerprint if project.layout else "not known beforehand")
    _rows(params_rows(project.config.params) + lanes_rows(project.config.params, project.config.aggregation))
    _row("members", f"the server and {len(project.sites)} sites")
    for member in (project.server, *project.sites):
        state = "REVOKED" if member.revoked else f"signs with {member.public.hex()}"
        print(f"  {member.name}  {state}, certificate {member.certificate}")


def _show_update(update: Update) -> None:
    header, layout = update.header, update.header.layout
    damaged = _damage(update)
    raw = 4 * (layout.size("encrypted") + layout.size("clear"))
    _row("kind", header.kind)
    _row("round", header.round)
    _row("epoch", _epoch(header.epoch))
    _row("sites", ", ".join(header.sites))
    _row("size", f"{update.nbytes:,} bytes in {show_count(header.frame_count, 'frame')}")
    _row("expansion", f"{update.nbytes / max(raw, 1):.2f} × the {raw:,} bytes that its values take as float32")
    _row("digests", damaged or "all fit")
    _row("key", header.key)
    _row("layout", layout.fingerprint)
    _rows(params_rows(header.params) + lanes_rows(header.params, header.aggregation))
    _row(
        "aggregation",
        ", ".join(f"{name} {value}" for name, value in header.aggregation.to_dict().items() if name != "min_clients"),
    )
    for role, meaning in (("encrypted", "encrypted"), ("clear", "IN THE CLEAR"), ("local", "stays at the site")):
        specs = layout.role(role)
        _row(meaning, f"{len(specs)} tensors, {layout.size(role):,} values")
        if role != "encrypted":
            for spec in specs:
                print(f"  {' = '.join(spec.names)}  {spec.dtype}{list(spec.shape)}")
    if damaged:
        raise FormatError(f"the {header.kind} is damaged: {damaged}")


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
