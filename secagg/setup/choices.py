"""What can stand in ``he``: the choices that a plan compares, and what each costs and is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..scheme.aggregation import Aggregation
from ..scheme.codec import codec_for
from ..scheme.params import MAX_COEFF_MOD_BITS, MAX_PRIME_BITS, MAX_VALUE_BITS, CKKSParams, Params
from ..scheme.presets import PRESETS, min_planned_bits, split_bits
from ..scheme.real_codec import RealCodec
from ..wire.header import NONCE_NBYTES, Contribution, Header
from ..wire.layout import Layout

#: Bits of precision that CKKS for sums only has at least: about those of quantised values of 16 bits.
_SUMS_BITS = 16.0

#: Bits of an exact scheme's values, if more are not needed.
_EXACT_BITS = 16


@dataclass(frozen=True)
class Choice:
    """A backend, a name for params, and its ``he.config`` block."""

    lib: str
    name: str
    he_config: Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a choice means for one model and federation.

    Parameters
    ----------
    config : Config
        The whole configuration.
    update_nbytes, aggregate_nbytes : int
        Exact sizes: what a site sends, and receives.
    expansion : float
        `update_nbytes` by the bytes of the values as float32.
    precision : float
        Bits: log2 of ``max_abs`` by the bound on the error of a mean of all sites at ``max_weight``.
    """

    config: Config
    update_nbytes: int
    aggregate_nbytes: int
    expansion: float
    precision: float


def choices(aggregation: Aggregation, needed: float) -> Iterator[Choice]:
    """Yield the choices that make sense; CKKS for sums only and exact values are planned for `needed` bits or more."""
    clara = PRESETS["clara"]["config"]
    for lib in ("tenseal", "seal"):
        yield Choice(lib, "CKKS, Clara's", clara)
    bits = max(needed, _SUMS_BITS)
    for lib in ("tenseal", "seal", "pyfhel"):
        found = _ckks_for_sums(aggregation, bits, symmetric=lib != "pyfhel")
        if found:
            yield Choice(lib, "CKKS, sums only", found)
    exact = min(max(_EXACT_BITS, math.floor(needed) + 2), MAX_VALUE_BITS)  # a sign, and less than a bit for the error
    yield Choice("seal", f"BGV, {exact} bits", {"scheme": "BGV", "value_bits": exact})
    yield Choice("seal", "BGV, 10 bits", {"scheme": "BGV", "value_bits": 10, "error_feedback": True})
    yield Choice("pyfhel", f"BGV, {exact} bits", {"scheme": "BGV", "value_bits": exact})
    yield Choice("flashe", f"FLASHE, {exact} bits", {"scheme": "FLASHE", "value_bits": exact})
    yield Choice("flashe", "FLASHE, 11 bits", PRESETS["smallest"]["config"])


def cost(choice: Choice, layout: Layout, aggregation: Aggregation) -> Cost:
    """Return what a choice costs.

    Parameters
    ----------
    choice : Choice
        The choice.
    layout : Layout
        The model, all of it encrypted.
    aggregation : Aggregation
        ``max_clients`` is the number of sites.

    Raises
    ------
    ConfigError
        If the choice cannot hold the sum.
    """
    he = {"lib": choice.lib, "config": dict(choice.he_config)}
    config = Config.from_dict({"he": he, "encrypt": "all", "aggregation": aggregation.to_dict()})
    codec = codec_for(config.params, aggregation)
    sites = aggregation.max_clients
    precision = min(
        math.log2(bound / codec.mean_error(sites, float(sites), bound)) for bound in set(aggregation.bounds)
    )
    update = header("update", 1, config, layout).nbytes
    return Cost(
        config=config,
        update_nbytes=update,
        aggregate_nbytes=header("aggregate", sites, config, layout).nbytes,
        expansion=update / (4 * layout.size("encrypted")),
        precision=precision,
    )


def header(kind: str, sites: int, config: Config, layout: Layout) -> Header:
    """Return the header of an update or aggregate whose sites are called ``site-1`` and so on."""
    contributions = [Contribution(f"site-{number}", bytes(NONCE_NBYTES)) for number in range(1, sites + 1)]
    return Header(
        kind=kind,
        round=0,
        epoch=0,
        key="0" * 64,
        params=config.params,
        aggregation=config.aggregation,
        layout=layout,
        contributions=tuple(contributions),
    )


def _ckks_for_sums(aggregation: Aggregation, bits: float, *, symmetric: bool) -> dict[str, Any] | None:
    """Return the CKKS params with the fewest bytes a value that have `bits` of precision; None if there are none.

    Parameters
    ----------
    aggregation : Aggregation
        The sum that they must hold.
    bits : float
        Bits of precision.
    symmetric : bool
        Whether the library encrypts under the secret key, so that updates are seeded and the special prime is of no
        use.
    """
    best: tuple[float, dict[str, Any]] | None = None
    for degree, ceiling in MAX_COEFF_MOD_BITS.items():
        smallest = min_planned_bits(degree)
        for special in (0, 1):
            for total in range(smallest, ceiling + 1 - special * smallest):
                nbytes = total * (1 if symmetric else 2) / 8
                if best is not None and nbytes >= best[0]:
                    break
                data = split_bits(total)
                if min(data) < smallest or (len(data) > 1 and not special):
                    continue
                last = [smallest if symmetric else min(MAX_PRIME_BITS, ceiling - total)] if special else []
                config = {
                    "scheme": CKKSParams.scheme,
                    "poly_modulus_degree": degree,
                    "coeff_mod_bit_sizes": [*data, *last],
                    "complex_slots": True,
                    "seeded": symmetric,
                }
                scale = _largest_scale(config, aggregation, bits)
                if scale is not None:
                    best = nbytes, config | {"scale_bits": scale}
                    break
    return None if best is None else best[1]


def _largest_scale(config: Mapping[str, Any], aggregation: Aggregation, bits: float) -> int | None:
    """Return the largest scale at which sums fit, if it has `bits` of precision."""
    sites = aggregation.max_clients
    for scale in range(sum(config["coeff_mod_bit_sizes"]), 0, -1):
        try:
            params = Params.from_dict({**config, "scale_bits": scale})
            assert isinstance(params, CKKSParams)
            codec = RealCodec(params, aggregation)
        except ConfigError:
            continue
        error = codec.mean_error(sites, float(sites))
        return scale if error * 2.0**bits <= min(aggregation.bounds) else None
    return None
