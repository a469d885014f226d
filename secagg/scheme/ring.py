"""Modulo what each word of a block is added, and how many bytes the words take on the wire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import secagg_ext

from ..errors import ConfigError, FormatError
from .params import FLASHE_BLOCK_WORDS, LatticeParams, Params

#: Which implementation of the kernels runs: ``"cython"`` or ``"numpy"``.
KERNELS = secagg_ext.IMPLEMENTATION

#: Most bytes of a block: a frame, the unit of streaming, holds whole blocks.
MAX_BLOCK_NBYTES = 1 << 20

#: Words of a block of clear tensors.
CLEAR_BLOCK_SIZE = 4096


@dataclass(frozen=True)
class Ring:
    """The ring of one kind of block: `moduli`, one a row, and `degree` words a row.

    A ciphertext of CKKS has a row for each polynomial and prime, in SEAL's order; clear tensors have one row modulo
    2**64. On the wire the words of a row are bit-packed to the bits of their modulus.

    Parameters
    ----------
    moduli : tuple of int
        One modulus a row, 2 to 2**64.
    degree : int
        Words a row, a multiple of 8.
    """

    moduli: tuple[int, ...]
    degree: int

    def __post_init__(self) -> None:
        if self.block_nbytes > MAX_BLOCK_NBYTES:
            raise ConfigError(
                f"a block takes {self.block_nbytes} bytes, a frame holds {MAX_BLOCK_NBYTES}: use fewer or smaller "
                "coeff_mod_bit_sizes, or a smaller poly_modulus_degree"
            )

    @classmethod
    def of_update(cls, params: Params, primes: tuple[int, ...]) -> Ring:
        """Return the ring of an update's encrypted blocks; `primes` is the whole chain, special prime included.

        A block is a ciphertext of two polynomials, its c0 alone if `params` are seeded, or words modulo 2**64.
        """
        if not isinstance(params, LatticeParams):
            return cls((1 << 64,), FLASHE_BLOCK_WORDS)
        data = params.data_primes(primes)
        return cls(data if params.seeded else data + data, params.poly_modulus_degree)

    @property
    def block_size(self) -> int:
        """Words a block."""
        return len(self.moduli) * self.degree

    @property
    def takes_any(self) -> bool:
        """Whether packed words are words, and every word is below its modulus."""
        return set(self.moduli) == {1 << 64}

    @property
    def block_nbytes(self) -> int:
        """Bytes a block, packed."""
        return secagg_ext.block_nbytes(self.moduli, self.degree)

    def pack(self, words: NDArray[np.uint64], out: NDArray[np.uint8]) -> None:
        """Pack the words of whole blocks; a word that is not below its modulus raises `FormatError`."""
        self._refuse(secagg_ext.pack_words(words, self.moduli, self.degree, out))

    def unpack(self, packed: NDArray[np.uint8], out: NDArray[np.uint64]) -> None:
        """Unpack whole blocks; a word that is not below its modulus raises `FormatError`."""
        self._refuse(secagg_ext.unpack_words(packed, self.moduli, self.degree, out))

    def to_bytes(self, words: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """Return the words of whole blocks packed; errors as of `pack`."""
        if self.takes_any:
            return np.asarray(words.view(np.uint8))
        packed = np.empty(words.size // self.block_size * self.block_nbytes, dtype=np.uint8)
        self.pack(words, packed)
        return packed

    def from_bytes(self, packed: memoryview) -> NDArray[np.uint64]:
        """Return a copy of whole packed blocks as words; errors as of `unpack`."""
        if self.takes_any:
            return np.array(np.frombuffer(packed, np.uint64))
        words = np.empty(len(packed) // self.block_nbytes * self.block_size, dtype=np.uint64)
        self.unpack(np.frombuffer(packed, np.uint8), words)
        return words

    def check(self, packed: NDArray[np.uint8]) -> None:
        """Raise `FormatError` if a word of whole packed blocks is not below its modulus."""
        if not self.takes_any:
            self._refuse(secagg_ext.check_words(packed, self.moduli, self.degree))

    def add(self, total: NDArray[np.uint8], packed: NDArray[np.uint8]) -> None:
        """Add packed blocks to packed `total` in place; after an error as of `check`, it is of no use any more."""
        self._refuse(secagg_ext.add_words(total, packed, self.moduli, self.degree))

    @staticmethod
    def _refuse(index: int) -> None:
        if index >= 0:
            raise FormatError(f"word {index} of a frame is not below its modulus; not a ciphertext of these params")


def replace_mask(
    c0: NDArray[np.uint64],
    c1: NDArray[np.uint64],
    mask: NDArray[np.uint64],
    secret: NDArray[np.uint64],
    moduli: tuple[int, ...],
    degree: int,
) -> None:
    """Replace the polynomials c1 of symmetric ciphertexts by `mask`: add (c1 − mask)·s to `c0`, in place.

    Arrays hold the words of one polynomial a block, a row a modulus, `secret` those of one block; the time does not
    depend on what they are.
    """
    secagg_ext.replace_mask(c0, c1, mask, secret, moduli, degree)


#: The ring of clear tensors: fixed-point words modulo 2**64.
CLEAR_RING = Ring((1 << 64,), CLEAR_BLOCK_SIZE)
