"""From what a configuration says to whole params: presets, defaults, and BGV params as small as is provably safe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigError, show
from .aggregation import Aggregation
from .lanes import lanes_below
from .noise import bgv_fits
from .params import (
    MAX_COEFF_MOD_BITS,
    MAX_PRIME_BITS,
    MAX_VALUE_BITS,
    BGVParams,
    CKKSParams,
    FLASHEParams,
    Params,
    known_fields,
    min_prime_bits,
    prime_floor,
)
from .plugins import load_plugin

#: ``he: {preset: NAME}``.
PRESETS: dict[str, dict[str, Any]] = {
    "clara": {
        "lib": "tenseal",
        "config": {
            "scheme": "CKKS",
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [60, 40, 40],
            "scale_bits": 40,
        },
    },
    "exact": {"lib": "seal", "config": {"scheme": "BGV"}},
    "smallest": {"lib": "flashe", "config": {"scheme": "FLASHE"}},
}

#: What presets of exact schemes say besides, where ``max_abs`` is given.
_FIXED: dict[str, dict[str, Any]] = {
    "exact": {"value_bits": 16},
    "smallest": {"value_bits": 11, "error_feedback": True},
}

#: What an exact scheme does where scales are measured: what is rounded or clipped away is due in the next round.
_MEASURED = {"rounding": "nearest", "overflow": "clip", "error_feedback": True}

#: Where ``value_bits`` is not given: as many as cost no more bytes than these.
LEAST_BITS = 6

#: What is planned together, or given together.
_PLANNED = ("poly_modulus_degree", "coeff_mod_bit_sizes", "plain_modulus_bits")


def preset(name: object, precision: str) -> dict[str, Any]:
    """Return the ``he`` block of a preset for a ``precision``; an unknown one raises `ConfigError`."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"he.preset is {show(name)}; use {', '.join(PRESETS)}, or lib and config")
    block = PRESETS[name]
    return block | {"config": block["config"] | _FIXED.get(name, {})} if precision == "fixed" else block


def is_exact(he: Mapping[str, Any]) -> bool:
    """Return whether an ``he`` block, or what it is a preset of, is of an exact scheme; errors come later."""
    he = PRESETS.get(str(he.get("preset")), he)
    config = he.get("config")
    scheme = config.get("scheme") if isinstance(config, Mapping) else None
    if scheme is None:
        scheme = _scheme_of(str(he.get("lib")))
    return scheme in (BGVParams.scheme, FLASHEParams.scheme)


def plan_params(lib: str, config: Mapping[str, Any], aggregation: Aggregation) -> Params:
    """Return whole params from an ``he.config`` block that may leave out what follows from the rest.

    Parameters
    ----------
    lib : str
        Id of the backend: it has a scheme of its own if it knows only one, and says whether ciphertexts are seeded.
    config : mapping
        ``he.config``.
    aggregation : Aggregation
        BGV params are planned for its ``max_clients``.

    Raises
    ------
    ConfigError
        If anything is unknown, missing or out of range.
    BackendUnavailableError
        If the backend must be asked for a default and its module cannot be imported.
    """
    block = dict(config)
    if "scheme" not in block:
        block["scheme"] = _scheme_of(lib)
    scheme = block["scheme"]
    exact = scheme in (BGVParams.scheme, FLASHEParams.scheme)
    if exact and aggregation.calibrated:
        block = _MEASURED | block
    if scheme in (CKKSParams.scheme, BGVParams.scheme) and "seeded" not in block:
        backend = load_plugin(lib)
        if scheme not in backend.schemes:
            raise ConfigError(f"backend {lib!r} knows {', '.join(backend.schemes)}, not {scheme}")
        block["seeded"] = backend.symmetric
    if not exact or any(name not in known_fields(scheme) for name in block):
        return Params.from_dict(block)
    if "value_bits" in block:
        choices = [block["value_bits"]]
    elif aggregation.calibrated:
        choices = list(range(LEAST_BITS, MAX_VALUE_BITS + 1))
    else:
        raise ConfigError(
            "he.config needs 'value_bits' where aggregation.max_abs is given; leave out both, and each round measures "
            "how large values are, and takes the bits that cost the least"
        )
    return Params.from_dict(_planned(block, choices, aggregation.max_clients))


def _planned(block: dict[str, Any], choices: list[int], sites: int) -> dict[str, Any]:
    """Return a block with the most bits of these that cost no more than the first, and with the moduli they need."""
    least, best = math.inf, block
    for bits in choices:
        limit = FLASHEParams(value_bits=bits).limit  # what is planned depends on a number that must be valid itself
        found = block | {"value_bits": bits}
        if block["scheme"] == BGVParams.scheme and not any(name in block for name in _PLANNED):
            found |= plan_bgv(limit, sites, block["seeded"] is True)
        cost = _bits_a_value(found, limit, sites)
        if bits != choices[0] and not cost <= least < math.inf:  # the cost never falls
            break
        least, best = cost, found
    return best


def _bits_a_value(block: Mapping[str, Any], limit: int, sites: int) -> float:
    """Return what a value costs; infinity where the block is not valid, or has no room for a sum."""
    try:
        params = Params.from_dict(block)
    except ConfigError:  # whoever makes params of it says so
        return math.inf
    modulus, bits = 1 << 64, 64
    if isinstance(params, BGVParams):
        modulus, bits = prime_floor(params.plain_modulus_bits), sum(params.data_bit_sizes)
    lanes = lanes_below(modulus, limit, sites)
    return bits / lanes if lanes else math.inf


def _scheme_of(lib: str) -> str:
    """Return the scheme of a backend where none is named."""
    schemes = load_plugin(lib).schemes
    return CKKSParams.scheme if CKKSParams.scheme in schemes else schemes[0]


def plan_bgv(limit: int, sites: int, symmetric: bool) -> dict[str, Any]:
    """Return the BGV params with the fewest bits a value whose noise provably survives the sum of `sites` updates.

    Parameters
    ----------
    limit : int
        Largest quantised value.
    sites : int
        ``max_clients``.
    symmetric : bool
        Whether updates are encrypted under the secret key; public-key ciphertexts have more noise and need a special
        prime beside the data primes.

    Returns
    -------
    dict
        ``poly_modulus_degree``, ``coeff_mod_bit_sizes`` and ``plain_modulus_bits``.
    """
    candidates = [
        (sum(data) / lanes, degree, -lanes, data, special, plain)
        for degree in MAX_COEFF_MOD_BITS
        for lanes, plain in _plain_moduli(degree, limit, sites)
        for data, special in _chains(degree, plain, sites, symmetric)
    ]
    _, degree, _, data, special, plain = min(candidates)
    sizes = [*data, *special]
    return {"poly_modulus_degree": degree, "coeff_mod_bit_sizes": sizes, "plain_modulus_bits": plain}


def min_planned_bits(degree: int) -> int:
    """Return the fewest bits of a prime that is planned: of smaller ones there are too few."""
    return min_prime_bits(degree) + 10


def split_bits(bits: int) -> tuple[int, ...]:
    """Return the bits of as few primes as can be, equal but for one, that have `bits` together."""
    rows = -(-bits // MAX_PRIME_BITS)
    return tuple(bits // rows + (row < bits % rows) for row in range(rows))


def _plain_moduli(degree: int, limit: int, sites: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of lanes, and the fewest bits of a plain modulus for them."""
    lanes = 0
    for bits in range(min_planned_bits(degree), MAX_PRIME_BITS + 1):
        fitting = lanes_below(prime_floor(bits), limit, sites)
        if fitting > lanes:
            lanes = fitting
            yield lanes, bits


def _chains(degree: int, plain: int, sites: int, symmetric: bool) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the smallest data primes for a plain modulus, and the special prime, in bits."""
    ceiling, smallest = MAX_COEFF_MOD_BITS[degree], min_planned_bits(degree)
    for bits in range(smallest, ceiling + 1):
        data = split_bits(bits)
        # SEAL takes the last of several primes for the special one; symmetric encryption makes no use of it.
        spare = min(MAX_PRIME_BITS, ceiling - bits)
        spare -= spare == plain  # it must be another prime than the plain modulus
        special = (spare,) if not symmetric else (smallest,) if len(data) > 1 else ()
        if plain in data + special or min(data + special) < smallest or bits + sum(special) > ceiling:
            continue
        primes = [prime_floor(size) for size in data]
        if bgv_fits(sites, degree, 1 << plain, primes, prime_floor(special[0]) if special else None, symmetric):
            yield data, special
            return
