"""``secagg rotate``: a new HE key, and new certificates, for a whole federation."""

from __future__ import annotations

import argparse

from .change import add_options, change

EXAMPLE = """secagg rotate kits
secagg rotate kits --days 730"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make a HE key of the next epoch, new certificates and signing keys, and kits for all."""
    add_options(parser)
    parser.add_argument("--days", type=int, metavar="N", help="validity of the kits (default: as long as before)")


def run(options: argparse.Namespace) -> None:
    """Make the kits and say what to do with them."""
    project = change(
        options,
        "make a new HE key and certificates",
        lambda provisioner, changed, kits: provisioner.rotate(options.days, changed, kits),
    )
    print(
        f"stop `secagg serve` and the sites, unpack every kit over its old one, start again: epoch {project.epoch} "
        "goes on where the last one was\n"
        "the server refuses updates of the old epoch; sites keep its key, with which they read old models"
    )
