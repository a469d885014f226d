"""Models once more, from docs/wire-format.md: AES-256-GCM (NIST SP 800-38D) from single blocks of AES and integers."""

from __future__ import annotations

from typing import Any

import by_hand
from container import DIGEST_NBYTES, MODEL_BLOCK, MODEL_PLAIN, Container
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from tail_by_hand import values_of

#: x^128 = x^7 + x^2 + x + 1, with the bits of GCM's order.
REDUCTION = 0xE1 << 120


def model_key(header: dict[str, Any], key: Container) -> bytes:
    """The key of a model's blocks."""
    ((site, nonce),) = header["contributions"]
    fields = (site.encode("ascii"), bytes.fromhex(nonce))
    info = by_hand.info_of("secagg model v1", header["key"], header["epoch"], header["round"], *fields)
    return by_hand.derive(by_hand.root_of(key), info)


def decrypt(model: Container, key: Container) -> bytes:
    """All blocks, in the clear."""
    secret, head_digest, data = model_key(model.header, key), model.head[-DIGEST_NBYTES:], b"".join(model.payloads)
    blocks = []
    for index, start in enumerate(range(0, len(data), MODEL_BLOCK)):
        block, tag = data[start : start + MODEL_PLAIN], data[start + MODEL_PLAIN : start + MODEL_BLOCK]
        assert tag == gcm_tag(secret, index, block, head_digest)
        blocks.append(gcm_stream(secret, index, block))
    return b"".join(blocks)


def encrypt(model: Container, secret: bytes, plain: bytes, first: int = 0) -> list[bytes]:
    """Frames of a model, which here are one or none; the first block has the index `first`."""
    head_digest, blocks = model.head[-DIGEST_NBYTES:], []
    for index, start in enumerate(range(0, len(plain), MODEL_PLAIN), first):
        block = gcm_stream(secret, index, plain[start : start + MODEL_PLAIN])
        blocks.append(block + gcm_tag(secret, index, block, head_digest))
    return [b"".join(blocks)] if blocks else []


def plain_of(layout: list[Any], state: dict[str, Any]) -> bytes:
    """The values of a model, and zeros to a whole block."""
    return padded(values_of(layout, state))


def padded(plain: bytes) -> bytes:
    """Bytes, and zeros to a whole block."""
    return plain + bytes(-len(plain) % MODEL_PLAIN)


def gcm_stream(secret: bytes, index: int, data: bytes) -> bytes:
    """Counter mode from counter 2, behind the nonce: encrypts, and decrypts."""
    count = -(-len(data) // 16)
    nonce = index.to_bytes(12, "little")
    pad = _aes(secret, b"".join(nonce + counter.to_bytes(4, "big") for counter in range(2, 2 + count)))[: len(data)]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(len(data), "little")


def gcm_tag(secret: bytes, index: int, encrypted: bytes, also: bytes) -> bytes:
    """What authenticates encrypted bytes, and others beside them; here all are whole blocks of 16 bytes."""
    point, total = int.from_bytes(_aes(secret, bytes(16)), "big"), 0
    lengths = (8 * len(also)).to_bytes(8, "big") + (8 * len(encrypted)).to_bytes(8, "big")
    data = also + encrypted + lengths
    for start in range(0, len(data), 16):
        total = _multiply(total ^ int.from_bytes(data[start : start + 16], "big"), point)
    first = _aes(secret, index.to_bytes(12, "little") + (1).to_bytes(4, "big"))
    return (total ^ int.from_bytes(first, "big")).to_bytes(16, "big")


def _multiply(left: int, right: int) -> int:
    """Two elements of GF(2^128), whose highest bit has the lowest power."""
    total = 0
    for place in range(127, -1, -1):
        total ^= right * (left >> place & 1)
        right = right >> 1 ^ REDUCTION * (right & 1)
    return total


def _aes(secret: bytes, blocks: bytes) -> bytes:
    return Cipher(algorithms.AES256(secret), modes.ECB()).encryptor().update(blocks)
