"""Federations for tests, and the mean that they must compute, with the error that their params allow."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from container import fraction_bits
from section_numbers import Numbers, digits_a_value, limit_of, small_ones

import secagg
from secagg.backends.base import Backend
from secagg.backends.registry import load_backend
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.codec import Codec, codec_for
from secagg.scheme.params import Params
from secagg.trust.key import KeyPair

State = Mapping[str, Any]

#: What NVIDIA Clara Train uses: 4096 slots, two data primes.
CLARA = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40, "scheme": "CKKS"}
#: The smallest params that every library of CKKS takes: 1024 slots, a polynomial of 6912 bytes, coarse and quick.
TINY = {"poly_modulus_degree": 2048, "coeff_mod_bit_sizes": [27, 26], "scale_bits": 20, "scheme": "CKKS"}
TINY_SLOTS = 1024
#: What goes with `TINY`: its modulus has no room for more.
TINY_AGGREGATION = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0}

#: Coarse and quick params of each scheme, which go with `TINY_AGGREGATION`; those of BGV are planned.
SMALL: dict[str, dict[str, Any]] = {"CKKS": TINY, "BGV": {"value_bits": 8}, "FLASHE": {"value_bits": 8}}
#: Params of each scheme that training would use.
LARGE: dict[str, dict[str, Any]] = {"CKKS": CLARA, "BGV": {"value_bits": 16}, "FLASHE": {"value_bits": 16}}

#: Of as many bits as CKKS has by `CLARA`, or nearly.
PRECISE: dict[str, dict[str, Any]] = {"CKKS": CLARA, "BGV": {"value_bits": 24}, "FLASHE": {"value_bits": 24}}

#: What goes with the params of training.
TRAINING_AGGREGATION = {"max_abs": 8.0}

#: Library and scheme of every variant: a backend's id means its first scheme, ``id-SCHEME`` another one.
VARIANTS = {
    f"{lib}-{scheme}" if index else lib: (lib, scheme)
    for lib, info in sorted(secagg.available_backends().items())
    for index, scheme in enumerate(info.schemes or ("unknown",))  # what cannot be loaded fails, and is not left out
}
#: The variants whose blocks are ciphertexts of SEAL's form.
LATTICE = [variant for variant, (_, scheme) in VARIANTS.items() if scheme in ("CKKS", "BGV")]

#: Those whose sums are of integers.
EXACT = [variant for variant, (_, scheme) in VARIANTS.items() if scheme in ("BGV", "FLASHE")]

#: What the contract holds for: every variant with ``max_abs``, under its own name, and the exact ones with measured
#: scales, as ``variant/precision``.
MODES = {variant: (variant, "fixed") for variant in VARIANTS} | {
    f"{variant}/{precision}": (variant, precision) for variant in EXACT for precision in ("auto", "previous")
}

#: Half a unit of the last place, relative; 16-bit floats are rounded to float32 on the way.
ROUNDING = {"float16": 2.0**-11 + 2.0**-24, "bfloat16": 2.0**-8 + 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 0.0}


@dataclass(frozen=True)
class Federation:
    """A config and the keys that were made under it."""

    config: secagg.Config
    keys: KeyPair

    def site(self, name: str = "site-1") -> secagg.Client:
        return secagg.Client(self.config, self.keys.client, name)

    def sites(self, count: int) -> list[secagg.Client]:
        return [self.site(f"site-{number}") for number in range(1, count + 1)]

    def aggregator(
        self, round: int = 0, layout: secagg.Layout | None = None, kind: str = "update"
    ) -> secagg.Aggregator:
        return secagg.Aggregator(self.config, self.keys.server, round, layout, kind=kind)

    def using(self, lib: str) -> Federation:
        """The same federation with another HE library of the scheme."""
        return replace(self, config=replace(self.config, lib=lib))

    def but(self, **blocks: Any) -> Federation:
        """The same keys under a config that differs in what becomes of a tensor, or in ``aggregation``."""
        config = self.config.to_dict()
        for key in ("encrypt", "stay", "nonnegative"):
            if key in blocks:
                config[key] = blocks.pop(key)
        config["aggregation"] |= blocks
        return replace(self, config=read_config(json.dumps(config)))

    def add(self, updates: Iterable[secagg.Update]) -> secagg.Update:
        """The sum of updates, or of calibrations, of one round."""
        first, *others = updates
        header, key = first.header, self.keys.server
        aggregator = secagg.Aggregator(self.config, key, header.round, base=header.base, kind=header.kind)
        for update in (first, *others):
            aggregator.add(update)
        return aggregator.finish()

    def encrypt(self, states: Sequence[State], weights: Sequence[float] | None = None) -> list[secagg.Update]:
        """The update of each site; where scales are measured, after what sites exchange before."""
        weights = weights or [1.0] * len(states)
        parts = list(zip(self.sites(len(states)), states, weights, strict=True))
        if self.precision == "auto":
            scales = self.add(site.calibrate(state, weight) for site, state, weight in parts)
            return [site.encrypt(state, weight, calibration=scales) for site, state, weight in parts]
        updates = [site.encrypt(state, weight) for site, state, weight in parts]
        if self.precision == "fixed":
            return updates
        first = self.add(updates)
        return [site.encrypt(state, weight, 1, calibration=first) for site, state, weight in parts]

    def sum(self, states: Sequence[State], weights: Sequence[float] | None = None) -> secagg.Update:
        """The aggregate of one update a state."""
        return self.add(self.encrypt(states, weights))

    def assert_mean(self, mean: State, states: Sequence[State], weights: Sequence[float] | None = None) -> None:
        """Hold every float tensor of `mean` against the weighted mean, and its dtype and shape against the states'."""
        weights = weights or [1.0] * len(states)
        names = [name for name, value in states[0].items() if dtype_of(value) in ROUNDING]
        assert [name for name, value in mean.items() if dtype_of(value) in ROUNDING] == names
        layout = secagg.Layout.of(states[0], replace(self.config, stay=()))
        kinds = self.kinds(layout)
        bounds = layout.bounds(self.config.aggregation)
        first = {name: spec.name for spec in layout.sent for name in spec.names}
        for name in names:
            value, model = mean[name], states[0][name]
            assert tuple(value.shape) == tuple(model.shape), name
            weighted = [w * doubles(state[name]) for w, state in zip(weights, states, strict=True)]
            expected = sum(weighted) / sum(weights)
            bound = bounds[first[name]] * self.config.aggregation.largest_weight
            if self.precision != "fixed":
                bound = self.measured(max(np.abs(part).max(initial=0) for part in weighted), kinds[first[name]])
            allowed = self.tolerance(weights, expected, dtype_of(value), bound, kinds[first[name]])
            error = np.abs(doubles(value) - expected)
            assert (error <= allowed).all(), (name, error.max(), np.max(allowed))

    def kinds(self, layout: secagg.Layout) -> dict[str, str]:
        """What becomes of each tensor that is sent: "clear", "small" or "encrypted"."""
        kinds = {spec.name: spec.role for spec in layout.sent}
        encrypted = [name for name, role in kinds.items() if role == "encrypted"]
        if self.exact:
            small = small_ones({"layout": layout.to_json()})
            kinds |= {name: "small" for name, is_small in zip(encrypted, small, strict=True) if is_small}
        return kinds

    def measured(self, largest: float, kind: str = "encrypted") -> float:
        """The bound of a tensor whose largest weighted value at any site this is."""
        halves = math.ceil(2 * math.log2(largest)) if largest else -math.inf
        headroom = 0 if self.precision != "previous" else 4 if kind == "small" else 1
        return 2.0 ** ((halves + headroom) / 2)

    def tolerance(
        self, weights: Sequence[float], mean: Any, dtype: str, bound: float | None = None, kind: str = "encrypted"
    ) -> Any:
        """The largest error that params, number of sites, weights, dtype and the bound of weighted values explain."""
        aggregation, params = self.config.aggregation, self.config.params.to_dict()
        sites, weight_sum = len(weights), sum(weights)
        unit = aggregation.largest_weight if self.precision == "fixed" else 1.0
        bound = max(aggregation.bounds) * unit if bound is None else bound
        error = self.codec.mean_error(sites, weight_sum / unit, bound / unit)
        if self.exact and kind != "encrypted":  # all that is rounded to steps of the codec is the weight
            error = sites * 2.0**-40 * (aggregation.max_weight or 1.0) / weight_sum * np.abs(mean)
        if kind == "small":
            error = (
                error + sites * bound / (((2 * limit_of(params) + 1) ** digits_a_value(params) - 1) // 2) / weight_sum
            )
        if kind == "clear":  # words are rounded, and doubles, also where a mean is next to nothing
            steps = 2.0 ** -(fraction_bits(aggregation.to_dict()) + 1) + 2.0**-52
            error = error + sites * bound * steps / weight_sum
        return error + ROUNDING[dtype] * (np.abs(mean) + error) + SMALLEST[dtype]

    def head_values(self, tensors: int = 1) -> int:
        """Numbers of the encrypted section before those of so many tensors."""
        header = {
            "params": self.config.params.to_dict(),
            "aggregation": self.config.aggregation.to_dict(),
            "layout": [[[str(index)], "float32", [], "encrypted", False] for index in range(tensors)],
        }
        numbers = Numbers.of(header)
        return sum(numbers) - numbers.small - numbers.other

    @property
    def exact(self) -> bool:
        """Whether sums are of integers."""
        return self.config.params.scheme != "CKKS"

    @property
    def precision(self) -> str:
        return self.config.aggregation.precision

    @property
    def variant(self) -> str:
        wanted = (self.config.lib, self.config.params.scheme)
        return next(variant for variant, found in VARIANTS.items() if found == wanted)

    @property
    def backend(self) -> type[Backend]:
        return load_backend(self.config.lib)

    @property
    def codec(self) -> Codec:
        return codec_for(self.config.params, self.config.aggregation)

    @property
    def frame_blocks(self) -> int:
        """Encrypted blocks of a whole frame."""
        return (1 << 20) // self.config.params.block_nbytes


def twin_of(site: secagg.Client) -> secagg.Client:
    """Another object of the same parts, to be changed: a client itself is not copied."""
    twin = object.__new__(secagg.Client)
    vars(twin).update(vars(site))
    return twin


def federate(mode: str, params: Mapping[str, Any] = SMALL, encrypt: Any = "all", **aggregation: Any) -> Federation:
    """A federation of a variant, or of a mode; keys are made once for each library and params.

    `params` is an ``he.config``, or maps schemes to theirs, as `SMALL` and `LARGE` do. Where scales are measured, there
    is no ``max_abs``, whatever is given.
    """
    variant, precision = MODES[mode]
    lib, scheme = VARIANTS[variant]
    block = {"scheme": scheme, **params.get(scheme, params)}
    assert block["scheme"] == scheme, f"{variant} is no variant of {block['scheme']}"
    numbers: dict[str, Any] = {}
    if params is TINY or params is SMALL:
        numbers = TINY_AGGREGATION
    elif params is CLARA or params is LARGE or params is PRECISE:
        numbers = TRAINING_AGGREGATION
    if precision != "fixed":
        numbers = {name: number for name, number in numbers.items() if name not in ("max_abs", "max_weight")}
        aggregation = {name: number for name, number in aggregation.items() if name != "max_abs"}
        aggregation["precision"] = precision
    he = {"lib": lib, "config": block}
    config = read_config(json.dumps({"he": he, "encrypt": encrypt, "aggregation": {**numbers, **aggregation}}))
    return Federation(config, make_keys(lib, config.params))


def libs_of(scheme: str) -> list[str]:
    """The backends that know a scheme."""
    return [lib for lib, its in VARIANTS.values() if its == scheme]


def is_symmetric(lib: str) -> bool:
    """Whether a backend encrypts under the secret key, so that its updates may be seeded."""
    return load_backend(lib).symmetric


@cache
def read_config(text: str) -> secagg.Config:
    return secagg.Config.from_dict(json.loads(text))


@cache
def make_keys(lib: str, params: Params, number: int = 0) -> KeyPair:
    """Keys, with room for two sites or more; another `number` gives others."""
    return secagg.generate_keys(secagg.Config(lib, params, aggregation=Aggregation(max_clients=2, max_abs=1.0)))


def other_keys(federation: Federation) -> Federation:
    """The same config with keys that have nothing to do with the first ones."""
    return replace(federation, keys=make_keys(federation.config.lib, federation.config.params, number=1))


def random_states(
    count: int, shapes: Mapping[str, tuple[int, ...]], seed: int = 0, largest: float = 1.0
) -> list[State]:
    """States of float32 tensors, uniform in [-largest, largest]."""
    rng = np.random.default_rng(seed)
    return [
        {name: rng.uniform(-largest, largest, shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def orders(updates: Sequence[secagg.Update]) -> Iterable[Sequence[secagg.Update]]:
    return itertools.permutations(updates)


def dtype_of(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def doubles(value: Any) -> Any:
    """A tensor of either library as a NumPy array of float64."""
    return value.detach().double().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.float64)
