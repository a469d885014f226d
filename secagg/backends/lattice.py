"""Backends of SEAL's kind, which encrypt and decrypt block by block; and seeds in place of c1."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, DecryptionError
from ..scheme.keystream import Keystream, Masks
from ..scheme.params import LatticeParams, Params
from ..scheme.ring import replace_mask
from ..trust.key import ClientKey
from ..wire.header import Contribution
from .base import Backend, Cipher

#: What libraries raise through pybind11 and Cython.
NATIVE_ERRORS = (ValueError, RuntimeError, TypeError, OverflowError)


class LatticeBackend(Backend):
    """A library whose ciphertexts are SEAL's words. Subclasses call ``super().__init__(params, key)`` first."""

    def __init__(self, params: Params, key: ClientKey) -> None:
        self.check_scheme(params)
        assert isinstance(params, LatticeParams)  # as all schemes of such a backend
        self._params = params
        material = key.secret_material()
        self._data = params.data_primes(material.primes)
        self._secret = np.ascontiguousarray(material.secret[: len(self._data)]).reshape(-1)
        self._masks = Masks(self._data, params.poly_modulus_degree)

    @abstractmethod
    def encrypt(self, slots: NDArray[Any]) -> NDArray[np.uint64]:
        """Encrypt one block.

        Parameters
        ----------
        slots : ndarray, shape (slot_count,)
            Plaintext block: float64 of CKKS, complex128 with complex slots, uint64 below the plain modulus of BGV.

        Returns
        -------
        ndarray of uint64, shape (2 * data primes * N,)
            Words of both polynomials in NTT form, a row of N words a prime. A buffer that the next call may use again.
        """

    @abstractmethod
    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[Any]:
        """Decrypt one block; the inverse of `encrypt`.

        Raises
        ------
        DecryptionError
            If the library refuses the words.
        """

    def cipher(self, round: int, contributions: Sequence[Contribution]) -> Cipher:
        """See `Backend.cipher`."""
        if self._params.seeded:
            return _SeededCipher(self, self._masks, self._secret, [item.nonce for item in contributions])
        return _WholeCipher(self)

    @property
    def plain_slots(self) -> int:
        """Slots of a plaintext block."""
        return self._params.slot_count

    @property
    def degree(self) -> int:
        """N, words a row."""
        return self._params.poly_modulus_degree

    @property
    def data_primes(self) -> tuple[int, ...]:
        """Primes that a ciphertext carries."""
        return self._data


class _WholeCipher:
    """Ciphertexts of two polynomials, block by block."""

    def __init__(self, backend: LatticeBackend) -> None:
        self._backend = backend

    def encrypt(self, block: int, plain: NDArray[Any]) -> NDArray[np.uint64]:
        backend = self._backend
        return np.concatenate([backend.encrypt(slots).copy() for slots in plain.reshape(-1, backend.plain_slots)])

    def decrypt(self, block: int, words: NDArray[np.uint64]) -> NDArray[Any]:
        size = 2 * len(self._backend.data_primes) * self._backend.degree
        return np.concatenate([self._backend.decrypt(one) for one in words.reshape(-1, size)])


class _SeededCipher:
    """Ciphertexts whose c1 a nonce generates.

    For a fresh public seed let a be the uniform polynomial that it generates. From a symmetric ciphertext (c0, c1) of
    the library, (c0 + (c1 − a)·s, a) is an encryption of the same plaintext with the same noise, distributed as if the
    library had drawn a itself: c0 = −c1·s + e + m becomes −a·s + e + m (docs/threat-model.md, "Seeded ciphertexts").
    """

    def __init__(
        self, backend: LatticeBackend, masks: Masks, secret: NDArray[np.uint64], nonces: Sequence[bytes]
    ) -> None:
        self._backend, self._masks, self._secret = backend, masks, secret
        self._streams = [Keystream(nonce) for nonce in nonces]

    def encrypt(self, block: int, plain: NDArray[Any]) -> NDArray[np.uint64]:
        backend = self._backend
        blocks = plain.reshape(-1, backend.plain_slots)
        masks = self._sum_masks(block, len(blocks))
        if masks is None:
            raise BackendError("the nonce gives too few words; encrypt again")
        words = np.empty((2, *masks.shape), dtype=np.uint64)
        for index, slots in enumerate(blocks):
            words[:, index] = backend.encrypt(slots).reshape(2, -1)
        c0, c1 = words.reshape(2, -1)
        replace_mask(c0, c1, masks.reshape(-1), self._secret, backend.data_primes, backend.degree)
        return c0

    def decrypt(self, block: int, words: NDArray[np.uint64]) -> NDArray[Any]:
        c0 = words.reshape(-1, self._secret.size)
        c1 = self._sum_masks(block, len(c0))
        if c1 is None:
            raise DecryptionError
        ciphertexts = np.concatenate([c0, c1], axis=1)
        return np.concatenate([self._backend.decrypt(one) for one in ciphertexts])

    def _sum_masks(self, block: int, blocks: int) -> NDArray[np.uint64] | None:
        """Return a row a block; None if a nonce gives too few words, which nobody finds in 2**100 attempts."""
        masks = np.zeros((blocks, self._secret.size), dtype=np.uint64)
        return masks if self._masks.add(self._streams, block, masks.reshape(-1)) else None
