"""Who is measured, in the order of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from ..settings import SETTINGS


@dataclass(frozen=True)
class Peer:
    """Whose roles are measured.

    Parameters
    ----------
    title : str
        For tables and figures.
    module : str
        Has the classes ``Site``, ``Server`` and ``Reader``.
    libraries : tuple of str
        What it needs, by the names of packages.
    group : str
        ``"secagg"``, ``"peer"``, or ``"raw"``, which hides nothing.
    phases : int
        How often each site sends something in a round.
    note : str
        What a reader of its numbers should know.
    """

    title: str
    module: str
    libraries: tuple[str, ...]
    group: str = "peer"
    phases: int = 1
    note: str = ""

    def load(self) -> ModuleType:
        """Import its module, and with it its libraries."""
        return import_module(f"{__package__}.{self.module}")


_ENVELOPE = "adds only; nothing is checked: no round, no site, no layout"

_OTHERS: Mapping[str, Peer] = {
    "float32": Peer("plain float32", "float32", ("numpy",), "raw"),
    "nvflare-raw": Peer("NVFlare, raw", "nvflare_raw", ("nvflare",), "raw"),
    "nvflare-he": Peer(
        "NVFlare HE", "nvflare_he", ("nvflare", "tenseal"), note="one CKKS vector a tensor, each with its context"
    ),
    "bare-tenseal": Peer("bare TenSEAL, CKKS, Clara's", "bare_tenseal", ("tenseal",), note=_ENVELOPE),
    "bare-pyfhel": Peer(
        "bare Pyfhel, CKKS, Clara's", "bare_pyfhel", ("Pyfhel",), note=f"{_ENVELOPE}; under the public key"
    ),
    "bare-seal": Peer("bare seal-python, CKKS, Clara's", "bare_seal", ("seal-python",), note=_ENVELOPE),
    "flower-secagg+": Peer(
        "Flower SecAgg+, its arithmetic",
        "flower_secagg",
        ("flwr",),
        phases=4,
        note="masks of a 32-bit seed (flwr #7522), Shamir shares; the server learns the mean",
    ),
}

#: Ours, by the names of their settings, and the library that each needs.
_OURS = {
    "tenseal": "tenseal",
    "seal-sums": "seal-python",
    "seal-bgv-16": "seal-python",
    "exact": "seal-python",
    "flashe-16": None,
    "flashe-11": None,
    "smallest": None,
}


def _ours(name: str, library: str | None) -> Peer:
    setting = SETTINGS[name]
    libraries = ("secagg", library) if library else ("secagg",)
    calibrates = not setting.fixed
    note = "calibration included" if calibrates else ""
    return Peer(f"secagg: {setting.title}", "ours", libraries, "secagg", 1 + calibrates, note)


PEERS: Mapping[str, Peer] = {**_OTHERS, **{name: _ours(name, library) for name, library in _OURS.items()}}
