"""``secagg doctor``: whether a kit, the machine and the way to the server are as they must be."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ConfigError, SecAggError
from ..protocol.address import parse_address
from ..setup import packing
from ..trust.kit import ServerKit, load_kit
from ..ui.findings import Finding, examine
from . import passphrases, unpack

EXAMPLE = """secagg doctor site-1 --server fl.example.org:8443
secagg doctor server --address 0.0.0.0:8443 --run-dir /var/lib/secagg
secagg doctor site-1.kit"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Check a kit, the clock, the backend, the port and the way to the server, and say what is wrong."""
    parser.add_argument("kit", type=Path, help="a kit's folder, or FILE.kit")
    parser.add_argument("--server", metavar="HOST:PORT", help="of a site: where the server listens")
    parser.add_argument(
        "--address",
        default="127.0.0.1:8443",
        metavar="HOST:PORT",
        help="of the server: where it is to listen (default: 127.0.0.1:8443)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("run"),
        metavar="FOLDER",
        help="of the server: its run folder (default: run)",
    )
    passphrases.add_option(parser, "that of a FILE.kit is asked for")


def run(options: argparse.Namespace) -> int:
    """Print a line a check; the exit code is 1 if one failed."""
    for address in (options.server, options.address):
        if address is not None:
            parse_address(address)
    failed = 0
    for finding in _findings(options):
        print(finding, flush=True)
        failed += finding.level == "FAIL"
    print(f"{failed} of these failed" if failed else "nothing failed")
    return 1 if failed else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    if options.kit.is_dir():
        yield from _examine(options.kit, options)
        return
    passphrase = passphrases.ask(options.passphrase_file, options.kit)
    memory = "/dev/shm"  # noqa: S108 - a folder of our own in it, which only we can read
    with TemporaryDirectory(prefix="secagg-", dir=memory if os.access(memory, os.W_OK) else None) as room:
        files: dict[str, bytes] = {}

        def decrypt() -> str:
            files.update(unpack.read(options.kit, passphrase))
            return f"{options.kit} opens, nothing is missing"

        yield (finding := examine("file", decrypt))
        if finding.level != "FAIL":
            packing.write(files, Path(room))
            yield from _examine(Path(room), options)


def _examine(folder: Path, options: argparse.Namespace) -> Iterator[Finding]:
    from .doctor_kit import check_disk, check_kit
    from .doctor_network import check_port, check_server
    from .doctor_run_folder import check_run_folder

    failed = False
    for finding in check_kit(folder):
        failed = failed or finding.level == "FAIL"
        yield finding
    try:
        kit = load_kit(folder)
    except SecAggError:
        if not failed:
            raise
        return  # what is wrong has been said; nobody would talk to such a kit
    if isinstance(kit, ServerKit):
        if options.server is not None:
            raise ConfigError("--server is for a site's kit; of the server's, give --address")
        yield examine("run folder", lambda: check_run_folder(options.run_dir, kit))
        yield examine("disk", lambda: check_disk(options.run_dir, kit.project, server=True))
        yield examine("port", lambda: check_port(kit, options.address))
    else:
        yield examine("disk", lambda: check_disk(options.kit, kit.project, server=False))
        if options.server is None:
            yield Finding("warning", "server", "not tried; give --server HOST:PORT")
        else:
            yield from check_server(kit, options.server)
