"""FLASHE: words under one-time pads modulo 2**64, after Jiang et al., arXiv 2109.00675, with a single mask.

The pad of an update is the AES-256-CTR keystream of a key of its own, which HKDF-SHA256 derives from the key of the
federation and from (federation, epoch, round, site, nonce). Who has that key rebuilds the pads of all contributions of
a sum and takes them off. A fresh nonce for every encryption makes every pad one of its own, so that encrypting a round
again is safe.

What it does not have: integrity of its own (a changed ciphertext changes the sum in the same places;
`secagg.trust.tags` is what notices), public-key encryption (who can encrypt can decrypt), and keys of single sites: all
sites share one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scheme.keystream import PIECE_NBYTES, Keystream
from ..scheme.params import FLASHE_BLOCK_WORDS, Params
from ..trust.key import ClientKey, KeyMaterial
from ..wire.header import Contribution
from .base import SHARED_KEY_TRUST, Backend, Cipher


class FLASHEBackend(Backend):
    """One key, from which the keys of all updates derive."""

    id = "flashe"
    schemes = ("FLASHE",)
    trust = SHARED_KEY_TRUST
    module = "cryptography"
    symmetric = True

    def __init__(self, params: Params, key: ClientKey) -> None:
        self.check_scheme(params)
        self.library()
        self._key = key

    @classmethod
    def generate(cls, params: Params) -> KeyMaterial:
        """Return no words: pads derive from the root that every key has."""
        cls.check_scheme(params)
        cls.library()
        return KeyMaterial((), np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))

    def cipher(self, round: int, contributions: Sequence[Contribution]) -> Cipher:
        """See `Backend.cipher`."""
        return _PadCipher([Keystream(self._subkey(round, item)) for item in contributions])

    def _subkey(self, round: int, contribution: Contribution) -> bytes:
        fields = (round.to_bytes(8, "little"), contribution.site.encode(), contribution.nonce)
        return self._key.subkey(b"secagg flashe pad v1", *fields)


class _PadCipher:
    """Words plus the pad of one contribution, or minus those of all."""

    def __init__(self, streams: Sequence[Keystream]) -> None:
        self._streams = streams
        self._pad = np.empty(PIECE_NBYTES // 8, dtype=np.uint64)

    def encrypt(self, block: int, plain: NDArray[Any]) -> NDArray[np.uint64]:
        self._each_piece(np.add, block, plain)
        return plain

    def decrypt(self, block: int, words: NDArray[np.uint64]) -> NDArray[Any]:
        self._each_piece(np.subtract, block, words)
        return words

    def _each_piece(self, operation: np.ufunc, block: int, words: NDArray[np.uint64]) -> None:
        """Add or subtract (modulo 2**64, as NumPy does) a piece of every pad at a time: sums stay in the caches."""
        for start in range(0, words.size, self._pad.size):
            piece = words[start : start + self._pad.size]
            pad = self._pad[: piece.size]
            pad_bytes, offset = pad.view(np.uint8), 8 * (block * FLASHE_BLOCK_WORDS + start)
            for stream in self._streams:
                stream.read(offset, pad_bytes)
                operation(piece, pad, out=piece)
