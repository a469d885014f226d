"""The report of an update: its losses are those that rounding makes, and its text is a table."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from secagg.errors import FormatError
from secagg.scheme.report import MAX_LOSS, PrecisionReport, TensorReport, rounding_loss

DRAW = np.random.default_rng(3)
SIZE = 40_000
SHAPES: dict[str, np.ndarray[Any, Any]] = {
    "normal": DRAW.normal(size=SIZE),
    "Laplace": DRAW.laplace(size=SIZE),
    "heavy tails": DRAW.standard_t(2.5, size=SIZE),
    "signs": DRAW.choice([-1.0, 1.0], SIZE),
    "sparse": DRAW.normal(size=SIZE) * (DRAW.random(SIZE) < 0.02),
    "one of many": np.eye(1, SIZE, 7)[0],
    "few": DRAW.normal(size=5),
    "one": np.ones(1),
    "slope": np.linspace(-1, 1, SIZE),
}


def rounded(values: np.ndarray[Any, Any], step: float, *, stochastic: bool) -> np.ndarray[Any, Any]:
    draws = max(50, 1_000_000 // values.size)
    noise = np.random.default_rng(9).uniform(-0.5, 0.5, (draws, values.size)) if stochastic else np.zeros((1, 1))
    return np.rint(values / step + noise) * step


@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("signal", [0.02, 0.3, 0.7, 1.0, 2.0, 2.8, 4.9, 5.1, 30.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_what_rounding_loses(shape: str, signal: float, stochastic: bool) -> None:
    """Signals are in steps. What is below the threshold whatever the values are need not be told precisely."""
    values = SHAPES[shape]
    values = (values * (signal * 0.25 / math.sqrt(np.square(values).mean()))).astype(np.float32)
    rms = math.sqrt(np.square(values.astype(np.float64) * 3).mean())
    found = rounding_loss(values, 3.0, 0.75, rms, stochastic=stochastic)
    weighted = values.astype(np.float64) * 3
    errors = rounded(weighted, 0.75, stochastic=stochastic) - weighted
    actual = float(np.square(errors).mean() / np.square(weighted).mean())
    if signal > 5:
        assert max(found, actual) <= MAX_LOSS
    elif shape == "one of many":
        assert 0 <= found <= actual + 1e-12  # whether the one is among those looked at is a matter of luck
    else:
        assert found == pytest.approx(actual, rel=0.1 if shape != "sparse" else 0.25, abs=1e-9)


def test_what_rounding_cannot_lose() -> None:
    zeros = np.zeros(1000, np.float32)
    for stochastic in (False, True):
        assert rounding_loss(zeros, 1.0, 0.5, 0.0, stochastic=stochastic) == 0
        on_the_grid = np.where(np.arange(1000) % 3, 0.5, 0.0).astype(np.float16)
        assert rounding_loss(on_the_grid, 1.0, 0.5, 0.4, stochastic=stochastic) == 0
        assert rounding_loss(np.zeros(0), 1.0, 0.5, 0.0, stochastic=stochastic) == 0
    halves = np.full(10, 0x3F00, np.uint16)  # bfloat16 of 0.5, between two steps
    assert rounding_loss(halves, 1.0, 1.0, 0.5, stochastic=False) == 1


def test_all_is_lost_far_below_a_step() -> None:
    """To the nearest; at random, what is sent is right in the mean, and has many times its energy."""
    values = np.full(1000, 1e-6)
    assert rounding_loss(values, 1.0, 1.0, 1e-6, stochastic=False) == pytest.approx(1)
    assert rounding_loss(values, 1.0, 1.0, 1e-6, stochastic=True) == pytest.approx(1e6, rel=1e-5)


def tensor(name: str, loss: float = 0.0, **numbers: Any) -> TensorReport:
    fields = {"values": 100, "signal": 0.5, "step": 0.1, "clipped": 0, "residual": 0.0} | numbers
    return TensorReport(name, loss=loss, **fields)


def test_numbers_of_a_tensor() -> None:
    item = tensor("w", signal=3.5, step=1.0, clipped=3)
    assert item.bits == 3
    assert item.share_clipped == 0.03
    nothing = tensor("none", values=0, signal=0.0)
    assert (nothing.bits, nothing.share_clipped) == (0, 0)


def test_overall() -> None:
    report = PrecisionReport(
        7,
        (
            tensor("a", 0.5, values=300, signal=1.0, step=1.0, clipped=3, residual=3.0),
            tensor("b", 0.1, values=100, signal=3.0, step=3.0, clipped=1, residual=4.0),
        ),
    )
    overall = report.overall
    assert (overall.values, overall.clipped, overall.residual) == (400, 4, 5.0)
    assert overall.signal == overall.step == pytest.approx(math.sqrt(3))
    assert overall.loss == pytest.approx((0.5 * 300 + 0.1 * 900) / 1200)
    assert [item.name for item in report.worst] == ["a", "b"]
    empty = PrecisionReport(0, ()).overall
    assert (empty.values, empty.loss, empty.bits) == (0, 0, 0)


def test_the_table() -> None:
    report = PrecisionReport(
        0,
        (
            tensor("a.weight", 0.0004, values=1_234_567, clipped=12, residual=0.01234),
            tensor("enc.conv.bias", 0.31, signal=0.05, residual=1e-9),
            tensor("zeros", 0.0, signal=0.0),
        ),
    )
    lines = str(report).splitlines()
    assert [line.split() for line in lines] == [
        ["tensor", "values", "bits", "clipped", "dropped", "residual"],
        ["enc.conv.bias", "100", "1.0", "0", "%", "31", "%", "1e-09"],
        ["a.weight", "1,234,567", "3.5", "<0.01", "%", "0.04", "%", "0.0123"],
        ["zeros", "100", "0.0", "0", "%", "0", "%", "0"],
        ["overall", "1,234,767", "3.5", "<0.01", "%", "0.04", "%", "0.0123"],
    ]
    assert len(set(map(len, lines))) == 1
    assert len(lines[0]) <= 90


def test_the_table_of_many_tensors() -> None:
    """The twenty worst, and the others as one; names that are long keep their ends."""
    names = [f"module{'.denseblock' * 8}.{number}.running_var" for number in range(600)]
    report = PrecisionReport(0, tuple(tensor(name, number / 1000) for number, name in enumerate(names)))
    lines = str(report).splitlines()
    assert len(lines) == 23
    assert lines[1].startswith("…")
    assert ".599.running_var " in lines[1]
    assert ".580.running_var " in lines[20]
    assert lines[21].split()[:3] == ["580", "more", "58,000"]
    assert "29 %" in lines[21]
    assert lines[22].startswith("overall")
    assert len(set(map(len, lines))) == 1


def test_a_report_is_read_again() -> None:
    report = PrecisionReport(3, (tensor("a", 0.25, clipped=2, residual=1.5), tensor("b", values=0)))
    stored = json.loads(json.dumps(report.to_json()))
    assert PrecisionReport.from_json(stored) == report


ROW = ["w", 10, 0.5, 0.1, 2, 0.0, 0.01]


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        "text",
        [],
        [1],
        [1, 2],
        [1, [], 3],
        ["1", []],
        [-1, []],
        [1.5, []],
        [1, [ROW[:-1]]],
        [1, [[*ROW, 1]]],
        *(
            [1, [[*ROW[:index], value, *ROW[index + 1 :]]]]
            for index, values in enumerate(
                (
                    [3, None, "\x1b[2J"],
                    [-1, 1.0, "1", None],
                    [-1.0, math.nan, math.inf, "1", None],
                    [0, -0.1, math.nan, math.inf],
                    [11, -1, 0.5],
                    [-1, math.nan, math.inf, []],
                    [-0.1, math.nan, {}],
                )
            )
            for value in values
        ),
    ],
    ids=repr,
)
def test_reports_that_are_none(data: Any) -> None:
    with pytest.raises(FormatError, match="the stored report is"):
        PrecisionReport.from_json(data)
