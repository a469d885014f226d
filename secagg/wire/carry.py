"""What error feedback carries from a site's update to its next, as bytes: see `secagg.wire.arrays`.

Residuals tell of a site's latest update what rounding dropped of it: they are its secrets as much as the update is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import FormatError, MismatchError
from ..scheme.feedback import Carry
from ..scheme.params import QuantisedParams
from ..scheme.report import PrecisionReport
from .arrays import ArrayFormat
from .container import DIGEST_NBYTES, read_hex
from .header import check_round, check_site

_FORMAT = ArrayFormat("carry", b"secagg carry", 2, frozenset(["site", "model", "round", "before", "after", "report"]))


@dataclass(frozen=True)
class StoredCarry:
    """A carry with whose it is.

    Parameters
    ----------
    site : str
        Name of the site.
    carry : Carry
        The carry.
    report : PrecisionReport or None
        How precisely the update was sent that has left it.
    """

    site: str
    carry: Carry
    report: PrecisionReport | None = None

    def to_bytes(self) -> bytes:
        """Return the whole of it."""
        carry = self.carry
        header = {
            "site": self.site,
            "model": carry.model,
            "round": carry.round,
            "before": len(carry.before),
            "after": len(carry.after),
            "report": None if self.report is None else self.report.to_json(),
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
        before, after, report = header["before"], header["after"], header["report"]
        read_hex(header["model"], DIGEST_NBYTES, "the model's fingerprint")
        if before not in (0, after) or len(arrays) != before + after:
            raise FormatError("the stored carry has other residuals than its header says")
        for array in arrays:
            if array.dtype != np.float32 or array.ndim != 1 or not np.isfinite(array).all():
                raise FormatError("the stored carry has residuals that are no finite float32")
        carry = Carry(header["model"], check_round(header["round"]), arrays[:before], arrays[before:])
        return cls(check_site(header["site"]), carry, None if report is None else PrecisionReport.from_json(report))

    def check(self, site: str, config: Config) -> None:
        """Raise `MismatchError` unless it is a site's, whose configuration has error feedback."""
        if self.site != site:
            raise MismatchError(f"the carry is of site {self.site!r}, this is {site!r}: each site has its own")
        if not carries(config):
            raise MismatchError("the carry is of error_feedback, which the configuration has not: restore_carry(b'')")


def carries(config: Config) -> bool:
    """Return whether a configuration has error feedback."""
    return isinstance(config.params, QuantisedParams) and config.params.error_feedback
