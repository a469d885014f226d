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

from ..wire.container import DIGEST_NBYTES, digest
from ..wire.header import NONCE_NBYTES, Contribution, Header
from .key import ClientKey

#: In the place of a nonce that has not been made yet.
NO_NONCE = bytes(NONCE_NBYTES)


def with_nonce(key: ClientKey, draft: Header, content: Iterable[bytes | memoryview]) -> Header:
    """Return the header of a new update or model, with its nonce.

    Parameters
    ----------
    key : ClientKey
        The key of the pseudorandom function derives from it.
    draft : Header
        The header with `NO_NONCE`: it is part of what the nonce depends on, with site, round, scales and layout.
    content : iterable of bytes or memoryview
        All that is encrypted, and what decides how: weight and seed of the rounding, values, residuals, a tensor each.
        It is read once.
    """
    site = draft.site
    fields = (
        secrets.token_bytes(NONCE_NBYTES),
        digest(draft.head[-DIGEST_NBYTES:], map(digest, content)),  # each by itself: faster than through all tensors
        site.encode(),
        draft.round.to_bytes(8, "little"),
    )
    return replace(draft, contributions=(Contribution(site, key.subkey(b"secagg nonce v1", *fields)),))
