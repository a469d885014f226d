"""A round of many sites that do not train: mean and deviation of what encryption, upload and decryption take."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...demo.children import Children
from ...scheme.tensors import to_array
from ...site import network_state
from .federations import start
from .task import RandomDifferences


def run_many(setting: str, network: str, sites: int, folder: Path) -> dict[str, Any]:
    """Take many sites of one setting through a round.

    Returns
    -------
    dict
        The setting, bytes of a message, the server's seconds to add them all, and the seconds of each site by step.
    """
    task = RandomDifferences(network)
    state = {name: to_array(name, value)[1].copy() for name, value in network_state(task.network).items()}
    with Children() as children, ExitStack() as stack:
        federation = start(setting, sites, folder / setting, children, stack)
        federation.join(state)
        cost = federation.take_part(task, 0)
    return {
        "setting": setting,
        "nbytes": cost.sites[0].nbytes,
        "add_seconds": cost.add,
        **{
            f"{step}_seconds": [getattr(site, step) for site in cost.sites]
            for step in ("encrypt", "upload", "download", "decrypt")
        },
    }
