"""Every ``he`` block that is measured, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..scheme.presets import PRESETS, is_exact

#: Those of NVIDIA Clara Train.
CLARA: Mapping[str, Any] = PRESETS["clara"]["config"]

#: For sums only: one data prime, which is all that an addition needs.
_SUMS = {"poly_modulus_degree": 4096, "scale_bits": 34, "scheme": "CKKS", "complex_slots": True}


@dataclass(frozen=True)
class Setting:
    """A way to encrypt.

    Parameters
    ----------
    title : str
        For tables and figures.
    he : mapping
        The ``he`` block.
    fixed : bool
        Whether values have a bound that the configuration names; else each round measures how large they are.
    """

    title: str
    he: Mapping[str, Any]
    fixed: bool = True

    def config(self, sites: int, encrypt: Any = "all", **aggregation: float) -> Config:
        """Return the configuration for so many sites; values to 8 and weights to 1, where they are bounded."""
        limits = {"max_abs": 8.0, "max_weight": 1.0} if self.fixed else {}
        numbers = {"min_clients": min(sites, 2), "max_clients": sites, **limits, **aggregation}
        return Config.from_dict({"he": dict(self.he), "encrypt": encrypt, "aggregation": numbers})


def _of(title: str, lib: str, **config: Any) -> Setting:
    return Setting(title, {"lib": lib, "config": config})


#: In the order of tables.
SETTINGS: Mapping[str, Setting] = {
    "tenseal": _of("tenseal, CKKS, Clara's", "tenseal", **CLARA),
    "seal": _of("seal, CKKS, Clara's", "seal", **CLARA),
    "pyfhel": _of("pyfhel, CKKS, Clara's", "pyfhel", **CLARA),
    "tenseal-sums": _of("tenseal, CKKS for sums", "tenseal", **_SUMS, coeff_mod_bit_sizes=[45]),
    "seal-sums": _of("seal, CKKS for sums", "seal", **_SUMS, coeff_mod_bit_sizes=[45]),
    "pyfhel-sums": _of("pyfhel, CKKS for sums", "pyfhel", **_SUMS, coeff_mod_bit_sizes=[45, 45]),
    "seal-bgv-16": _of("seal, BGV, 16 bits", "seal", scheme="BGV", value_bits=16),
    "seal-bgv-10": _of("seal, BGV, 10 bits", "seal", scheme="BGV", value_bits=10, error_feedback=True),
    "pyfhel-bgv-16": _of("pyfhel, BGV, 16 bits", "pyfhel", scheme="BGV", value_bits=16),
    "flashe-16": _of("flashe, 16 bits", "flashe", value_bits=16),
    "flashe-11": _of("flashe, 11 bits", "flashe", value_bits=11, error_feedback=True),
    **{
        name: Setting(f"preset {name}, measured scales", {"preset": name}, fixed=False)
        for name, block in PRESETS.items()
        if is_exact(block)
    },
}
