"""Nonces that do not rest on fresh randomness alone.

A nonce stands for an update's pads and the polynomials of its ciphertexts, so two different updates must never share
one. Randomness of the operating system sees to that, but for a virtual machine that is restored from a snapshot and
draws the same bytes again. So a nonce is a pseudorandom function of that randomness and of all that is encrypted under
it: what was drawn twice then makes one nonce for the very same update only. The construction is the hedged one of
RFC 6979 (section 3.6) and of Bellare and Tackmann, "Nonce-Based Cryptography" (EUROCRYPT 2016).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..wire.container import DIGEST_NBYTES
from ..wire.header import NONCE_NBYTES, Contribution, Header
from .key import ClientKey

#: In the place of a nonce that has not been made yet.
NO_NONCE = bytes(NONCE_NBYTES)

#: What the library takes at a time is below 2**31 bytes.
_PIECE_NBYTES = 1 << 20


def with_nonce(key: ClientKey, draft: Header, content: Iterable[bytes | NDArray[Any]]) -> Header:
    """Return the header of a new update or model, with its nonce.

    Parameters
    ----------
    key : ClientKey
        The key of the pseudorandom function derives from it.
    draft : Header
        The header with `NO_NONCE`: it is part of what the nonce depends on, with site, round, scales and layout.
    content : iterable of bytes or ndarray
        All that is encrypted, and what decides how: weight, seed of the rounding, values, residuals. It is read once.
    """
    site, round = draft.site, draft.round.to_bytes(8, "little")
    fields = (secrets.token_bytes(NONCE_NBYTES), _hash(key, draft, content), site.encode(), round)
    return replace(draft, contributions=(Contribution(site, key.subkey(b"secagg nonce v1", *fields)),))


def _hash(key: ClientKey, draft: Header, content: Iterable[bytes | NDArray[Any]]) -> bytes:
    """Return 16 bytes that differ for two contents but with a probability of 2**-128 for each 16 bytes of them.

    GMAC (NIST SP 800-38D) under a secret key and a fixed nonce: GHASH is a universal hash, several times as fast as a
    digest, and all that a pseudorandom function needs before it. It is shown to nobody. The header says how long each
    part is, so that their concatenation is one of a kind.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    mac = Cipher(algorithms.AES256(key.subkey(b"secagg nonce content v1")), modes.GCM(bytes(12))).encryptor()
    mac.authenticate_additional_data(draft.head[-DIGEST_NBYTES:])
    for part in content:
        data = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part.view(np.uint8)
        for start in range(0, data.size, _PIECE_NBYTES):
            mac.authenticate_additional_data(data[start : start + _PIECE_NBYTES].data)
    mac.finalize()
    return mac.tag
