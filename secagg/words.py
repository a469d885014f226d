"""The words of an update's frames: checked against their ring, and added without a key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError
from .scheme.params import LatticeParams, Params
from .scheme.ring import CLEAR_RING, Ring
from .wire.header import Frame


class FrameWords:
    """Checks and adds the payloads of frames, encrypted and clear ones.

    Parameters
    ----------
    params : Params
        Of the scheme.
    primes : tuple of int
        The chain of the key, special prime included; empty where the scheme has none.
    """

    def __init__(self, params: Params, primes: tuple[int, ...]) -> None:
        self._rings = {"encrypted": Ring.of_update(params, primes), "clear": CLEAR_RING}
        self._whole = isinstance(params, LatticeParams) and not params.seeded  # both polynomials are there

    @property
    def takes_any(self) -> bool:
        """Whether there is nothing to check: any bytes are words."""
        return all(ring.takes_any for ring in self._rings.values())

    def check(self, frame: Frame, payload: memoryview) -> None:
        """Raise `FormatError` if a word is not below its modulus, or a ciphertext is a plaintext anybody could read."""
        packed = np.frombuffer(payload, np.uint8)
        self._rings[frame.section].check(packed)
        self._refuse_plaintext(frame, packed)

    def add(self, frame: Frame, total: memoryview, payload: memoryview) -> None:
        """Add a payload that was checked to `total`, of the same size, in place."""
        self._rings[frame.section].add(np.frombuffer(total, np.uint8), np.frombuffer(payload, np.uint8))

    def check_and_add(self, frame: Frame, total: memoryview, payload: memoryview) -> None:
        """Do both, reading the words once; after an error, as of `check`, `total` is of no use any more."""
        self._refuse_plaintext(frame, np.frombuffer(payload, np.uint8))
        self.add(frame, total, payload)

    def _refuse_plaintext(self, frame: Frame, packed: NDArray[np.uint8]) -> None:
        if frame.section == "encrypted" and self._whole:
            for block in np.split(packed, frame.blocks):
                second = block[block.size // 2 :]
                if not (second[:64].any() or second.any()):  # a ciphertext is told by its first bytes
                    raise FormatError("a block is a plaintext where ciphertext belongs: its second polynomial is zero")
