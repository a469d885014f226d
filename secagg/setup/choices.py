"""What can stand in ``he``: the choices that a plan compares, and what each costs and is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..scheme.aggregation import MAX_CLIENTS, Aggregation
from ..scheme.codec import codec_for
from ..scheme.params import MAX_COEFF_MOD_BITS, MAX_PRIME_BITS, CKKSParams, Params, QuantisedParams
from ..scheme.presets import PRESETS, min_planned_bits, plan_params, split_bits
from ..scheme.real_codec import RealCodec
from ..wire.layout import Layout
from .sizes import sizes_of

#: Of two sites, each could compute the other's update.
_MIN_CLIENTS = 3

#: Bits of precision, relative to ``max_abs``, that CKKS for sums only has at least.
_SUMS_BITS = 16.0

#: Bits of an exact scheme's values beside those that are planned: more precise, and larger.
_MORE_BITS = (8, 12)

#: The bound of a tensor by the root mean square of its values, typically: of updates of networks 4 to 15.
CREST = 8.0

#: Values of updates are typically so many times smaller than ``max_abs`` where that is not known any better.
TYPICAL = 2.0**-11


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
        Exact sizes: what a site sends in a round, and receives; with calibration and scales, where there are some.
    expansion : float
        `update_nbytes` by the bytes of the values as float32.
    loss : float
        Energy of the error of a typical tensor's update, by that of the tensor.
    """

    config: Config
    update_nbytes: int
    aggregate_nbytes: int
    expansion: float
    loss: float


def check_sites(sites: int) -> int:
    """Return how many sites there can be at most; `ConfigError` if no federation has so many, or so few."""
    if not 2 <= sites <= MAX_CLIENTS:
        raise ConfigError(f"--sites is {sites}; use 2 to {MAX_CLIENTS}")
    return sites


def choices(sites: int) -> Iterator[Choice]:
    """Yield the choices that make sense for so many sites."""
    clara = PRESETS["clara"]["config"]
    for lib in ("tenseal", "seal"):
        yield Choice(lib, "CKKS, Clara's", clara)
    for lib in ("tenseal", "seal", "pyfhel"):
        found = _ckks_for_sums(_aggregation(sites, "fixed"), symmetric=lib != "pyfhel")
        if found:
            yield Choice(lib, "CKKS, sums only", found)
    for lib, more in (("seal", _MORE_BITS), ("pyfhel", ()), ("flashe", _MORE_BITS)):
        block = {"scheme": "FLASHE"} if lib == "flashe" else {"scheme": "BGV", "seeded": lib != "pyfhel"}
        params = plan_params(lib, block, _aggregation(sites, "auto"))
        assert isinstance(params, QuantisedParams)
        least = params.value_bits
        for bits in (least, *(bits for bits in more if bits > least)):
            yield Choice(lib, f"{params.scheme}, {bits} bits", block | {"value_bits": bits})


def expected_loss(value_bits: int) -> float:
    """Return the energy of the error of rounding, by that of a typical tensor: step² / 12, by its mean square."""
    limit = (1 << (value_bits - 1)) - 1
    return (CREST / limit) ** 2 / 12


def cost(choice: Choice, layout: Layout, sites: int) -> Cost:
    """Return what a choice costs.

    Parameters
    ----------
    choice : Choice
        The choice.
    layout : Layout
        The model, all of it encrypted.
    sites : int
        Most sites that can take part.

    Raises
    ------
    ConfigError
        If the choice cannot hold the sum.
    """
    exact = choice.he_config["scheme"] != CKKSParams.scheme
    aggregation = _aggregation(sites, "auto" if exact else "fixed")
    he = {"lib": choice.lib, "config": dict(choice.he_config)}
    config = Config.from_dict({"he": he, "encrypt": "all", "aggregation": aggregation.to_dict()})
    codec = codec_for(config.params, aggregation)
    if isinstance(config.params, QuantisedParams):
        loss = expected_loss(config.params.value_bits)
    else:
        loss = (codec.mean_error(sites, float(sites)) / (TYPICAL * min(aggregation.bounds))) ** 2
    sizes = sizes_of(config, layout, sites)
    expansion = sizes.up_nbytes / (4 * layout.size("encrypted"))
    return Cost(config, sizes.up_nbytes, sizes.down_nbytes, expansion, loss)


def _aggregation(sites: int, precision: str) -> Aggregation:
    return Aggregation(min_clients=min(sites, _MIN_CLIENTS), max_clients=sites, precision=precision)


def _ckks_for_sums(aggregation: Aggregation, *, symmetric: bool) -> dict[str, Any] | None:
    """Return the CKKS params with the fewest bytes a value that are as precise as need be; None if there are none.

    Parameters
    ----------
    aggregation : Aggregation
        The sum that they must hold.
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
                scale = _largest_scale(config, aggregation)
                if scale is not None:
                    best = nbytes, config | {"scale_bits": scale}
                    break
    return None if best is None else best[1]


def _largest_scale(config: Mapping[str, Any], aggregation: Aggregation) -> int | None:
    """Return the largest scale at which sums fit, if it is as precise as need be."""
    sites = aggregation.max_clients
    for scale in range(sum(config["coeff_mod_bit_sizes"]), 0, -1):
        try:
            params = Params.from_dict({**config, "scale_bits": scale})
            assert isinstance(params, CKKSParams)
            codec = RealCodec(params, aggregation)
        except ConfigError:
            continue
        error = codec.mean_error(sites, float(sites))
        return scale if error * 2.0**_SUMS_BITS <= min(aggregation.bounds) else None
    return None
