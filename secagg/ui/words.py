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
        rows.append(
            ("values", f"{params.value_bits} bits, {params.rounding} rounding; those beyond their bound {beyond}")
        )
        if params.error_feedback:
            rows.append(("error feedback", "what rounding and clipping dropped is added to the site's next update"))
    return rows


def sum_rows(params: Params, aggregation: Aggregation) -> list[tuple[str, str]]:
    """Return where bounds come from, and how quantised values lie in words, as pairs like those of `params_rows`."""
    rows = [("precision", precision_words(aggregation))]
    if isinstance(params, QuantisedParams):
        codec = IntegerCodec(params, aggregation)
        lanes, each = codec.lanes, codec.lanes_a_value
        word = f"a slot of {params.plain_modulus_bits} bits" if isinstance(params, BGVParams) else "a word of 64 bits"
        room = f"each has room for the sum of {aggregation.max_clients} values"
        rows.append(("lanes", f"{lanes.per_word} of {lanes.bits} bits in {word}; {room}"))
        if each > 1:
            rows.append(("small tensors", f"{each} lanes a value of norms, biases and the like, of one dimension"))
    return rows


def precision_words(aggregation: Aggregation) -> str:
    """Return where the bounds of values, and of weights, come from."""
    weights = "" if aggregation.max_weight is None else f", weights at most {aggregation.max_weight:g}"
    if aggregation.precision == "auto":
        return f"auto: sites measure in each round how large values are, and nobody sees whose{weights}"
    if aggregation.precision == "previous":
        return f"previous: what sites measure in a round holds for the next one{weights}"
    bounds = aggregation.bounds
    several = f"{min(bounds):g} to {max(bounds):g}, by name" if len(bounds) > 1 else f"{bounds[0]:g}"
    return f"fixed: values at most {several} (max_abs){weights}"
