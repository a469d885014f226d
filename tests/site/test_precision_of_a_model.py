"""Global models through rounds in each precision: the same calls, and what each of them promises of the sum.

What sites learn in a round is settled beforehand, so that after any number of rounds the exact global model is known.
With error feedback nothing is lost but what the latest updates have dropped, which is due in the next: so much may the
global model be off, and no more, whatever happened before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secagg
from secagg.errors import ConfigError, FormatError, MismatchError, StateError, VerificationError
from secagg.scheme.scales import Scales
from secagg.site import GlobalModel

WEIGHTS = {"a": 3.0, "b": 5.0, "c": 120.0}
PRECISIONS = ("auto", "previous", "fixed")
#: Names to shapes, and how much each site's training changes their values; the last never is negative.
SHAPES: dict[str, tuple[tuple[int, ...], float]] = {
    "conv": ((8, 4, 5), 1e-4),
    "fc": ((40, 7), 3e-2),
    "norm": ((7,), 1e-5),
    "running_var": ((7,), 1e-3),
}


def config_of(precision: str, **options: Any) -> secagg.Config:
    aggregation: dict[str, Any] = {"min_clients": 2, "max_clients": 4, "precision": precision}
    params: dict[str, Any] = {"scheme": "FLASHE"}
    if precision == "fixed":
        aggregation |= {"max_abs": {"default": 1e-3, "fc": 0.2, "running_var": 0.01}, "max_weight": 200}
        params |= {"value_bits": 8, "rounding": "nearest", "error_feedback": True, "overflow": "clip"}
    return secagg.Config.from_dict({"he": {"lib": "flashe", "config": params}, "aggregation": aggregation, **options})


CONFIGS = {precision: config_of(precision) for precision in PRECISIONS}
KEYS = {precision: secagg.generate_keys(config) for precision, config in CONFIGS.items()}
EVERY = pytest.mark.parametrize("precision", PRECISIONS)


def initial() -> dict[str, Any]:
    return {name: np.full(shape, 0.5, np.float32) for name, (shape, _) in SHAPES.items()} | {"steps": np.array(0)}


def change(name: str, round: int, times: float = 1.0) -> dict[str, np.ndarray]:
    """What a site's training of a round changes."""
    draw = np.random.default_rng([round, ord(name)])
    return {key: draw.uniform(-size, size, shape) * times for key, (shape, size) in SHAPES.items()}


class Sites:
    """Sites in step, and what their global model would be if nothing were rounded."""

    def __init__(self, precision: str, names: str = "abc") -> None:
        self.precision = precision
        self.models = {name: self.join(name) for name in names}
        self.exact = {key: np.full(shape, 0.5) for key, (shape, _) in SHAPES.items()}
        self.round = 0
        self.slack = dict.fromkeys(SHAPES, 0.0)  # what sites owe to a mean of other weights than it is paid back in

    def client(self, name: str) -> secagg.Client:
        return secagg.Client(CONFIGS[self.precision], KEYS[self.precision].client, name)

    def join(self, name: str) -> GlobalModel:
        return GlobalModel(self.client(name), initial())

    def add(self, name: str, model: GlobalModel) -> None:
        """Let another site take part from now on."""
        for key, size in self.due().items():
            self.slack[key] += size
        self.models[name] = model

    def due(self) -> dict[str, float]:
        """How far the global model may be off: what the latest updates have dropped, half a step of each."""
        weight, reports = (
            sum(WEIGHTS[name] for name in self.models),
            [model.site.report for model in self.models.values()],
        )
        steps = {key: [r.tensors[index].step for r in reports if r] for index, key in enumerate(SHAPES)}
        return {key: sum(each) / 2 / weight for key, each in steps.items()}

    def restart(self, name: str) -> None:
        self.models[name] = GlobalModel.from_bytes(self.client(name), self.models[name].to_bytes())

    def local(self, name: str, times: float = 1.0) -> dict[str, Any]:
        state = self.models[name].state
        return state | {key: state[key] + move for key, move in change(name, self.round, times).items()}

    def sum(self, updates: list[secagg.Update], kind: str = "update") -> secagg.Update:
        config, keys = CONFIGS[self.precision], KEYS[self.precision]
        aggregator = secagg.Aggregator(config, keys.server, self.round, kind=kind)
        for update in updates:
            aggregator.add(update)
        return aggregator.finish()

    def scales(self, missing: str = "", times: float = 1.0) -> secagg.Update | None:
        """The scales of the round for what all but the missing ones would send."""
        if self.precision != "auto":
            return None
        names = [name for name in self.models if name not in missing]
        return self.sum(
            [self.models[name].calibrate(self.local(name, times), WEIGHTS[name]) for name in names], "calibration"
        )

    def finish(self, scales: secagg.Update | None, times: dict[str, float] | None = None) -> secagg.Update:
        """Encrypt, add and apply."""
        updates, total = [], sum(WEIGHTS[name] for name in self.models)
        for name, model in self.models.items():
            factor = (times or {}).get(name, 1.0)
            updates.append(model.encrypt(self.local(name, factor), WEIGHTS[name], scales))
            if self.precision == "previous" and self.round == 0:
                continue  # it measures only
            for key, move in change(name, self.round, factor).items():
                self.exact[key] = self.exact[key] + WEIGHTS[name] / total * move
        aggregate = self.sum(updates)
        for model in self.models.values():
            assert model.apply(aggregate)
        self.round += 1
        return aggregate

    def advance(self, times: dict[str, float] | None = None) -> secagg.Update:
        return self.finish(self.scales(), times)

    def check(self) -> None:
        """All have one model, which is off by what is due, and the latest updates have clipped nothing."""
        states = [model.state for model in self.models.values()]
        assert all(model.site.clipped == 0 for model in self.models.values())
        for key, due in self.due().items():
            assert all(np.array_equal(state[key], states[0][key]) for state in states)
            error = np.abs(states[0][key] - self.exact[key]).max()
            assert error <= due + self.slack[key] + self.round * 2.0**-23


@EVERY
def test_nothing_is_lost_but_what_is_due(precision: str) -> None:
    sites = Sites(precision)
    for _ in range(4):
        sites.advance()
    sites.check()
    assert sites.models["a"].calibrates == (precision == "auto")
    report = sites.models["c"].site.report
    assert report is not None
    bits = {item.name: item.bits for item in report.tensors}
    if precision != "fixed":  # which spends its bits on what has been guessed
        assert min(bits.values()) > 4
        assert bits["norm"] > 18
    assert report.round == 3


@EVERY
def test_from_bytes_in_the_middle_of_a_round(precision: str) -> None:
    """Before anything, between calibration and update, and after the update."""
    sites = Sites(precision)
    sites.advance()
    sites.restart("a")
    scales = sites.scales()
    sites.restart("b")
    sites.models["c"].encrypt(sites.local("c"), WEIGHTS["c"], scales)
    sites.restart("c")
    sites.finish(scales)
    sites.restart("a")
    sites.advance()
    sites.check()
    again = GlobalModel.from_bytes(sites.client("b"), sites.models["b"].to_bytes())
    assert again.to_bytes() == sites.models["b"].to_bytes()


@EVERY
def test_a_newcomer_takes_the_stored_model(precision: str, tmp_path: Path) -> None:
    """Also that which nobody has measured for."""
    for rounds in (0, 2):
        sites = Sites(precision, "ab")
        for _ in range(rounds):
            sites.advance()
        sites.models["a"].save_model(tmp_path / "model")
        newcomer = sites.join("c")
        with secagg.Update.open(tmp_path / "model") as model:
            newcomer.load_model(model)
        assert newcomer.round == rounds
        newcomer.site.restore_carry(b"")
        sites.add("c", newcomer)
        for _ in range(3):
            sites.advance()
        sites.check()


@EVERY
def test_a_site_that_applies_the_aggregates_has_what_the_others_have(precision: str) -> None:
    sites = Sites(precision, "ab")
    aggregates = [sites.advance() for _ in range(2)]
    late = sites.join("c")
    for aggregate in aggregates:
        assert late.apply(aggregate)
        assert not late.apply(aggregate)
    sites.add("c", late)
    for _ in range(3):
        sites.advance()
    sites.check()


# Calibration.


def test_a_round_needs_its_scales() -> None:
    sites = Sites("auto")
    model, local = sites.models["a"], sites.local("a")
    before = model.state
    with pytest.raises(StateError, match=r"round 0 has no scales yet: send what calibrate\("):
        model.encrypt(local, 3.0)
    with pytest.raises(StateError, match="no scales"):
        model.encrypt_to("nothing is written", local, 3.0)
    assert not Path("nothing is written").exists()
    calibration = model.calibrate(local | {"steps": np.array(9)}, 3.0)
    assert (calibration.header.kind, calibration.header.base) == ("calibration", model.base)
    assert model.state["steps"] == before["steps"] == 0  # it is taken over with the update
    with pytest.raises(MismatchError):
        model.encrypt(local, 3.0, calibration)


def test_scales_of_another_round_or_model() -> None:
    sites = Sites("auto")
    scales = sites.scales()
    sites.advance()
    with pytest.raises(MismatchError):
        sites.models["a"].encrypt(sites.local("a"), 3.0, scales)
    others = Sites("auto")
    for model in others.models.values():
        model.base = bytes(32)
    with pytest.raises(VerificationError, match="another global model"):
        Sites("auto").models["a"].encrypt(others.local("a"), 3.0, others.scales())


@pytest.mark.parametrize("precision", ["previous", "fixed"])
def test_what_is_not_calibrated_takes_no_calibration(precision: str) -> None:
    sites, foreign = Sites(precision), Sites("auto").scales()
    for calibration in (foreign, sites.advance()):
        with pytest.raises(ConfigError, match="a calibration is given"):
            sites.models["a"].encrypt(sites.local("a"), 3.0, calibration)
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        sites.models["a"].calibrate(sites.local("a"), 3.0)
    sites.advance()


def test_calibrating_again_is_nothing_and_carries_the_same() -> None:
    sites = Sites("auto")
    sites.advance()
    model, local = sites.models["a"], sites.local("a")
    carry = model.site.carry()
    model.calibrate(local, 3.0)
    model.calibrate(local, 3.0)
    assert model.site.carry() == carry
    sites.advance()
    sites.check()


@pytest.mark.parametrize("times", [1.0, 10.0, 100.0])
def test_a_site_that_has_missed_the_calibration(times: float) -> None:
    """It clips what is too large for the others' scales, and pays it back when it has calibrated."""
    sites = Sites("auto")
    sites.advance()
    sites.finish(sites.scales(missing="c"), {"c": times})
    report = sites.models["c"].site.report
    assert report is not None
    assert report.overall.clipped > 0  # by its weight alone
    sites.advance()
    sites.check()


@pytest.mark.parametrize("times", [1.0, 10.0])
def test_a_restart_between_calibration_and_update_that_trains_something_else(times: float) -> None:
    """What it has calibrated counts; what it sends is within that, or clipped, and due in the next round."""
    sites = Sites("auto")
    sites.advance()
    scales = sites.scales()
    sites.restart("c")
    sites.finish(scales, {"c": times})
    sites.advance()
    sites.check()


def test_a_round_that_is_calibrated_again(tmp_path: Path) -> None:
    """It was voided: what was encrypted under the first scales is withdrawn, and in no sum."""
    sites = Sites("auto")
    sites.advance()
    scales = sites.scales(times=0.01)
    for name, model in sites.models.items():
        model.encrypt(sites.local(name), WEIGHTS[name], scales)
        model.withdraw()
    sites.advance()
    sites.check()


def test_updates_under_other_scales_are_in_no_sum_together() -> None:
    sites = Sites("auto", "ab")
    updates = [
        sites.models[name].encrypt(sites.local(name), WEIGHTS[name], scales)
        for name, scales in (("a", sites.scales()), ("b", sites.scales()))
    ]
    with pytest.raises(MismatchError, match="under other scales"):
        sites.sum(updates)


# Scales of the round before.


def test_the_first_round_measures_only() -> None:
    sites = Sites("previous")
    aggregate = sites.advance()
    for name, value in initial().items():
        np.testing.assert_array_equal(sites.models["a"].state[name], value)
    assert aggregate.header.calibration is not None
    sites.advance()
    sites.check()


def test_a_jump_is_clipped_and_paid_back() -> None:
    sites = Sites("previous")
    sites.advance()
    sites.advance({"c": 100.0})
    report = sites.models["c"].site.report
    assert report is not None
    assert report.overall.clipped > 0
    for _ in range(2):
        sites.advance()
    sites.check()


def test_scales_are_part_of_the_state() -> None:
    with pytest.raises(StateError, match=r"round 3 needs the scales .*precision: previous"):
        GlobalModel(Sites("previous").client("a"), initial(), round=3, base=bytes(32))
    sites = Sites("previous")
    sites.advance()
    other = secagg.Client(CONFIGS["auto"], KEYS["auto"].client, "a")
    blob = sites.models["a"].to_bytes()
    assert GlobalModel.from_bytes(other, blob).calibrates  # another configuration: what was measured is of no use
    with pytest.raises(StateError, match="has no scales"):
        GlobalModel.from_bytes(sites.client("a"), GlobalModel(other, initial()).to_bytes())


def test_a_site_that_lost_its_scales_is_found(tmp_path: Path) -> None:
    """A stored model that lies about them leads to updates that nobody adds."""
    sites = Sites("previous")
    sites.advance()
    model = sites.models["a"]
    scales = Scales((100,) * len(SHAPES))
    model.site.encrypt_model(
        tmp_path / "lie", model.state, round=1, base=model.base, layout=model.layout, scales=scales
    )
    with secagg.Update.open(tmp_path / "lie") as stored:
        model.load_model(stored)
    updates = [model.encrypt(sites.local(name), WEIGHTS[name]) for name, model in sites.models.items()]
    with pytest.raises(MismatchError, match="under other scales"):
        sites.sum(updates)


def test_scales_that_are_gone_are_not_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A whole round would do nothing else."""
    sites = Sites("previous")
    sites.advance()
    model = sites.models["a"]
    updates = [each.encrypt(sites.local(name), WEIGHTS[name]) for name, each in sites.models.items()]
    aggregate, before = sites.sum(updates), (model.round, model.base)
    model.save_model(tmp_path / "model")
    monkeypatch.setattr(model.site, "scales_after", lambda source: None)
    with pytest.raises(StateError, match=r"aggregate.* the scales that follow from it are gone: another thread"):
        model.apply(aggregate)
    with secagg.Update.open(tmp_path / "model") as stored, pytest.raises(StateError, match="are gone"):
        model.load_model(stored)
    assert (model.round, model.base) == before
    monkeypatch.undo()
    assert model.apply(aggregate)


def test_scales_that_cannot_be_read_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may fail when it is read for the last time, which is for the scales of the next round."""
    sites = Sites("previous")
    sites.advance()
    model, updates = sites.models["a"], []
    for name, each in sites.models.items():
        updates.append(each.encrypt(sites.local(name), WEIGHTS[name]))
    aggregate, before, held = sites.sum(updates), (model.round, model.base), model.state

    def fail(source: object) -> None:
        raise FormatError("truncated")

    monkeypatch.setattr(model.site, "scales_after", fail)
    with pytest.raises(FormatError, match="truncated"):
        model.apply(aggregate)
    assert (model.round, model.base) == before
    assert all(np.array_equal(held[name], value) for name, value in model.state.items())
    monkeypatch.undo()
    assert model.apply(aggregate)
    assert any(not np.array_equal(held[name], value) for name, value in model.state.items())
