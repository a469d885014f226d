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
import model_by_hand  # noqa: E402
import pinned  # noqa: E402
import tail_by_hand  # noqa: E402
from container import Container, weight_values  # noqa: E402
from container_faults import container_faults  # noqa: E402
from maker import KEYS, Good, Maker, Vector, prefix_of  # noqa: E402
from project_by_hand import EARLIER, PARTIES, digest_of, earlier, project, receipt  # noqa: E402
from project_faults import project_faults  # noqa: E402
from scheme_faults import scheme_faults  # noqa: E402
from sum_faults import sum_faults  # noqa: E402
from tail_by_hand import identity_seed  # noqa: E402
from tail_faults import tail_faults  # noqa: E402

CKKS = {
    "scheme": "CKKS",
    "poly_modulus_degree": 2048,
    "coeff_mod_bit_sizes": [27, 26],
    "scale_bits": 20,
    "complex_slots": False,
    "seeded": False,
}
#: A ciphertext of few bytes: what most faults are in.
SMALL_CKKS = CKKS | {"poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [23], "scale_bits": 18, "seeded": True}
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
SMALL_BGV = BGV | {
    "poly_modulus_degree": 1024,
    "coeff_mod_bit_sizes": [23],
    "plain_modulus_bits": 14,
    "value_bits": 10,
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
    he = {"lib": lib, "config": params}
    return {"he": he, "encrypt": encrypt, "stay": [], "nonnegative": [], "aggregation": aggregation}


CONFIGS = {
    "all": settings("tenseal", SMALL_CKKS),
    "partly": settings("tenseal", SMALL_CKKS, {"exclude": ["head.bias"]}),
    "whole": settings("tenseal", CKKS),
    "seeded": settings("tenseal", CKKS | {"seeded": True}),
    "complex": settings("seal", CKKS | {"complex_slots": True, "seeded": True}),
    "bgv": settings("seal", BGV),
    "bgv-whole": settings("pyfhel", BGV | {"seeded": False}),
    "bgv-partly": settings("seal", SMALL_BGV, {"exclude": ["head.bias", "scale"]}),
    "signed": settings("seal", SMALL_BGV),
    "flashe": settings("flashe", FLASHE),
}
#: Who can decrypt: all that know the scheme and, of seeded updates, encrypt symmetrically.
LIBS = {
    "all": ["tenseal", "seal"],
    "partly": ["tenseal", "seal"],
    "whole": ["tenseal", "pyfhel", "seal"],
    "seeded": ["tenseal", "seal"],
    "complex": ["seal"],
    "bgv": ["seal"],
    "bgv-whole": ["pyfhel", "seal"],
    "bgv-partly": ["seal"],
    "signed": ["seal"],
    "flashe": ["flashe"],
}
#: Those with a base, and the one with a project, a receipt and models besides.
BASED, PROJECT = ("bgv-partly", "signed"), "signed"
#: Values of a tensor that reaches the second block or the second lane.
RAMPS = {"seeded": 1100, "complex": 2100, "bgv": 2200, "bgv-whole": 2200, "flashe": 4200}
ROUND, EPOCH = 7, 2
STATES = {
    "site-1": {"conv.weight": [[0.5, -0.25], [1.0, -1.0]], "head.bias": [0.75, -0.125, 0.0], "scale": 0.5, "empty": []},
    "site-2": {"conv.weight": [[-0.5, 0.25], [1.0, 0.5]], "head.bias": [0.25, 0.875, 1.0], "scale": -1.0, "empty": []},
}
#: One more, which is never negative.
STATES["site-1"]["norm.running_var"], STATES["site-2"]["norm.running_var"] = [0.25, 1.0], [0.75, 0.5]
DTYPES = {"conv.weight": "float32", "head.bias": "float64", "scale": "float16", "empty": "float32", "ramp": "float64"}
DTYPES |= {"norm.running_var": "float32"}
#: Configurations whose first tensor has a second name.
TIED = {"bgv-partly": {"tied.weight": "conv.weight"}}
WEIGHTS = {"site-1": 10.0, "site-2": 30.0}


def state_of(config: str, site: str) -> dict[str, Any]:
    """The tensors of a site."""
    ramp = [((37 * index) % 257 - 128) / 128 for index in range(RAMPS.get(config, 0))]
    factor = {"site-1": 1.0, "site-2": -0.5}[site]
    return STATES[site] | ({"ramp": [factor * value for value in ramp]} if ramp else {})


def arrays_of(config: str, site: str) -> dict[str, Any]:
    """The tensors of a site as arrays, tied ones under all their names."""
    import numpy as np

    arrays = {tensor: np.array(value, DTYPES[tensor]) for tensor, value in state_of(config, site).items()}
    return arrays | {name: arrays[first] for name, first in TIED.get(config, {}).items()}


def keys_of(config: str) -> list[str]:
    """Names of the files of client key and server key."""
    return [f"good-{prefix_of(KEYS.get(config, config))}{role}-key.secagg" for role in ("client", "server")]


def index(good: Good, vectors: list[Vector]) -> dict[str, Any]:
    """The content of index.json."""
    return {
        "about": "made by make.py; the keys are for these tests only",
        "configs": CONFIGS,
        "round": ROUND,
        "epoch": EPOCH,
        "identities": {name: identity_seed(name).hex() for name in PARTIES},
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
        "tied": TIED.get(config, {}),
    }
    entry |= tail_entry(good, config, key)
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


def tail_entry(good: Good, config: str, key: Container) -> dict[str, Any]:
    """What the tails of a configuration's files say, held against what is computed by hand."""
    prefix, entry = prefix_of(config), {}
    *updates, aggregate = (good[f"{prefix}{name}"] for name in ("update", "update-2", "aggregate"))
    tags = [tail_by_hand.tags_of(container, key) for container in (*updates, aggregate)]
    assert [container.tags for container in (*updates, aggregate)] == tags
    entry["tags"] = [[f"{tag:x}" for tag in its] for its in tags]
    manifest = digest_of(good[f"{prefix}project"]) if config == PROJECT else None
    assert all(container.header["manifest"] == manifest for container in (*updates, aggregate))
    proofs = {json.dumps(update.header["contributions"]): update.proofs for update in updates}
    assert aggregate.proofs == [
        pair for item in aggregate.header["contributions"] for pair in proofs[json.dumps([item])]
    ]
    if config in BASED:
        base = tail_by_hand.first_base(aggregate.header["layout"], state_of(config, "site-1"))
        assert aggregate.header["base"] == base.hex()
        entry |= {"base": base.hex(), "next_base": tail_by_hand.next_base(aggregate).hex()}
        entry["first_model"] = state_of(config, "site-1")
    if config == PROJECT:
        before = good[f"{prefix}aggregate-earlier"]
        assert before.tags == tail_by_hand.tags_of(before, key)
        for container in (*updates, aggregate, before):
            tail_by_hand.verify(container)
        entry["earlier"] = f"good-{prefix}aggregate-earlier.secagg"
        entry |= {name: f"good-{prefix}{name}.secagg" for name in ("project", "receipt")}
        entry["models"] = [f"good-{prefix}{name}.secagg" for name in ("model", "model-empty")]
        for name in ("model", "model-empty"):
            model = good[f"{prefix}{name}"]
            tail_by_hand.verify(model)
            layout = model.header["layout"]
            assert model_by_hand.decrypt(model, key) == model_by_hand.plain_of(layout, state_of(config, "site-1"))
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
    import secagg

    keys = {}
    for name, block in CONFIGS.items():
        config, (client, server) = secagg.Config.from_dict(block), keys_of(name)
        if client not in keys:
            keys[client] = secagg.generate_keys(config, EPOCH)
            keys[client].client.save(HERE / client)
            keys[client].server.save(HERE / server)
            (HERE / client).chmod(0o644)  # it keeps no secret, and a checkout would widen it anyway
        model, known = arrays_of(name, "site-1"), None
        if name == PROJECT:
            layout = secagg.Client(config, keys[client].client, "site-1").layout(model).to_json()
            blob = project(block, Container.read((HERE / server).read_bytes()).header, layout).to_bytes()
            (HERE / f"good-{name}-project.secagg").write_bytes(blob)
            known = secagg.Project.from_bytes(blob)
        aggregator = secagg.Aggregator(config, keys[client].server, round=ROUND, project=known)
        for site, suffix in (("site-2", "-2"), ("site-1", "")):
            state = arrays_of(name, site)
            identity = secagg.Identity(tail_by_hand.identity(site)) if name == PROJECT else None
            party = secagg.Client(config, keys[client].client, site, identity=identity, project=known)
            base = party.base(model) if name in BASED else None
            update = party.encrypt(state, WEIGHTS[site], ROUND, base=base)
            update.save(HERE / f"good-{prefix_of(name)}update{suffix}.secagg")
            aggregator.add(update)
        aggregate = aggregator.finish()
        aggregate.save(HERE / f"good-{prefix_of(name)}aggregate.secagg")
        if name == PROJECT:
            for part, tensors in (("model", model), ("model-empty", {"empty": model["empty"]})):
                path = HERE / f"good-{name}-{part}.secagg"
                party.encrypt_model(path, tensors, round=ROUND + 1, base=aggregate.next_base)
            answer = receipt(Container.read(update.to_bytes()))
            (HERE / f"good-{name}-receipt.secagg").write_bytes(answer)
            before = Container.read(aggregate.to_bytes())
            before.header["manifest"] = earlier(len(EARLIER) - 1)
            tail_by_hand.fit(before, Container.read((HERE / client).read_bytes()))
            tail_by_hand.sign(before)
            (HERE / f"good-{name}-aggregate-earlier.secagg").write_bytes(before.to_bytes())


def write(folder: Path) -> None:
    """Write every vector with a fault, the pinned ones, and the index, into a folder."""
    good = Good(HERE)
    maker = Maker(good)
    container_faults(maker)
    scheme_faults(maker)
    tail_faults(maker)
    sum_faults(maker)
    project_faults(maker)
    for vector in maker.vectors:
        (folder / vector.file).write_bytes(vector.blob)
    for name, content in (
        ("index", index(good, maker.vectors)),
        ("expansion", pinned.expansions()),
        ("pads", pinned.pads()),
        ("tags", pinned.tags()),
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
