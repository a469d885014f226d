"""What index.json says of the good files, each held against what is computed by hand."""

from __future__ import annotations

import json
from typing import Any

import by_hand
import exact_by_hand
import model_by_hand
import tail_by_hand
from configs import (
    BASED,
    BEFORE,
    CALIBRATED,
    CONFIGS,
    DTYPES,
    EPOCH,
    FOLLOWING,
    LIBS,
    PROJECT,
    RAMPS,
    ROUND,
    STATES,
    TIED,
    WEIGHTS,
    count,
    mix,
    state_of,
)
from container import Container
from maker import KEYS, Good, Vector, prefix_of
from project_by_hand import PARTIES, digest_of
from tail_by_hand import identity_seed


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
    if config in CALIBRATED:
        entry |= scales_entry(good, config, key)
    if config == FOLLOWING:
        entry |= following_entry(good, config, key)
    size = RAMPS.get(config, 0)
    places = sorted({*range(6), *range(1010, 1026, 5), *range(2036, 2052, 3), *range(4084, 4100, 3), size - 1})
    places = [place for place in places if 0 <= place < size]
    if size:
        means = mix([state["ramp"] for state in states.values()])
        entry["ramp"] = [[place, means[place]] for place in places]
    if aggregate.header["params"]["scheme"] == "CKKS":
        if size:
            before, values = sum(map(count, STATES["site-1"].values())), by_hand.reals(aggregate, key)
            entry["decoded"] = [[place, round(values[1 + before + place] / values[0], 9)] for place in places]
        return entry
    return entry | {"exact": exact_entry(good, config, key, places)}


def exact_entry(good: Good, config: str, key: Container, places: list[int]) -> dict[str, Any]:
    """What the aggregate of an exact scheme says, number by number: what its updates say follows from their values."""
    prefix, total = prefix_of(config), {}
    for site, name in zip(WEIGHTS, ("update", "update-2"), strict=True):
        update = exact_by_hand.decode(good[f"{prefix}{name}"], key)
        exact_by_hand.check_update(good[f"{prefix}{name}"], update, state_of(config, site), WEIGHTS[site])
        for tensor, numbers in (update.sums | update.words).items():
            total[tensor] = [a + b for a, b in zip(total.get(tensor, [0] * len(numbers)), numbers, strict=True)]
    exact = exact_by_hand.decode(good[f"{prefix}aggregate"], key)
    assert exact.sums | exact.words == total
    sums = {name: list(enumerate(numbers)) for name, numbers in exact.sums.items() if name != "ramp"}
    if places:
        sums["ramp"] = [(place, exact.sums["ramp"][place]) for place in places]
    return {
        "weight_sum": [exact.weight.numerator, exact.weight.denominator],
        "bins": exact.bins,
        "bounds": exact.bounds,
        "levels": exact.levels,
        "sums": sums,
        "words": exact.words,
        "fraction_bits": exact.fraction_bits,
    }


def scales_entry(good: Good, config: str, key: Container) -> dict[str, Any]:
    """The calibrations of a round, and what follows from them."""
    prefix = prefix_of(config)
    *calibrations, scales = (good[f"{prefix}{name}"] for name in ("calibration", "calibration-2", "scales"))
    assert [item.tags for item in (*calibrations, scales)] == [
        tail_by_hand.tags_of(item, key) for item in (*calibrations, scales)
    ]
    counts = [exact_by_hand.counts_of(item, key) for item in calibrations]
    for site, its in zip(WEIGHTS, counts, strict=True):
        assert its == exact_by_hand.one_hot(scales.header, state_of(config, site), WEIGHTS[site])
    total = [[sum(column) for column in zip(*rows, strict=True)] for rows in zip(*counts, strict=True)]
    assert total == exact_by_hand.counts_of(scales, key)
    *updates, aggregate = (good[f"{prefix}{name}"] for name in ("update", "update-2", "aggregate"))
    name = tail_by_hand.whole_digest(scales).hex()
    for container in (*updates, aggregate):
        assert container.header["calibration"] == name
        assert exact_by_hand.decode(container, key).bins == exact_by_hand.measured(total)
    return {
        "calibrations": [f"good-{prefix}calibration.secagg", f"good-{prefix}calibration-2.secagg"],
        "scales": f"good-{prefix}scales.secagg",
        "name": name,
        "counts": exact_by_hand.shown(total),
    }


def following_entry(good: Good, config: str, key: Container) -> dict[str, Any]:
    """The aggregate of round 0 and that of the round before, whose counts give the bins of the next round."""
    prefix, entry = prefix_of(config), {}
    first, before, aggregate = (good[f"{prefix}{name}"] for name in ("first", "before", "aggregate"))
    small = exact_by_hand.small_sent(aggregate.header)
    bins = {"first": [exact_by_hand.BINS] * len(BEFORE), "before": list(BEFORE)}
    bins["aggregate"] = exact_by_hand.following(bins["before"], exact_by_hand.decode(before, key).counts, small)
    for name, container in (("first", first), ("before", before), ("aggregate", aggregate)):
        exact = exact_by_hand.decode(container, key)
        assert exact.bins == bins[name]
        assert container.tags == tail_by_hand.tags_of(container, key)
        assert container.header["calibration"] == exact_by_hand.name_of(container.header, key, exact.bins)
        assert name != "first" or not any(map(any, (exact.sums | exact.words).values()))
        entry[name] = {
            "file": f"good-{prefix}{name}.secagg",
            "round": container.header["round"],
            "base": container.header["base"],
            "bins": exact.bins,
            "counts": exact_by_hand.shown(exact.counts),
            "next": exact_by_hand.following(exact.bins, exact.counts, small),
        }
    assert aggregate.header["base"] == tail_by_hand.next_base(before).hex()
    model, layout = good[f"{prefix}model"], aggregate.header["layout"]
    plain = tail_by_hand.values_of(layout, state_of(config, "site-1")) + bytes(entry["aggregate"]["next"])
    assert model_by_hand.decrypt(model, key) == model_by_hand.padded(plain)
    return {"chain": entry, "models": [f"good-{prefix}model.secagg"]}


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
        first = good[f"{prefix}first"] if config == FOLLOWING else aggregate
        base = tail_by_hand.first_base(aggregate.header["layout"], state_of(config, "site-1"))
        assert first.header["base"] == base.hex()
        entry |= {"first_base": base.hex(), "base": aggregate.header["base"]}
        entry["next_base"] = tail_by_hand.next_base(aggregate).hex()
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
