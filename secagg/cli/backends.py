"""``secagg backends``: what can stand behind ``he.lib``."""

from __future__ import annotations

import argparse

from ..backends.registry import available_backends
from ..errors import BackendUnavailableError
from ..scheme.ring import KERNELS
from ..ui.words import SCHEME_WORDS

EXAMPLE = "secagg backends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """List the backends, their libraries, and whom each one trusts."""


def run(options: argparse.Namespace) -> None:
    """Print a paragraph a backend; an unavailable one is an error only if there is no other."""
    found = available_backends()
    for lib, info in found.items():
        library = f"{info.library or 'its library'} {info.version or 'of unknown version'}"
        state = f"available, by {library}" if info.available else "NOT AVAILABLE"
        print(f"{lib}: {state}")
        if info.schemes:
            for scheme, title in zip(info.schemes, ("schemes", *("" for _ in info.schemes)), strict=False):
                print(f"  {title:<8} {scheme:<7} {SCHEME_WORDS.get(scheme, 'of a plug-in')}")
        print(f"  trust    {info.trust}")
        if info.problem:
            print(f"  problem  {info.problem}")
    print(f"kernels: {KERNELS}")
    if not any(info.available for info in found.values()):
        raise BackendUnavailableError("no backend is available: pip install 'secagg[tenseal]'")
