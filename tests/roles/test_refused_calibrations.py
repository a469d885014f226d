"""Whatever is wrong with a calibration, or with the scales that an update names, is refused, and nothing is added."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from container import Container
from federation import EXACT, Federation, federate, other_keys, random_states

import secagg
from secagg import Update
from secagg.errors import (
    ConfigError,
    DuplicateError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    RoundMismatchError,
    ScalesMismatchError,
)

SHAPES = {"w": (1500,), "c": (5,), "b": (2, 3)}
ENCRYPT = {"exclude": ["c"]}
ROUND = 5


@dataclass(frozen=True)
class Measured:
    """Two good calibrations and two good updates under what they give, and a third site."""

    federation: Federation
    states: list
    calibrations: list[Update]
    scales: Update
    good: list[Update]

    @classmethod
    def of(cls, lib):
        federation, states = federate(f"{lib}/auto", encrypt=ENCRYPT), random_states(3, SHAPES)
        sites = list(zip(federation.sites(2), states, strict=False))
        for site, _ in sites:
            site.restore_carry(b"")
        calibrations = [site.calibrate(state, round=ROUND) for site, state in sites]
        scales = federation.add(calibrations)
        good = [site.encrypt(state, round=ROUND, calibration=scales) for site, state in sites]
        return cls(federation, states, calibrations, scales, good)

    def site(self, federation=None):
        site = (federation or self.federation).site("site-3")
        site.restore_carry(b"")
        return site

    def calibration(self, federation=None, round=ROUND, **more):
        return self.site(federation).calibrate(self.states[2], round=round, **more)

    def update(self, scales=None):
        return self.site().encrypt(self.states[2], round=ROUND, calibration=scales or self.scales)

    def aggregator(self, kind, **more):
        aggregator = secagg.Aggregator(self.federation.config, self.federation.keys.server, ROUND, kind=kind, **more)
        aggregator.add({"calibration": self.calibrations, "update": self.good}[kind][0])
        return aggregator

    def finish(self, aggregator):
        """Whatever was refused has no part in the sum."""
        kind = aggregator._admission.kind
        aggregator.add({"calibration": self.calibrations, "update": self.good}[kind][1])
        summed = aggregator.finish()
        if kind == "calibration":
            assert Container.read(summed.to_bytes()).payloads == Container.read(self.scales.to_bytes()).payloads
        else:
            self.federation.assert_mean(self.federation.site().decrypt(summed), self.states[:2])


@pytest.fixture(scope="module", params=EXACT)
def measured(request):
    return Measured.of(request.param)


def of_other_scales(measured):
    """A site that has calibrated alone with another: what it encrypts under is no scale of this round."""
    others = [measured.calibrations[0], measured.calibration()]
    return measured.update(measured.federation.add(others))


OF_MEASURED = {
    "an update for a calibration": (
        "calibration",
        lambda m: m.update(),
        MismatchError,
        "is of kind 'update'; kind 'calibration' is needed here",
    ),
    "scales for a calibration": ("calibration", lambda m: m.scales, MismatchError, "is of kind 'scales'; kind 'calib"),
    "a calibration for an update": (
        "update",
        lambda m: m.calibration(),
        MismatchError,
        "is of kind 'calibration'; kind 'update' is needed here",
    ),
    "scales for an update": ("update", lambda m: m.scales, MismatchError, "is of kind 'scales'; kind 'update'"),
    "a calibration of another round": (
        "calibration",
        lambda m: m.calibration(round=ROUND + 1),
        RoundMismatchError,
        "is for round 6, this is round 5",
    ),
    "a calibration of another base": (
        "calibration",
        lambda m: m.calibration(base=bytes(32)),
        MismatchError,
        "site-3 names a global model that it began from, and the sum of round 5 names none",
    ),
    "a calibration of another key": (
        "calibration",
        lambda m: m.calibration(other_keys(m.federation)),
        KeyMismatchError,
        "is under key",
    ),
    "a calibration for other weights": (
        "calibration",
        lambda m: m.calibration(m.federation.but(max_weight=9.0)),
        MismatchError,
        "aggregation.max_weight 9.0, expected None",
    ),
    "a calibration of another encrypted set": (
        "calibration",
        lambda m: m.calibration(m.federation.but(encrypt="all")),
        LayoutError,
        "'c' is float32.* encrypted, expected .*clear",
    ),
    "a second calibration of a site": (
        "calibration",
        lambda m: m.federation.site("site-1").calibrate(m.states[0], round=ROUND),
        DuplicateError,
        "site site-1 contributes twice",
    ),
    "an update under other scales": (
        "update",
        of_other_scales,
        ScalesMismatchError,
        "was made under other scales than those of round 5: calibrate again, and encrypt again",
    ),
    "an update of max_abs": (
        "update",
        lambda m: federate(m.federation.variant, encrypt=ENCRYPT).site("site-3").encrypt(m.states[2], round=ROUND),
        MismatchError,
        "has other params: .*overflow|has aggregation.precision 'fixed', expected 'auto': give all sites one config",
    ),
}


@pytest.mark.parametrize(("kind", "make", "error", "match"), OF_MEASURED.values(), ids=OF_MEASURED)
def test_what_does_not_fit_measured_scales(measured, kind, make, error, match):
    aggregator, bad = measured.aggregator(kind), make(measured)
    for attempt in (lambda: aggregator.add(bad), lambda: aggregator.admit(bad.header)):
        with pytest.raises(error, match=match) as caught:
            attempt()
        assert caught.type is error
    assert aggregator.sites == ("site-1",)
    measured.finish(aggregator)


def test_the_server_names_the_scales_of_a_round(measured):
    """Then not even the first update may be under others."""
    bad = of_other_scales(measured)
    aggregator = secagg.Aggregator(
        measured.federation.config, measured.federation.keys.server, ROUND, calibration=measured.scales.digest()
    )
    with pytest.raises(ScalesMismatchError, match="was made under other scales"):
        aggregator.add(bad)
    aggregator.add(measured.good[0])
    measured.finish(aggregator)


@pytest.mark.parametrize("name", [b"", bytes(31), "ab" * 32, 7])
def test_scales_that_are_named_otherwise(measured, name):
    with pytest.raises(ConfigError, match="calibration is .*; give 32 bytes"):
        secagg.Aggregator(measured.federation.config, measured.federation.keys.server, calibration=name)


def test_scales_where_none_are_measured(lib):
    federation = federate(lib)
    with pytest.raises(
        ConfigError, match="calibration is given, and an update of precision 'fixed' is under no scales"
    ):
        secagg.Aggregator(federation.config, federation.keys.server, calibration=bytes(32))
    with pytest.raises(ConfigError, match="kind is 'calibration', and with precision 'fixed' no site calibrates"):
        secagg.Aggregator(federation.config, federation.keys.server, kind="calibration")
