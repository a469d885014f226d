"""Makes the vectors; docs/wire-format.md says what is right and what is a fault.

python tests/vectors/make.py            the same bytes again, from the good files and the keys that are checked in
python tests/vectors/make.py --fresh    good files under new keys first: ciphertexts are random
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import by_hand  # noqa: E402
import pinned  # noqa: E402
from container import Container, weight_values  # noqa: E402
from container_faults import container_faults  # noqa: E402
from maker import Good, Maker, Vector  # noqa: E402
from scheme_faults import scheme_faults  # noqa: E402

CKKS = {
    "scheme": "CKKS",
    "poly_modulus_degree": 2048,
    "coeff_mod_bit_sizes": [27, 26],
    "scale_bits": 20,
    "complex_slots": False,
    "seeded": False,
}
BGV = {
    "scheme": "BGV",
    "poly_modulus_degree": 2048,
    "coeff_mod_bit_sizes": [53],
    "plain_modulus_bits": 30,
    "value_bits": 12,
    "rounding": "nearest",
    "overflow": "error",
    "error_feedback": False,
    "seeded": True,
}
FLASHE = {
    "scheme": "FLASHE",
    "value_bits": 11,
    "rounding": "stochastic",
    "overflow": "error",
    "error_feedback": False,
}


def settings(lib: str, params: dict[str, Any], encrypt: Any = "all") -> dict[str, Any]:
    """A configuration."""
    aggregation = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 100.0}
    return {"he": {"lib": lib, "config": params}, "encrypt": encrypt, "aggregation": aggregation}


CONFIGS = {
    "all": settings("tenseal", CKKS),
    "partly": settings("tenseal", CKKS, {"exclude": ["head.bias"]}),
    "seeded": settings("tenseal", CKKS | {"seeded": True}),
    "complex": settings("seal", CKKS | {"complex_slots": True, "seeded": True}),
    "bgv": settings("seal", BGV),
    "bgv-whole": settings("pyfhel", BGV | {"seeded": False}),
    "flashe": settings("flashe", FLASHE),
}
#: Who can decrypt: all that know the scheme and, of seeded updates, encrypt symmetrically.
LIBS = {
    "all": ["tenseal", "pyfhel", "seal"],
    "partly": ["tenseal", "pyfhel", "seal"],
    "seeded": ["tenseal", "seal"],
    "complex": ["seal"],
    "bgv": ["seal"],
    "bgv-whole": ["pyfhel", "seal"],
    "flashe": ["flashe"],
}
#: Values of a tensor that reaches the second block or the second lane.
RAMPS = {"seeded": 1100, "complex": 2100, "bgv": 2200, "bgv-whole": 2200, "flashe": 4200}
ROUND, EPOCH = 7, 2
STATES = {
    "site-1": {"conv.weight": [[0.5, -0.25], [1.0, -1.0]], "head.bias": [0.75, -0.125, 0.0], "scale": 0.5, "empty": []},
    "site-2": {"conv.weight": [[-0.5, 0.25], [1.0, 0.5]], "head.bias": [0.25, 0.875, 1.0], "scale": -1.0, "empty": []},
}
DTYPES = {"conv.weight": "float32", "head.bias": "float64", "scale": "float16", "empty": "float32", "ramp": "float64"}
WEIGHTS = {"site-1": 10.0, "site-2": 30.0}


def state_of(config: str, site: str) -> dict[str, Any]:
    """The tensors of a site."""
    ramp = [((37 * index) % 257 - 128) / 128 for index in range(RAMPS.get(config, 0))]
    factor = {"site-1": 1.0, "site-2": -0.5}[site]
    return STATES[site] | ({"ramp": [factor * value for value in ramp]} if ramp else {})


def prefix_of(config: str) -> str:
    return "" if config == "all" else f"{config}-"


def keys_of(config: str) -> list[str]:
    """Names of the files of client key and server key; keys depend on the scheme alone."""
    scheme = CONFIGS[config]["he"]["config"]["scheme"]
    middle = "" if scheme == "CKKS" else f"{scheme.lower()}-"
    return [f"good-{middle}{role}-key.secagg" for role in ("client", "server")]


def index(good: Good, vectors: list[Vector]) -> dict[str, Any]:
    """The content of index.json."""
    return {
        "about": "made by make.py; the keys are for these tests only",
        "configs": CONFIGS,
        "round": ROUND,
        "epoch": EPOCH,
        "good": {config: good_entry(good, config) for config in CONFIGS},
        "bad": [
            {"file": v.file, "reads": v.reads, "config": v.config, "error": v.error, "fault": v.fault} for v in vectors
        ],
    }


def good_entry(good: Good, config: str) -> dict[str, Any]:
    """The good files of a configuration, and what decryption must give."""
    prefix, keys = f"good-{prefix_of(config)}", keys_of(config)
    key, aggregate = (Container.read(good.blobs[name]) for name in (keys[0], f"{prefix}aggregate.secagg"))
    states = {site: state_of(config, site) for site in STATES}
    entry = {
        "keys": keys,
        "fingerprint": key.header["fingerprint"],
        "libs": LIBS[config],
        "updates": [f"{prefix}update.secagg", f"{prefix}update-2.secagg"],
        "aggregate": f"{prefix}aggregate.secagg",
        "weights": list(WEIGHTS.values()),
        "dtypes": {name: DTYPES[name] for name in states["site-1"]},
        "mean": {name: mix([state[name] for state in states.values()]) for name in STATES["site-1"]},
    }
    size = RAMPS.get(config)
    if size is None:
        return entry
    places = sorted({*range(6), *range(1010, 1026, 5), *range(2036, 2052, 3), *range(4084, 4100, 3), size - 1})
    means, places = mix([state["ramp"] for state in states.values()]), [place for place in places if place < size]
    entry["ramp"] = [[place, means[place]] for place in places]
    before = sum(count(STATES["site-1"][name]) for name in STATES["site-1"])
    if aggregate.header["params"]["scheme"] == "CKKS":
        values = by_hand.reals(aggregate, key)
        entry["decoded"] = [[place, round(values[1 + before + place] / values[0], 9)] for place in places]
    else:
        digits = weight_values(aggregate.header["params"])
        sums = by_hand.sums(aggregate, key, digits + before + size)
        weight = by_hand.weight_sum(sums, aggregate.header["params"])
        entry["weight_sum"] = [weight.numerator, weight.denominator]
        entry["sums"] = [[place, sums[digits + before + place]] for place in places]
    return entry


def mix(values: list[Any]) -> Any:
    """The weighted mean of nested lists."""
    if isinstance(values[0], list):
        return [mix(list(inner)) for inner in zip(*values, strict=True)]
    total = sum(WEIGHTS.values())
    return sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True)) / total


def count(value: Any) -> int:
    return sum(map(count, value)) if isinstance(value, list) else 1


def make_good() -> None:
    """Write keys, updates and aggregates under new keys."""
    import numpy as np

    import secagg

    keys: dict[str, secagg.KeyPair] = {}
    for name, block in CONFIGS.items():
        config, (client, server) = secagg.Config.from_dict(block), keys_of(name)
        if client not in keys:
            keys[client] = secagg.generate_keys(config, EPOCH)
            keys[client].client.save(HERE / client)
            keys[client].server.save(HERE / server)
            (HERE / client).chmod(0o644)  # it keeps no secret, and a checkout would widen it anyway
        aggregator = secagg.Aggregator(config, keys[client].server, round=ROUND)
        for site, suffix in (("site-2", "-2"), ("site-1", "")):
            state = {tensor: np.array(value, DTYPES[tensor]) for tensor, value in state_of(name, site).items()}
            update = secagg.Client(config, keys[client].client, site).encrypt(state, WEIGHTS[site], ROUND)
            update.save(HERE / f"good-{prefix_of(name)}update{suffix}.secagg")
            aggregator.add(update)
        aggregator.finish().save(HERE / f"good-{prefix_of(name)}aggregate.secagg")


def write(folder: Path) -> None:
    """Write every vector with a fault, the pinned ones, and the index, into a folder."""
    good = Good(HERE)
    maker = Maker(good)
    container_faults(maker)
    scheme_faults(maker)
    for vector in maker.vectors:
        (folder / vector.file).write_bytes(vector.blob)
    for name, content in (
        ("index", index(good, maker.vectors)),
        ("expansion", pinned.expansions()),
        ("pads", pinned.pads()),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="make the good files anew first")
    if parser.parse_args().fresh:
        make_good()
    for path in HERE.glob("bad-*.secagg"):
        path.unlink()
    write(HERE)
