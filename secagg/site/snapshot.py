"""A site's global model as bytes, from which a fresh process goes on; see `secagg.wire.arrays`.

The header has round, base, the layout, and which tensors are torch's. The arrays are the tensors of the layout, and
then the client's carry, which is bytes in a format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Encrypt
from ..errors import FormatError
from ..wire.arrays import ArrayFormat
from ..wire.container import DIGEST_NBYTES, read_hex
from ..wire.header import check_round
from ..wire.layout import Layout

_FORMAT = ArrayFormat("global model", b"secagg global model v1", 2, frozenset(["round", "base", "layout", "torch"]))

#: Of what is held: 16-bit floats are held as float32, and bfloat16 is none of NumPy's.
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Snapshot:
    """What `to_bytes` writes and `from_bytes` reads.

    Parameters
    ----------
    round : int
        The round that begins from the model.
    base : bytes
        What training of that round begins from, 32 bytes.
    arrays : mapping of str to ndarray
        The model, in order; floats are float32 or float64.
    torch : frozenset of str
        Names of the tensors that are torch's to their user.
    carry : bytes
        What `secagg.Client.carry` returned.
    """

    round: int
    base: bytes
    arrays: Mapping[str, NDArray[Any]]
    torch: frozenset[str]
    carry: bytes

    def to_bytes(self) -> bytes:
        """Return the whole of it."""
        header = {
            "round": self.round,
            "base": self.base.hex(),
            "layout": Layout.of(self.arrays, Encrypt()).to_json(),
            "torch": sorted(self.torch),
        }
        return _FORMAT.pack(header, [*self.arrays.values(), np.frombuffer(self.carry, np.uint8)])

    @classmethod
    def from_bytes(cls, blob: bytes) -> Snapshot:
        """Read it again.

        Raises
        ------
        FormatError
            If it is something else, or of another version (`DigestError` if it is damaged).
        """
        return _FORMAT.unpack(blob, cls._build)

    @classmethod
    def _build(cls, header: dict[str, Any], arrays: list[NDArray[Any]]) -> Snapshot:
        layout = Layout.from_json(header["layout"])
        specs = layout.tensors
        if any(spec.role != "local" and spec.dtype not in _FLOATS for spec in specs):
            raise FormatError(f"the stored global model has floats that are none of {', '.join(_FLOATS)}")
        if len(arrays) != len(specs) + 1:
            raise FormatError("the stored global model has other files than its header says")
        *tensors, carry = arrays
        for spec, array in zip(specs, tensors, strict=True):
            if (array.shape, array.dtype) != (spec.shape, np.dtype(spec.dtype)):
                raise FormatError(f"tensor {spec.name!r} of the stored global model is not what its header says")
        if carry.ndim != 1 or carry.dtype != np.uint8:
            raise FormatError("the carry in the stored global model is no bytes")
        torch = frozenset(header["torch"])
        if not torch <= {spec.name for spec in specs}:
            raise FormatError("the stored global model names tensors of torch's that it does not have")
        base = read_hex(header["base"], DIGEST_NBYTES, "the base")
        state = {spec.name: array for spec, array in zip(specs, tensors, strict=True)}
        return cls(check_round(header["round"]), base, state, torch, carry.tobytes())
