"""The global model as a container: every float tensor, under a key that only sites can derive.

Where HE is of no use: nothing is added here. Blocks are encrypted by AES-256-GCM (NIST SP 800-38D) from the library
`cryptography`, under a key of their own for each container, with the block's index as nonce and the head as what is
authenticated besides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DecryptionError
from ..storage.files import Writable
from ..wire.container import DIGEST_NBYTES
from ..wire.header import MODEL_BLOCK_NBYTES, MODEL_BLOCK_PLAIN_NBYTES, Header
from ..wire.update import Update, UpdateWriter
from .identity import Identity
from .key import ClientKey
from .nonces import with_nonce


def write_model(
    stream: Writable, draft: Header, key: ClientKey, vectors: Sequence[NDArray[Any]], identity: Identity | None
) -> None:
    """Encrypt the tensors of a model, in the order of its layout, to a stream; `draft` is its header without nonce."""
    header = with_nonce(key, draft, vectors)
    cipher = _Cipher(key, header)
    source = _Bytes(vectors)
    writer = UpdateWriter(stream, header)
    for frame in header.frames:
        payload = bytearray()
        for block in range(frame.first_block, frame.first_block + frame.blocks):
            plain = bytearray(MODEL_BLOCK_PLAIN_NBYTES)  # zeros behind the end
            source.copy(block * MODEL_BLOCK_PLAIN_NBYTES, memoryview(plain), into=True)
            payload += cipher.encrypt(block, bytes(plain))
        writer.write(frame, memoryview(payload))
    writer.finish(None, identity.sign if identity else None)


def read_model(model: Update, key: ClientKey, vectors: Sequence[NDArray[Any]]) -> None:
    """Decrypt a model into `vectors`, whose contents mean nothing if anything is raised.

    Raises
    ------
    DecryptionError
        If a block was not encrypted under this key, or changed.
    FormatError, DigestError
        If the model is damaged.
    """
    cipher = _Cipher(key, model.header)
    target = _Bytes(vectors)
    for frame, payload in model.frames():
        for index in range(frame.blocks):
            block = frame.first_block + index
            plain = cipher.decrypt(block, bytes(payload[index * MODEL_BLOCK_NBYTES : (index + 1) * MODEL_BLOCK_NBYTES]))
            target.copy(block * MODEL_BLOCK_PLAIN_NBYTES, memoryview(plain), into=False)


class _Cipher:
    """AES-256-GCM under a key that derives from the federation's, and from round, site and nonce."""

    def __init__(self, key: ClientKey, header: Header) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        contribution = header.contributions[0]
        fields = (header.round.to_bytes(8, "little"), contribution.site.encode(), contribution.nonce)
        self._cipher = AESGCM(key.subkey(b"secagg model v1", *fields))
        self._head = header.head[-DIGEST_NBYTES:]

    def encrypt(self, block: int, plain: bytes) -> bytes:
        return self._cipher.encrypt(block.to_bytes(12, "little"), plain, self._head)

    def decrypt(self, block: int, data: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(block.to_bytes(12, "little"), data, self._head)
        except InvalidTag:
            raise DecryptionError from None


class _Bytes:
    """The bytes of many vectors, one after another."""

    def __init__(self, vectors: Sequence[NDArray[Any]]) -> None:
        self._parts = [memoryview(vector.view(np.uint8)) for vector in vectors]  # type: ignore[arg-type]
        self._ends = list(accumulate(map(len, self._parts)))

    def copy(self, start: int, piece: memoryview, *, into: bool) -> None:
        """Copy bytes from `start` on `into` the piece, or out of it; what is behind the end is left."""
        stop = start + len(piece)
        for which in range(bisect_right(self._ends, start), len(self._parts)):
            end = self._ends[which]
            begin = end - len(self._parts[which])
            if begin >= stop:
                return
            low, high = max(start, begin), min(stop, end)
            mine, theirs = self._parts[which][low - begin : high - begin], piece[low - start : high - start]
            if into:
                theirs[:] = mine
            else:
                mine[:] = theirs
