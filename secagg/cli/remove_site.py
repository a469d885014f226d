"""``secagg remove-site``: sites that take part no more."""

from __future__ import annotations

import argparse

from .change import add_options, change

EXAMPLE = "secagg remove-site kits site-2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Revoke sites, for good, and make a kit of the server that refuses them."""
    add_options(parser)
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a site")


def run(options: argparse.Namespace) -> None:
    """Make the server's kit and say what to do with it."""
    names = tuple(options.names)
    change(
        options,
        f"remove {', '.join(names)}",
        lambda provisioner, changed, kits: provisioner.remove(names, changed, kits),
    )
    listed, know = ", ".join(names), "knows" if len(names) == 1 else "know"
    print(
        f"unpack the server's kit over its old one and restart `secagg serve`: from then on it refuses {listed}\n"
        "an open round that has updates by then begins anew; the other sites encrypt again by themselves\n"
        f"{listed} still {know} the HE key of this epoch: if that is not as it should be, go on with `secagg rotate`"
    )
