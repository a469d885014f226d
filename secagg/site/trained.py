"""What a site has trained for a round, kept until its end: to wait for the scales of the round takes as long as others.

Beside it lies what is carried, so that whoever goes on encrypts what would have been encrypted. It is in the clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, SecAggError, StorageError
from ..storage.files import os_errors, replace_file
from ..wire.arrays import ArrayFormat
from ..wire.container import DIGEST_NBYTES, read_hex
from ..wire.header import check_round
from .folder import TRAINED_FILE
from .own_tensors import pack_own, storable, unpack_own

_FORMAT = ArrayFormat(
    "trained model", b"secagg trained v1", 2, frozenset(["round", "base", "weight", "metrics", "tensors"])
)


@dataclass(frozen=True)
class Trained:
    """A local model.

    Parameters
    ----------
    round : int
        For which it was trained.
    base : bytes
        What training began from.
    local : mapping of str to torch.Tensor or numpy.ndarray
        Its state dict; of what is stored, the tensors.
    weight : float
        Of the site in that round.
    metrics : mapping of str to float
        What the site has measured of the global model that training began from.
    """

    round: int
    base: bytes
    local: Mapping[str, Any] = field(repr=False)
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def keep(self, folder: Path) -> None:
        """Write it into a site's folder; `StorageError` if that cannot be done."""
        tensors, arrays = pack_own(storable(self.local))
        header = {
            "round": self.round,
            "base": self.base.hex(),
            "weight": float(self.weight),
            "metrics": dict(self.metrics),
            "tensors": tensors,
        }
        path = folder / TRAINED_FILE
        with os_errors(StorageError, f"cannot write {str(path)!r}"), replace_file(path, 0o600) as file:
            file.write(_FORMAT.pack(header, arrays))

    @classmethod
    def find(cls, folder: Path, round: int, base: bytes) -> Trained | None:
        """Return what was trained for a round that begins from `base`; None if there is nothing that can be used."""
        try:
            with os_errors(StorageError, "it cannot be read"):
                found = cls.from_bytes((folder / TRAINED_FILE).read_bytes())
        except SecAggError:
            return None  # it is trained again
        return found if (found.round, found.base) == (round, base) else None

    @classmethod
    def from_bytes(cls, blob: bytes) -> Trained:
        """Return what `keep` has written; `FormatError` if it is something else, or damaged."""
        return _FORMAT.unpack(blob, cls._build)

    @classmethod
    def _build(cls, header: dict[str, Any], arrays: list[NDArray[Any]]) -> Trained:
        weight = header["weight"]
        if not isinstance(weight, float) or not np.isfinite(weight):
            raise FormatError("the stored weight is no number")
        metrics = header["metrics"]
        if not isinstance(metrics, dict) or not all(isinstance(value, float) for value in metrics.values()):
            raise FormatError("the stored metrics are no numbers")
        base = read_hex(header["base"], DIGEST_NBYTES, "the base")
        return cls(check_round(header["round"]), base, unpack_own(header["tensors"], arrays), weight, metrics)
