"""``secagg add-site``: sites that join a federation later."""

from __future__ import annotations

import argparse

from .change import add_options, change

EXAMPLE = "secagg add-site kits site-4 site-5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make kits for new sites, and one for the server that admits them."""
    add_options(parser)
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a site; not one that was removed")


def run(options: argparse.Namespace) -> None:
    """Make the kits and say what to do with them."""
    names = tuple(options.names)
    change(options, f"add {', '.join(names)}", lambda provisioner, changed, kits: provisioner.add(names, changed, kits))
    print(
        "unpack the server's kit over its old one and restart `secagg serve`; "
        "the other sites get the new manifest from the server\n"
        "if the open round has updates by then, the new ones take part from the next round on"
    )
