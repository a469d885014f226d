"""Uniform bytes and words from a short key: AES-256 in counter mode, from the library `cryptography`.

An update's nonce is such a key, and public: it stands for the polynomial c1 of all blocks of a seeded update. The
claim that c1 is as good as uniform then rests on AES as an ideal cipher. FLASHE's pads come from secret keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import secagg_ext

#: Bytes of keystream that are made at a time: few enough to stay in the caches, and so many that calls cost little.
PIECE_NBYTES = 1 << 18

_ZEROS = memoryview(bytes(PIECE_NBYTES))


class Keystream:
    """The keystream of one key from counter 0; reading on from where the last read ended is fastest.

    Parameters
    ----------
    key : bytes
        32 bytes, used for nothing else.
    """

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        self._position = 0

    def read(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the keystream from byte `offset`, a multiple of 16."""
        if offset != self._position:
            self._stream.reset_nonce((offset // 16).to_bytes(16, "big"))
        for start in range(0, out.size, PIECE_NBYTES):
            piece = out[start : start + PIECE_NBYTES]
            self._stream.update_into(_ZEROS[: piece.size], piece.data)
        self._position = offset + out.size


class Masks:
    """The polynomials c1 that nonces stand for.

    The keystream of a nonce holds a region for each block and, in it, for each row, one after another. A region is
    ``degree + slack`` candidates, each the low bits of a u64, as many as the row's modulus q has; the first ``degree``
    of them that are below q are the row. (Whole words cost more of AES, and less in all, than bit-packed ones.)

    Parameters
    ----------
    moduli : tuple of int
        The data primes.
    degree : int
        N, words a row.
    """

    def __init__(self, moduli: tuple[int, ...], degree: int) -> None:
        self._moduli, self._degree = moduli, degree
        self._slack = tuple(slack(modulus, degree) for modulus in moduli)
        #: Bytes of keystream a block.
        self.block_nbytes = 8 * sum(degree + extra for extra in self._slack)

    def add(self, streams: Sequence[Keystream], block: int, out: NDArray[np.uint64]) -> bool:
        """Add what each stream holds for whole blocks from the one of index `block` to `out`.

        Returns
        -------
        bool
            Whether every region held enough words. That it does not has a probability below 2**-100.
        """
        words = len(self._moduli) * self._degree
        step = max(1, 2 * PIECE_NBYTES // self.block_nbytes)  # blocks whose streams and sums stay in the caches
        buffer = np.empty(step * self.block_nbytes // 8, dtype=np.uint64)
        for first in range(0, out.size // words, step):
            sums = out[first * words : (first + step) * words]
            regions = buffer[: sums.size // words * self.block_nbytes // 8]
            for stream in streams:
                stream.read((block + first) * self.block_nbytes, regions.view(np.uint8))
                if secagg_ext.add_samples(regions, self._moduli, self._degree, self._slack, sums) >= 0:
                    return False
        return True


def slack(modulus: int, degree: int) -> int:
    """Return how many candidates beside the `degree` that are needed a region has.

    That is twice the expected number of those that are not below the modulus, and 64, in multiples of 8.
    """
    size = 1 << (modulus - 1).bit_length()
    expected = -(-2 * degree * (size - modulus) // modulus)
    return -(-(expected + 64) // 8) * 8
