"""Federations for tests, and the mean that they must compute, with the error that their params allow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from container import fraction_bits

import secagg
from secagg.codec import RealCodec

State = Mapping[str, Any]

#: What NVIDIA Clara Train uses: 4096 slots, two data primes.
CLARA = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40, "scheme": "CKKS"}
#: The smallest params that both libraries take: 1024 slots, a ciphertext of 13,824 bytes, coarse and quick.
TINY = {"poly_modulus_degree": 2048, "coeff_mod_bit_sizes": [27, 26], "scale_bits": 20, "scheme": "CKKS"}
TINY_SLOTS = 1024
#: What goes with `TINY`: its modulus has no room for more.
TINY_AGGREGATION = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0}

#: Half a unit of the last place, relative; 16-bit floats are rounded to float32 on the way.
ROUNDING = {"float16": 2.0**-11 + 2.0**-24, "bfloat16": 2.0**-8 + 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 0.0}


@dataclass(frozen=True)
class Federation:
    """A config and the keys that were made under it."""

    config: secagg.Config
    keys: secagg.KeyPair

    def site(self, name: str = "site-1") -> secagg.Client:
        return secagg.Client(self.config, self.keys.client, name)

    def sites(self, count: int) -> list[secagg.Client]:
        return [self.site(f"site-{number}") for number in range(1, count + 1)]

    def aggregator(self, round: int = 0, layout: secagg.Layout | None = None) -> secagg.Aggregator:
        return secagg.Aggregator(self.config, self.keys.server, round, layout)

    def using(self, lib: str) -> Federation:
        """The same federation with another HE library."""
        return replace(self, config=replace(self.config, lib=lib))

    def but(self, **blocks: Any) -> Federation:
        """The same keys under a config that differs in some of ``encrypt`` and ``aggregation``."""
        config = self.config.to_dict()
        if "encrypt" in blocks:
            config["encrypt"] = blocks.pop("encrypt")
        config["aggregation"] |= blocks
        return replace(self, config=read_config(json.dumps(config)))

    def add(self, updates: Iterable[secagg.Update]) -> secagg.Update:
        """The aggregate of updates."""
        aggregator = self.aggregator()
        for update in updates:
            aggregator.add(update)
        return aggregator.finish()

    def sum(self, states: Sequence[State], weights: Sequence[float] | None = None) -> secagg.Update:
        """The aggregate of one update a state."""
        weights = weights or [1.0] * len(states)
        return self.add(
            site.encrypt(state, weight)
            for site, state, weight in zip(self.sites(len(states)), states, weights, strict=True)
        )

    def assert_mean(self, mean: State, states: Sequence[State], weights: Sequence[float] | None = None) -> None:
        """Hold every float tensor of `mean` against the weighted mean, and its dtype and shape against the states'."""
        weights = weights or [1.0] * len(states)
        names = [name for name, value in states[0].items() if dtype_of(value) in ROUNDING]
        assert [name for name, value in mean.items() if dtype_of(value) in ROUNDING] == names
        for name in names:
            value, model = mean[name], states[0][name]
            assert tuple(value.shape) == tuple(model.shape), name
            expected = sum(w * doubles(state[name]) for w, state in zip(weights, states, strict=True)) / sum(weights)
            error = np.abs(doubles(value) - expected)
            assert (error <= self.tolerance(weights, expected, dtype_of(value))).all(), (name, error.max())

    def tolerance(self, weights: Sequence[float], mean: Any, dtype: str) -> Any:
        """The largest error that params, number of sites, weights and dtype explain."""
        aggregation = self.config.aggregation
        weight_sum = sum(weights) / aggregation.max_weight
        error = RealCodec(self.config.params, aggregation).mean_error(len(weights), weight_sum)
        error += len(weights) * 2.0 ** -(fraction_bits(aggregation.to_dict()) + 1) / weight_sum  # of clear tensors
        return error + ROUNDING[dtype] * (np.abs(mean) + error) + SMALLEST[dtype]


def federate(lib: str, params: Mapping[str, Any] = TINY, encrypt: Any = "all", **aggregation: Any) -> Federation:
    """A federation; keys are made once for each library and params."""
    numbers = TINY_AGGREGATION if params is TINY else {}
    config = {"he": {"lib": lib, "config": params}, "encrypt": encrypt, "aggregation": {**numbers, **aggregation}}
    return Federation(read_config(json.dumps(config)), make_keys(lib, json.dumps(params)))


@cache
def read_config(text: str) -> secagg.Config:
    return secagg.Config.from_dict(json.loads(text))


@cache
def make_keys(lib: str, params: str, number: int = 0) -> secagg.KeyPair:
    """Keys; another `number` gives others."""
    aggregation = {"max_clients": 2, "max_abs": 1.0}
    config = {"he": {"lib": lib, "config": json.loads(params)}, "aggregation": aggregation}
    return secagg.generate_keys(secagg.Config.from_dict(config))


def other_keys(federation: Federation) -> Federation:
    """The same config with keys that have nothing to do with the first ones."""
    params = json.dumps(federation.config.params.to_dict())
    return replace(federation, keys=make_keys(federation.config.lib, params, number=1))


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
