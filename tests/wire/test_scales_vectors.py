"""tests/vectors/scales.json: bins and their bounds, what counts measure, names, and what sections hold."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

import secagg
from secagg import Header, Layout
from secagg.measuring import Measuring
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.codec import codec_for
from secagg.scheme.digits import small_tensors
from secagg.scheme.params import Params
from secagg.scheme.scales import BINS, UNKNOWN, Scales, bin_of, bound_of, one_hot
from secagg.trust.key import KeyMaterial
from secagg.wire.header import Contribution

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "scales.json").read_text())


def double(text):
    return struct.unpack(">d", bytes.fromhex(text))[0]


def test_bounds_to_the_last_bit():
    assert [bound_of(number) for number in range(BINS)] == list(map(double, VECTORS["bounds"]))


@pytest.mark.parametrize(
    ("text", "number"), VECTORS["bins"], ids=[f"{double(text):.17g}" for text, _ in VECTORS["bins"]]
)
def test_the_bin_of_a_magnitude(text, number):
    assert bin_of(double(text)) == number
    assert np.flatnonzero(one_hot([double(text)])).tolist() == ([] if number is None else [number])


@pytest.mark.parametrize("number", range(BINS))
def test_a_bound_and_its_neighbours(number):
    """The first bin whose bound is not below a magnitude; beyond the ends there is none."""
    bound = bound_of(number)
    assert bin_of(bound) == number
    assert bin_of(math.nextafter(bound, math.inf)) == min(number + 1, BINS - 1)
    assert bin_of(math.nextafter(bound, 0)) == number


@pytest.mark.parametrize("case", VECTORS["counts"])
def test_what_counts_measure(case):
    counts = np.zeros((len(case["counts"]), BINS))
    for row, shown in zip(counts, case["counts"], strict=True):
        for number, count in shown:
            row[number] = count
    before = Scales(tuple(case["bins"]))
    assert before.known == (UNKNOWN not in case["bins"])
    assert list(Scales.measured(counts).bins) == case["measured"]
    small = {place for place, is_small in enumerate(case["small"]) if is_small}
    assert list(before.following(counts, small).bins) == case["next"]
    assert Scales.from_bytes(before.to_bytes()) == before


@pytest.mark.parametrize("case", VECTORS["names"])
def test_the_name_of_scales(case):
    config = secagg.Config.from_dict(
        {"he": {"lib": "flashe", "config": {"value_bits": 8}}, "aggregation": {"precision": "previous"}}
    )
    none = np.empty(0, np.uint64)
    key = secagg.ClientKey(config.params, KeyMaterial((), none, none), bytes.fromhex(case["key"]), case["epoch"])
    layout = Layout.of({f"t{index}": np.zeros(1) for index in range(len(case["bins"]))})
    base, scales = None if case["base"] is None else bytes.fromhex(case["base"]), Scales(tuple(case["bins"]))
    measuring = Measuring(config, key, None, None, None)  # what is given needs no decryption
    assert measuring.of_round(scales, layout, case["round"], base) == (scales, bytes.fromhex(case["name"]))


def header_of(case, kind):
    aggregation = Aggregation(**case["aggregation"])
    named = kind == "update" and aggregation.calibrated
    return Header(
        kind,
        0,
        0,
        "ab" * 32,
        Params.from_dict(case["params"]),
        aggregation,
        Layout.from_json(case["layout"]),
        (Contribution("site", bytes(32)),),
        calibration=bytes(32) if named else None,
    )


@pytest.mark.parametrize(
    "case",
    VECTORS["sections"],
    ids=lambda case: "{scheme} {value_bits} {0} {1}".format(
        case["aggregation"]["precision"], case["name"], **case["params"]
    ),
)
def test_what_sections_hold(case):
    for kind, frames in case["frames"].items():
        header = header_of(case, kind)
        assert Header.from_head(header.head) == header
        assert [frame.nbytes for frame in header.frames] == frames
    header = header_of(case, "update")
    codec, numbers = codec_for(header.params, header.aggregation), case["numbers"]
    assert [codec.lanes.words, codec.lanes.per_word, codec.lanes.bits] == case["lanes"]
    assert codec.head_values(case["sent"]) == numbers["weight"] + numbers["count"] + numbers["bins"]
    assert codec.lanes_a_value == case["digits_a_value"]
    assert small_tensors(header.layout.shapes) == case["small"]
    assert codec.limit_of(True) == ((2 * header.params.limit + 1) ** case["digits_a_value"] - 1) // 2
