"""What error feedback carries, exported and restored: the next client goes on as the last one would have."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from federation import Federation, federate
from hypothesis import given
from hypothesis import strategies as st
from quantised import limit_of, renamed

import secagg
from secagg.errors import DigestError, FormatError, MismatchError
from secagg.scheme.params import QuantisedParams
from secagg.wire.carry import StoredCarry
from secagg.wire.container import digest

VARIANTS = ["seal-BGV", "pyfhel-BGV", "flashe"]
BITS = 6
LIMIT = limit_of(BITS)


def federation_of(
    variant: str = "flashe", max_abs: Any = 1.0, max_weight: float = 1.0, max_clients: int = 4, **params: Any
) -> Federation:
    params = {"value_bits": BITS, "rounding": "nearest", "error_feedback": True, **params}
    return federate(variant, params, max_clients=max_clients, max_abs=max_abs, max_weight=max_weight)


def state(seed: int, values: int = 300) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {"w": draw.uniform(-0.9, 0.9, values).astype(np.float32), "v": draw.uniform(-0.9, 0.9, (2, 3))}


def sent(federation: Federation, update: secagg.Update) -> np.ndarray[Any, Any]:
    """The integers of an update of weight 1."""
    header = update.header
    nobody = renamed(federation.site("nobody"), "nobody")
    nobody.restore_carry(b"")
    zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in header.layout.tensors}
    aggregator = federation.aggregator(header.round)
    for each in (update, nobody.encrypt(zeros, 1.0, header.round)):
        aggregator.add(each)
    mean = nobody.decrypt(aggregator.finish())
    assert isinstance(federation.config.params, QuantisedParams)
    found = np.concatenate([value.reshape(-1).astype(np.float64) for value in mean.values()])
    found *= 2 * federation.config.params.limit
    np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
    return np.rint(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_client_each_round_is_as_good_as_one(variant: str) -> None:
    """Round by round the same integers. Without the carry, all that is below half a step is lost: 0.42 of 0.42."""
    federation, rounds = federation_of(variant), 30
    values = {"w": np.full(4, 0.42 / rounds)}  # less than half a step, 1/62
    total: dict[str, Any] = {"one": 0, "carried": 0, "lost": 0}
    one, blob = federation.site(), b""
    for round in range(rounds):
        carried, lost = federation.site(), federation.site()
        carried.restore_carry(blob)
        lost.restore_carry(b"")
        found = {
            name: sent(federation, site.encrypt(values, 1.0, round)) / LIMIT
            for name, site in {"one": one, "carried": carried, "lost": lost}.items()
        }
        np.testing.assert_array_equal(found["carried"], found["one"])
        total = {name: total[name] + found[name] for name in total}
        blob = carried.carry()
        assert blob == one.carry()
    assert np.abs(total["carried"] - 0.42).max() < 0.5 / LIMIT + 1e-4
    assert np.abs(total["lost"] - 0.42).max() == 0.42


def test_the_same_round_again_after_a_restart() -> None:
    """It begins where its first update began, however often."""
    federation, one = federation_of(), federation_of().site()
    for round in range(3):
        one.encrypt(state(round), 1.0, round)
        again = federation.site()
        again.restore_carry(one.carry())
        for site in (one, again):
            site.encrypt(state(10 + round), 1.0, round)
        assert again.carry() == one.carry()
        updates = [site.encrypt(state(round), 1.0, round) for site in (one, again)]
        np.testing.assert_array_equal(*(sent(federation, update) for update in updates))


def test_what_is_restored_takes_the_place_of_what_there_was() -> None:
    federation = federation_of()
    one, two = federation.site(), federation.site()
    one.encrypt(state(0))
    two.encrypt(state(1))
    two.restore_carry(one.carry())
    assert two.carry() == one.carry()
    two.restore_carry(b"")
    assert two.carry() == b""
    assert (one.carries, two.carries) == (True, False)


@pytest.mark.parametrize("variant", ["flashe", "seal-BGV", "tenseal"])
def test_without_error_feedback_there_is_nothing(variant: str) -> None:
    site = (federate(variant) if variant == "tenseal" else federation_of(variant, error_feedback=False)).site()
    site.encrypt(state(0, 4), round=5)
    assert site.carry() == b""
    assert not site.carries
    site.restore_carry(b"")


def test_a_client_that_comes_from_nowhere_says_so_once() -> None:
    site = federation_of().site()
    with pytest.warns(UserWarning, match=r"site 'site-1' .* round 3: what rounding .* lost.*restore_carry") as caught:
        site.encrypt(state(0), round=3)
    assert [warning.filename for warning in caught] == [__file__]
    site.encrypt(state(0), round=4)


@pytest.mark.parametrize("begin", ["round 0", "restored", "nothing"])
def test_a_client_that_has_lost_nothing_says_nothing(begin: str) -> None:
    site, other = federation_of().site(), federation_of().site()
    if begin == "round 0":
        site.encrypt(state(0))
    elif begin == "restored":
        other.encrypt(state(0))
        site.restore_carry(other.carry())
    else:
        site.restore_carry(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site.encrypt(state(0), round=3)


# What does not fit.


def test_a_carry_where_nothing_is_carried() -> None:
    one, two = federation_of().site(), federation_of(error_feedback=False).site()
    one.encrypt(state(0))
    with pytest.raises(MismatchError, match=r"is of error_feedback, which the configuration has not: restore_carry"):
        two.restore_carry(one.carry())
    assert not two.carries


@pytest.mark.parametrize(
    "change",
    [
        {"value_bits": 7},
        {"max_abs": 0.5},
        {"max_abs": {"default": 1.0, "w": 2.0}},
        {"max_weight": 3.0},
        {"rounding": "stochastic"},
        {"overflow": "clip"},
        {"max_clients": 9},
    ],
    ids=str,
)
def test_what_is_due_does_not_depend_on_steps(change: dict[str, Any]) -> None:
    """It is in units of weight and value, whatever they are rounded to and where they are clipped."""
    one, other = federation_of().site(), federation_of(**change)
    one.encrypt(state(0), 0.7)
    two = other.site()
    two.restore_carry(one.carry())
    assert two.carry() == one.carry()
    due = np.concatenate(StoredCarry.from_bytes(one.carry()).carry.after)
    two.encrypt({"w": np.zeros(300, np.float32), "v": np.zeros((2, 3))}, 0.1, 1)
    params, aggregation = other.config.params, other.config.aggregation
    assert isinstance(params, QuantisedParams)
    bounds = aggregation.bounds_of((("w",), ("v",)))
    steps = np.repeat(np.array(bounds) * aggregation.largest_weight / params.limit, [300, 6])
    left = np.concatenate(StoredCarry.from_bytes(two.carry()).carry.after)
    paid = (due - left) / steps
    np.testing.assert_allclose(paid, np.rint(paid), atol=1e-5)
    # At 0.1 of the largest weight, no more than that is sent in a round.
    assert np.abs(left).max() <= max(np.abs(due).max() - 0.1 * min(bounds), 0) + steps.max()


@pytest.mark.parametrize("overflow", ["error", "clip"])
def test_what_is_due_beyond_a_bound_is_paid_back_in_parts(overflow: str) -> None:
    """Coarse steps have left more than finer ones can take at once: it is enough that values are within their bound."""
    one, other = federation_of(value_bits=3).site(), federation_of(value_bits=16, overflow=overflow)
    values, rounds = {"w": np.full(300, 0.85)}, 4
    one.encrypt(values)  # a step is 1/3, and 0.15 too little is left
    two, total = other.site(), np.full(300, 1.0)
    two.restore_carry(one.carry())
    for round in range(1, rounds):
        total += sent(other, two.encrypt({"w": np.full(300, 0.999 if round == 1 else 0.5)}, 1.0, round)) / limit_of(16)
    np.testing.assert_allclose(total, 0.85 + 0.999 + 0.5 * (rounds - 2), atol=1 / limit_of(16))


def test_the_report_goes_with_the_carry() -> None:
    one, two = federation_of().site(), federation_of().site()
    one.restore_carry(b"")
    one.encrypt(state(0), 0.7, 3)
    two.restore_carry(one.carry())
    assert two.report == one.report is not None
    assert two.report.round == 3
    two.restore_carry(b"")
    assert two.report is None


def test_a_carry_of_another_site() -> None:
    one, two = federation_of().sites(2)
    one.encrypt(state(0))
    with pytest.raises(MismatchError, match="of site 'site-1', this is 'site-2'"):
        two.restore_carry(one.carry())


@pytest.mark.parametrize(
    "other",
    [{"v": state(0)["w"]}, {"w": state(0)["w"]}, {"w": state(0)["w"], "v": state(0)["v"].T}, state(0, 299)],
    ids=["name", "less", "shape", "size"],
)
def test_a_carry_of_another_model(other: dict[str, Any]) -> None:
    """It is found when there is a model: then either was meant."""
    one, two = federation_of().site(), federation_of().site()
    one.encrypt(state(0))
    blob = one.carry()
    two.restore_carry(blob)
    for _ in range(2):
        with pytest.raises(MismatchError, match=r"of another model than this update.*restore_carry\(b''\)"):
            two.encrypt(other, round=1)
    assert two.carry() == blob
    two.restore_carry(b"")
    two.encrypt(other, round=1)


# What is damaged, or made to break a reader.


def _blob() -> bytes:
    site = federation_of().site()
    for round in range(2):
        site.encrypt({"w": state(0, 5)["w"], "u": state(0, 3)["w"]}, round=round)
    return site.carry()


BLOB = _blob()


def test_the_carry_of_one_client_can_be_read_by_another_forever() -> None:
    stored = StoredCarry.from_bytes(BLOB)
    assert (stored.site, stored.carry.round) == ("site-1", 1)
    assert stored.report is not None
    assert [(tensor.name, tensor.values) for tensor in stored.report.tensors] == [("w", 5), ("u", 3)]
    assert [array.size for array in stored.carry.before] == [array.size for array in stored.carry.after] == [5, 3]
    assert stored.to_bytes() == BLOB
    assert "array" not in repr(stored)  # it is secret


@given(st.integers(0, 8 * len(BLOB) - 1))
def test_a_flipped_bit_is_found(bit: int) -> None:
    blob = bytearray(BLOB)
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DigestError):
        federation_of().site().restore_carry(bytes(blob))


@given(st.integers(1, len(BLOB) - 1))
def test_a_truncated_carry_is_found(length: int) -> None:
    with pytest.raises(FormatError):
        federation_of().site().restore_carry(BLOB[:length])


@pytest.mark.parametrize("blob", [b"x", b"x" * 100, BLOB + b"\0", BLOB[32:], "text", None, [], 0])
def test_something_else_is_no_carry(blob: Any) -> None:
    with pytest.raises(FormatError):
        federation_of().site().restore_carry(blob)


def sealed(change: Callable[[dict[str, bytes]], object]) -> bytes:
    """A carry whose files somebody has changed who knows how the digest is made."""
    with zipfile.ZipFile(BytesIO(BLOB)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return digest(b"secagg carry", stream.getvalue()) + stream.getvalue()


def header(**changes: Any) -> Callable[[dict[str, bytes]], object]:
    def change(files: dict[str, bytes]) -> None:
        files["header.json"] = json.dumps(json.loads(files["header.json"]) | changes).encode()

    return change


def array(value: Any, name: str = "0.npy") -> Callable[[dict[str, bytes]], object]:
    def change(files: dict[str, bytes]) -> None:
        stream = BytesIO()
        np.lib.format.write_array(stream, value)
        files[name] = stream.getvalue()

    return change


FAULTS: dict[str, Callable[[dict[str, bytes]], object]] = {
    "another version": header(version=1),
    "a later version": header(version=3),
    "more fields": header(more=1),
    "a model that is none": header(model="ab"),
    "a model that is a number": header(model=1),
    "a round that is none": header(round=-1),
    "a site that is none": header(site="a b"),
    "units, as version 1 had them": header(units={"value_bits": 6, "max_abs": 1.0, "max_weight": 1.0}),
    "a report that is none": header(report=[1]),
    "a report of one number": header(report=[1, [["w"]]]),
    "a report of text": header(report=[1, [["w", 5, "x", 0.1, 0, 0.1]]]),
    "a report of another kind": header(report={"round": 1}),
    "more before": header(before=3),
    "fewer": header(before=1, after=1),
    "none": header(before=0, after=0),
    "counts that are none": header(before=None, after=None),
    "a missing array": lambda files: files.pop("3.npy"),
    "an array more": array(np.zeros(1, np.float32), "4.npy"),
    "float64": array(np.zeros(5)),
    "rows": array(np.zeros((5, 1), np.float32)),
    "no number": array(np.full(5, np.nan, np.float32)),
    "infinity": array(np.full(5, np.inf, np.float32), "3.npy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_made_to_break_a_reader(fault: str) -> None:
    site = federation_of().site()
    with pytest.raises(FormatError) as caught:
        site.restore_carry(sealed(FAULTS[fault]))
    assert not isinstance(caught.value, DigestError)
    assert not site.carries


@pytest.mark.parametrize("name", ["0.npy", "3.npy"])
def test_residuals_of_other_sizes_than_the_models(name: str) -> None:
    site = federation_of().site()
    site.restore_carry(sealed(array(np.zeros(6, np.float32), name)))
    with pytest.raises(MismatchError, match="of another model"):
        site.encrypt({"w": state(0, 5)["w"], "u": state(0, 3)["w"]}, round=2)


def test_the_changes_of_these_tests_reach_the_reader() -> None:
    assert StoredCarry.from_bytes(sealed(lambda files: None)).to_bytes() == BLOB
