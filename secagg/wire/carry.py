"""What error feedback carries from a site's update to its next, as bytes: see `secagg.wire.arrays`.

Residuals tell of a site's latest update what rounding dropped of it: they are its secrets as much as the update is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import FormatError, MismatchError
from ..scheme.feedback import Carry
from ..scheme.params import QuantisedParams
from .arrays import ArrayFormat
from .container import DIGEST_NBYTES, read_hex
from .header import check_round, check_site

_FORMAT = ArrayFormat("carry", b"secagg carry", 1, frozenset(["site", "units", "model", "round", "before", "after"]))


@dataclass(frozen=True)
class StoredCarry:
    """A carry with whose it is.

    Parameters
    ----------
    site : str
        Name of the site.
    units : mapping
        What decides the units of the residuals; see `units_of`.
    carry : Carry
        The carry.
    """

    site: str
    units: Mapping[str, Any]
    carry: Carry

    def to_bytes(self) -> bytes:
        """Return the whole of it."""
        carry = self.carry
        header = {
            "site": self.site,
            "units": dict(self.units),
            "model": carry.model,
            "round": carry.round,
            "before": len(carry.before),
            "after": len(carry.after),
        }
        return _FORMAT.pack(header, [*carry.before, *carry.after])

    @classmethod
    def from_bytes(cls, blob: bytes) -> StoredCarry:
        """Read it again.

        Raises
        ------
        FormatError
            If it is something else, or of another version (`DigestError` if it is damaged).
        """
        return _FORMAT.unpack(blob, cls._build)

    @classmethod
    def _build(cls, header: dict[str, Any], arrays: list[NDArray[Any]]) -> StoredCarry:
        before, after, units = header["before"], header["after"], header["units"]
        read_hex(header["model"], DIGEST_NBYTES, "the model's fingerprint")
        if before not in (0, after) or len(arrays) != before + after or not isinstance(units, dict):
            raise FormatError("the stored carry has other residuals than its header says")
        for array in arrays:
            if array.dtype != np.float32 or array.ndim != 1 or not np.isfinite(array).all():
                raise FormatError("the stored carry has residuals that are no finite float32")
        carry = Carry(header["model"], check_round(header["round"]), arrays[:before], arrays[before:])
        return cls(check_site(header["site"]), units, carry)

    def check(self, site: str, config: Config) -> None:
        """Raise `MismatchError` unless it is a site's, and in the units of its configuration."""
        if self.site != site:
            raise MismatchError(f"the carry is of site {self.site!r}, this is {site!r}: each site has its own")
        units = units_of(config)
        if not units or self.units != units:
            there = ", ".join(f"{name} {value}" for name, value in self.units.items())
            here = ", ".join(f"{name} {value}" for name, value in units.items()) or "no error_feedback"
            raise MismatchError(
                f"the carry was left under {there}, the configuration has {here}: go on without it (restore_carry(b''))"
            )


def units_of(config: Config) -> dict[str, Any]:
    """Return what decides the units of residuals under a configuration; nothing without error feedback."""
    params, aggregation = config.params, config.aggregation.to_dict()
    if not isinstance(params, QuantisedParams) or not params.error_feedback:
        return {}
    units = {name: aggregation[name] for name in ("max_abs", "max_weight")}
    return {"value_bits": params.value_bits, **units}
