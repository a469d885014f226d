"""Params, and other numbers, in words that a person understands."""

from __future__ import annotations

from ..scheme.aggregation import Aggregation
from ..scheme.integer_codec import IntegerCodec
from ..scheme.params import BGVParams, CKKSParams, FLASHEParams, LatticeParams, Params, QuantisedParams

#: What each scheme is, in a few words.
SCHEME_WORDS = {
    CKKSParams.scheme: "approximate sums of real numbers, on a lattice",
    BGVParams.scheme: "exact sums of quantised values, on a lattice",
    FLASHEParams.scheme: "exact sums of quantised values, under one-time pads of AES-256",
}


def security(params: Params) -> str:
    """Return the level of security in two words."""
    return "128-bit" if isinstance(params, LatticeParams) else "AES-256"


def params_rows(params: Params) -> list[tuple[str, str]]:
    """Return what params mean, as pairs of a short name and a text."""
    rows = [("scheme", f"{params.scheme}: {SCHEME_WORDS[params.scheme]}")]
    if isinstance(params, LatticeParams):
        data = " + ".join(map(str, params.data_bit_sizes))
        special = f", special prime of {params.coeff_mod_bit_sizes[-1]}" if params.has_special_prime else ""
        rows.append(("ring", f"degree {params.poly_modulus_degree}, primes of {data} bits{special}"))
        rows.append(("security", "128 bits, classical (ePrint 2024/463)"))
        sent = "one polynomial, the update's nonce stands for the other" if params.seeded else "both polynomials"
        rows.append(("seeded", f"{'yes' if params.seeded else 'no'}: a ciphertext is sent as {sent}"))
    else:
        rows.append(("security", "AES-256; each update has a pad of its own"))
    if isinstance(params, CKKSParams):
        each = "two values, as a complex number" if params.complex_slots else "one value"
        rows.append(("slots", f"{params.slot_count:,} a block, each {each}, at scale 2^{params.scale_bits}"))
    if isinstance(params, QuantisedParams):
        beyond = "are clipped and counted" if params.overflow == "clip" else "are an error"
        rows.append(("values", f"{params.value_bits} bits, {params.rounding} rounding; those beyond max_abs {beyond}"))
        if params.error_feedback:
            rows.append(("error feedback", "what rounding dropped is added to the site's next update"))
    return rows


def lanes_rows(params: Params, aggregation: Aggregation) -> list[tuple[str, str]]:
    """Return how quantised values lie in words, as one pair like those of `params_rows`; none of CKKS."""
    if not isinstance(params, QuantisedParams):
        return []
    lanes = IntegerCodec(params, aggregation).lanes
    word = f"a slot of {params.plain_modulus_bits} bits" if isinstance(params, BGVParams) else "a word of 64 bits"
    room = f"each has room for the sum of {aggregation.max_clients} values"
    return [("lanes", f"{lanes.per_word} of {lanes.bits} bits in {word}; {room}")]
