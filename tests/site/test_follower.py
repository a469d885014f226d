"""Frameworks' one exchange a round: a `Relay` at the server, a `Follower` at each site, made anew for each message."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from provisioned import Federation
from relayed import CHANGES, FIXED, METERED, MODEL, PREVIOUS, WEIGHTS, Relayed, mean_of, provision, tolerance

import secagg
from secagg.errors import (
    ConfigError,
    DigestError,
    DuplicateError,
    FormatError,
    KeyFileError,
    LayoutError,
    MismatchError,
    QuorumError,
    RangeError,
    RoundMismatchError,
    SecAggError,
    StateError,
    StorageError,
    VerificationError,
)
from secagg.protocol import Handout
from secagg.server import Relay
from secagg.site import Follower, GlobalModel


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return provision(tmp_path_factory.mktemp("fixed"))


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return provision(tmp_path_factory.mktemp("metered"), METERED)


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return provision(tmp_path_factory.mktemp("previous"), PREVIOUS)


@pytest.fixture
def run(kits: Federation) -> Relayed:
    return Relayed(kits)


def test_rounds_of_all(run: Relayed) -> None:
    for _ in range(3):
        run.round()
    models = [run.model(name) for name in CHANGES]
    for model in models:
        assert np.array_equal(model["w"], models[0]["w"])
    np.testing.assert_allclose(models[0]["w"], MODEL["w"] + 3 * mean_of("abc"), atol=tolerance(3))
    assert [int(model["steps"]) for model in models] == [6, 6, 6]  # each site's own


def test_scales_of_the_round_before(previous: Federation) -> None:
    """The first round measures only."""
    run = Relayed(previous)
    run.round()
    assert np.array_equal(run.model("a")["w"], MODEL["w"])
    run.round()
    run.round("ab")
    run.round("bc")
    models = [run.model(name)["w"] for name in CHANGES]
    assert np.array_equal(models[0], models[1])
    assert np.array_equal(models[0], models[2])


def test_an_aggregate_counts_once(run: Relayed) -> None:
    """Evaluate gets it after training, and the next training again."""
    run.round()
    follower = run.follower("a")
    after = follower.model.state["w"]  # type: ignore[union-attr]
    run.keep(follower)
    assert np.array_equal(run.model("a")["w"], after)
    again = run.follower("a", run.relay.handout(None))
    assert np.array_equal(again.model.state["w"], after)  # type: ignore[union-attr]


def test_a_site_that_has_missed_rounds(run: Relayed) -> None:
    run.round()
    run.round("ab")
    run.round("ab")
    assert len(run.handout("c").aggregates) == 3
    assert not run.handout("c").first
    run.round("c" + "a")
    assert np.array_equal(run.model("b")["w"], run.model("c")["w"])
    assert int(run.model("c")["steps"]) == 5  # it has trained twice


def test_a_latecomer_gets_what_there_is(run: Relayed) -> None:
    run.round("ab")
    run.round("ab", store="b")
    run.round("ab")
    handout = run.handout("c")
    assert handout.first
    assert handout.model
    assert len(handout.aggregates) == 2  # of the round that the model is of, and the one after it
    run.round("abc")
    assert np.array_equal(run.model("a")["w"], run.model("c")["w"])


def test_a_model_is_asked_for_when_aggregates_weigh_more(kits: Federation) -> None:
    run = Relayed(kits)
    weights = []
    while not run.relay.wants_model:
        weights.append(run.round().nbytes)
    assert sum(weights) > MODEL["w"].nbytes >= sum(weights[:-1])
    run.round(store="a")
    assert len(run.relay.handout(None).aggregates) == 1


def test_a_site_that_lost_its_state(run: Relayed) -> None:
    """It says so, and is handed out all; its own update of the round before is in the sum, and nobody minds."""
    run.round()
    del run.states["a"]
    with pytest.raises(StateError, match="'a' has no global model, as after a restart"):
        run.train("a")
    del run.rounds["a"]
    run.round()
    assert np.array_equal(run.model("a")["w"], run.model("b")["w"])


def test_state_in_a_file(run: Relayed, tmp_path: Path) -> None:
    follower = run.follower("a")
    for _ in range(2):  # in place of the one before
        follower.save(tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == follower.to_bytes()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    with pytest.raises(StorageError):
        follower.save(tmp_path / "nowhere" / "state")
    with pytest.raises(StateError):
        Follower(run.kits["a"]).save(tmp_path / "state")


def test_error_feedback_outlives_processes(tmp_path: Path) -> None:
    """At 3 bits, what a round drops is due in the next: in the end nothing is missing but the last rounding."""
    he = {"lib": "flashe", "config": {"value_bits": 3, "rounding": "nearest", "error_feedback": True}}
    run = Relayed(provision(tmp_path, FIXED, he=he))
    for _ in range(12):
        run.round()
    step = 0.1 * 8 / 3  # of weight times value, max_abs · max_weight over the largest of 3 bits
    np.testing.assert_allclose(run.model("b")["w"], MODEL["w"] + 12 * mean_of("abc"), atol=1.01 * 3 * step / 2 / 8)


def test_an_update_that_was_lost_on_its_way_is_due_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The site finds itself left out of the sum, says so, and goes on as if it had not trained in that round."""
    he = {"lib": "flashe", "config": {"value_bits": 3, "rounding": "nearest", "error_feedback": True}}
    kits = provision(tmp_path, FIXED, he=he)
    models = []
    for loses in (True, False):
        run = Relayed(kits)
        run.round()
        if loses:
            run.train("c")  # nobody adds it
        run.round("ab")
        run.round()
        models.append(run.model("a")["w"])
        told = [record.message for record in caplog.records if record.name == "secagg.site.follower"]
        assert told == ["the sum of round 1 is of a, b, without what c has sent: refused, lost, or left out"]
    assert np.array_equal(*models)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "secagg.site.follower"]


def test_an_update_that_no_sum_can_tell_of(run: Relayed, caplog: pytest.LogCaptureFixture) -> None:
    """A stored model of a later round takes the place of the sum in which it is, or is not."""
    run.round()
    run.train("c")  # nobody adds it
    del run.rounds["c"]
    run.round("ab")
    run.round("ab", store="a")
    run.follower("c")
    assert messages(caplog) == ["whether what c has sent is in the sum of round 1, nobody can tell"]


@pytest.mark.parametrize("evaluates", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_a_carry_that_is_lost_is_said_to_be(
    tmp_path: Path, evaluates: bool, stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the site keeps its new state once before it trains."""
    he = {"lib": "flashe", "config": {"value_bits": 3, "rounding": "nearest", "error_feedback": True}}
    run = Relayed(provision(tmp_path, FIXED, he=he))
    run.round()
    run.round(store="b" if stored else "")
    del run.states["a"], run.rounds["a"]
    if evaluates:
        run.keep(run.follower("a"))
        run.rounds["a"] = 2
    with pytest.warns(UserWarning, match="what rounding dropped from the site's earlier updates.* is lost"):
        run.train("a")
    assert sum("has an update of a that it does not know of" in message for message in messages(caplog)) >= 1


def test_a_latecomer_that_evaluates_first_has_lost_nothing(tmp_path: Path) -> None:
    """Warnings are errors here."""
    he = {"lib": "flashe", "config": {"value_bits": 3, "rounding": "nearest", "error_feedback": True}}
    run = Relayed(provision(tmp_path, FIXED, he=he))
    run.keep(run.follower("c"))
    run.rounds["c"] = 0
    run.round("ab")
    run.keep(run.follower("c"))
    run.train("c")


def test_metrics_are_weighted_means(metered: Federation) -> None:
    """Of those that all sites have given: else it could be the number of a single one."""
    run = Relayed(metered, metrics=["loss", "accuracy"])
    losses = {"a": 2.0, "b": 1.0, "c": 0.5}
    for name in "abc":
        values = {"loss": losses[name], "accuracy": 0.25 if name != "c" else np.nan}
        run.relay.add(*run.train(name, metrics=values))
        run.rounds[name] = run.relay.round
    run.relay.finish()
    follower = run.follower("b")
    assert follower.model is not None
    expected = np.average(list(losses.values()), weights=list(WEIGHTS.values()))
    assert follower.model.metrics == {"loss": pytest.approx(expected, abs=2 * tolerance(1) * 1000)}
    assert set(follower.model.state) == {"w", "steps"}
    again = Follower(metered["b"], follower.to_bytes())
    assert again.model is not None
    assert again.model.metrics == follower.model.metrics


def test_the_server_is_told_what_sites_have_signed_to_have_applied(metered: Federation) -> None:
    """If it shows each site another sum, none of these gets the next updates of two sites."""
    run = Relayed(metered, metrics=["loss"])
    run.round(metrics={"loss": 2.0})
    assert run.follower("a").confirmed == {}
    first = run.follower("a").means
    run.round()
    follower = run.follower("a")
    assert follower.confirmed == first
    assert follower.means == {}  # nobody gave any
    assert Follower(metered["a"], follower.to_bytes()).confirmed == first
    forks = {}
    updates = {name: run.train(name, metrics={"loss": 3.0})[0] for name in "abc"}
    for names in ("ab", "ac"):
        other = secagg.Aggregator.load(metered["server"], 2, base=run.relay.base)
        for name in names:
            other.add(secagg.Update.from_bytes(updates[name]))
        forks[names] = other.finish().to_bytes()
    shown = run.handout("b")
    b = run.follower("b", replace(shown, round=3, aggregates=(*shown.aggregates, forks["ab"])))
    assert set(b.means) == {"loss"}
    assert b.confirmed == {}  # of round 1, where nobody gave any


def test_metrics_under_measured_scales(previous: Federation) -> None:
    run = Relayed(previous, metrics=["loss"])
    for loss in (3.0, 2.5, 2.25):
        run.round(metrics={"loss": loss})
    assert run.follower("a").means["loss"] == pytest.approx(2.25, rel=2**-12)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"accuracy": 0.5}, RangeError, "'accuracy' was not announced; metrics are loss"),
        ({"loss": "0.5"}, RangeError, "'loss' is '0.5'; give a number"),
        ({"loss": True}, RangeError, "'loss' is True"),
        ({"loss": 101.0}, RangeError, r"secagg\.metrics\.loss"),
    ],
)
def test_metrics_that_are_none(
    metered: Federation, given: dict[str, float], error: type[SecAggError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Relayed(metered, metrics=["loss"]).train("a", metrics=given)


@pytest.mark.parametrize("names", ["loss", ["loss", "loss"], [3], 3])
def test_names_of_metrics_that_are_none(kits: Federation, names: object) -> None:
    with pytest.raises(ConfigError, match="metrics"):
        Relay(kits["server"], MODEL, metrics=names)  # type: ignore[arg-type]


def test_a_small_weight_counts_in_metrics(tmp_path: Path) -> None:
    """One bound for all of them, far above their values, makes no difference to who has given one."""
    aggregation = {
        "min_clients": 2,
        "max_clients": 4,
        "max_weight": 1000,
        "max_abs": {"default": 0.1, "secagg.metrics*": 100},
    }
    run = Relayed(provision(tmp_path, aggregation), metrics=["loss"])
    run.round("ab", metrics={"loss": 40.0})
    assert run.follower("a").means["loss"] == pytest.approx(40.0, rel=0.02)  # a step of 16 bits is 3, of 3 times 40


def test_a_run_without_metrics_needs_no_other_bounds(metered: Federation) -> None:
    run = Relayed(metered)
    run.round()
    assert run.follower("a").means == {}


@pytest.mark.parametrize(
    "encrypt", ["conv", "first-middle-last", {"include": ["conv.*"]}, {"exclude": ["*metrics*", "b"]}]
)
def test_metrics_are_never_in_the_clear(encrypt: Any) -> None:
    config = secagg.Config.from_dict(
        {"he": {"preset": "smallest"}, "encrypt": encrypt, "metrics": ["loss"], "aggregation": {"max_clients": 3}}
    )
    state = {"conv.weight": np.zeros((2, 2, 3), np.float32), "b": np.zeros(2, np.float32)}
    model = GlobalModel(secagg.Client(config, secagg.generate_keys(config).client, "a"), state)
    roles = {spec.name: spec.role for spec in model.layout.sent}
    assert roles["secagg.metrics"] == roles["secagg.metrics.loss"] == roles["conv.weight"] == "encrypted"
    assert roles["b"] == "clear"


def test_a_model_with_a_name_of_metrics(kits: Federation) -> None:
    with pytest.raises(LayoutError, match=r"'secagg\.metrics\.loss': names that begin with secagg\.metrics"):
        Relay(kits["server"], MODEL | {"secagg.metrics.loss": np.zeros(3, np.float32)})


# What a server may say that is not so.


def replayed(run: Relayed) -> Handout:
    old = run.relay.handout(run.relay.round - 1)
    run.round()
    run.keep(run.follower("a"))
    return old


def held_back(run: Relayed) -> Handout:
    return replace(run.handout("a"), aggregates=())


def said_later(run: Relayed) -> Handout:
    return replace(run.handout("a"), round=7)


def of_another_run(run: Relayed) -> Handout:
    other = Relayed(run.kits)
    other.round()
    return other.relay.handout(0)


def impersonated(run: Relayed) -> Handout:
    """Another holder of its kit was added in its place."""
    run.train("a")
    trained = run.states["a"]
    run.round()  # where the other one trains, too
    run.states["a"] = trained
    return run.handout("a")


def impersonated_and_played_back(run: Relayed) -> Handout:
    """So, too, and a sum without it, which is applied already, comes once more."""
    run.keep(run.follower("a"))
    run.rounds["a"] = run.relay.round
    run.round("bc")
    run.train("a")
    trained = run.states["a"]
    run.round()
    run.states["a"] = trained
    return run.relay.handout(1)


def changed_aggregate(run: Relayed) -> Handout:
    handout = run.handout("a")
    blob = bytearray(handout.aggregates[-1])
    blob[len(blob) // 2] ^= 1
    return replace(handout, aggregates=(bytes(blob),))


def an_update_for_an_aggregate(run: Relayed) -> Handout:
    update, _ = run.train("b")
    return replace(run.handout("a"), aggregates=(update,))


def truncated_manifest(run: Relayed) -> Handout:
    return replace(run.handout("a"), manifest=run.handout("a").manifest[:-1])


def other_metrics(run: Relayed) -> Handout:
    return replace(run.handout("a"), metrics=("loss",))


LIES: dict[Callable[[Relayed], Handout], tuple[type[SecAggError], str]] = {
    replayed: (RoundMismatchError, "hands out round 1, and .* leads site 'a' to round 2"),
    held_back: (RoundMismatchError, "hands out round 1, and .* leads site 'a' to round 0"),
    said_later: (RoundMismatchError, "hands out round 7"),
    of_another_run: (VerificationError, "began from|another global model"),
    impersonated: (VerificationError, "'a'"),
    impersonated_and_played_back: (VerificationError, "lists another update of site 'a'"),
    changed_aggregate: (DigestError, "digest"),
    an_update_for_an_aggregate: (MismatchError, "update"),
    truncated_manifest: (FormatError, "truncated"),
    other_metrics: (MismatchError, "metrics of the run are loss by now; it began with none"),
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_server_that_lies(run: Relayed, lie: Callable[[Relayed], Handout]) -> None:
    run.round()
    handout = lie(run)
    error, message = LIES[lie]
    before = run.states["a"]
    follower = Follower(run.kits["a"], before)
    with pytest.raises(error, match=message):
        follower.receive(handout)
    if lie in (impersonated, impersonated_and_played_back):  # another has its kit: nothing that follows can be right
        return
    run.states["a"] = follower.to_bytes()  # what is true leads on from there
    assert np.array_equal(run.model("a")["w"], run.model("b")["w"])


def test_manifests(tmp_path: Path) -> None:
    """The newest one is kept in the kit, and none before it is believed from then on."""
    kits = provision(tmp_path / "first")
    later = kits.change(tmp_path, lambda provisioner, changed, out: provisioner.add(("d",), changed, out))
    manifest = (later["server"] / "project.secagg").read_bytes()
    run = Relayed(kits)
    old = run.handout("a")
    run.follower("a", replace(old, manifest=manifest))
    assert (kits["a"] / "project.secagg").read_bytes() == manifest
    with pytest.raises(VerificationError, match="serial 1, an earlier one had 2"):
        run.follower("a", old)


def test_a_newer_manifest_hides_no_loss(tmp_path: Path) -> None:
    """A site that has lost its state says so with its next update, also if sites were added meanwhile."""
    he = {"lib": "flashe", "config": {"value_bits": 3, "rounding": "nearest", "error_feedback": True}}
    kits = provision(tmp_path / "first", FIXED, he=he)
    later = kits.change(tmp_path, lambda provisioner, changed, out: provisioner.add(("d",), changed, out))
    run = Relayed(kits)
    run.round()
    run.states.pop("a")
    run.rounds.pop("a")
    run.keep(run.follower("a"))
    handout = replace(run.handout("a"), manifest=(later["server"] / "project.secagg").read_bytes())
    follower = run.follower("a", handout)
    with pytest.warns(UserWarning, match="what rounding dropped from the site's earlier updates"):
        follower.encrypt(MODEL, 1.0)


def test_a_first_model_that_is_not_the_provisioners(tmp_path: Path) -> None:
    """Who has signed the manifest has signed the digest of the first model: a server cannot choose another."""
    np.savez(tmp_path / "model.npz", **MODEL)
    kits = provision(tmp_path, initial=str(tmp_path / "model.npz"))
    run = Relayed(kits)
    run.round()
    other = MODEL | {"w": MODEL["w"] + np.float32(1e-3)}
    with pytest.raises(VerificationError, match="first global model is another"):
        Relay(kits["server"], other)
    with pytest.raises(VerificationError, match="first global model is another"):
        Follower(kits["b"]).receive(run.relay.handout(None), other)


@pytest.mark.parametrize("aggregation", [PREVIOUS, METERED])
def test_metrics_beside_the_model_that_a_project_names(tmp_path: Path, aggregation: dict[str, Any]) -> None:
    np.savez(tmp_path / "model.npz", **MODEL)
    run = Relayed(provision(tmp_path, aggregation, initial=str(tmp_path / "model.npz")), metrics=["loss"])
    for _ in range(2):
        run.round(metrics={"loss": 2.5})
    assert run.follower("a").means["loss"] == pytest.approx(2.5, abs=0.1)


# What sites may return that is of no use.


def test_what_is_refused_leaves_the_sum_as_it_was(run: Relayed, tmp_path: Path) -> None:
    run.round()
    own = run.train("a")[0]
    relay = run.relay
    with pytest.raises(FormatError):
        relay.add(np.zeros(1000, np.float32).tobytes())
    with pytest.raises(FormatError):
        relay.add(b"")
    with pytest.raises(FormatError):
        relay.add(own[:-1])
    with pytest.raises((DigestError, FormatError)):
        relay.add(own[:-100] + bytes(1) + own[-99:])
    other = Relayed(run.kits)
    with pytest.raises(RoundMismatchError):
        relay.add(other.train("b")[0])
    other.round()
    with pytest.raises(MismatchError, match="began from the global model"):
        relay.add(other.train("b")[0])  # of another run, at the same round
    foreign = Relayed(provision(tmp_path / "foreign"))
    foreign.round()
    with pytest.raises(SecAggError, match="key|manifest"):
        relay.add(foreign.train("b")[0])
    assert relay.sites == ()
    relay.add(own)
    with pytest.raises(DuplicateError):
        relay.add(own)
    with pytest.raises(DuplicateError, match="site a contributes twice"):
        relay.add(run.train("a")[0])  # two nodes with one kit
    with pytest.raises(QuorumError, match="1 updates, min_clients is 2"):
        relay.finish()
    relay.add(run.train("b")[0])
    assert relay.finish().header.sites == ("a", "b")


def test_a_model_of_no_use_refuses_the_update_with_it(run: Relayed) -> None:
    run.round()
    old = run.train("a", store=True)[1]
    run.round()
    update, model = run.train("a", store=True)
    strangers = run.train("b", store=True)[1]
    other = Relayed(run.kits)
    other.round()
    other.round()
    for bad, error in (
        (old, RoundMismatchError),
        (strangers, MismatchError),
        (other.train("a", store=True)[1], MismatchError),
        (model[:-1], FormatError),
        (model[: len(model) // 2] + bytes(1) + model[len(model) // 2 + 1 :], DigestError),
        (update, MismatchError),
    ):
        with pytest.raises(error):
            run.relay.add(update, bad)
    assert run.relay.sites == ()
    run.relay.add(update, model)


def test_kits_that_are_none(kits: Federation, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="server's kit"):
        Follower(kits["server"])
    with pytest.raises(KeyFileError, match="kit of a site"):
        Relay(kits["a"], MODEL)
    with pytest.raises(KeyFileError, match="is no kit"):
        Follower(tmp_path / "nothing")
    run = Relayed(kits)
    run.round()
    with pytest.raises(MismatchError, match="'b'"):
        Follower(kits["a"], run.states["b"])


def test_two_exchanges_are_refused_at_the_start(tmp_path: Path) -> None:
    kits = provision(tmp_path, {"min_clients": 2, "max_clients": 3})
    with pytest.raises(ConfigError, match="two exchanges a round.*precision: previous"):
        Relay(kits["server"], MODEL)
    with pytest.raises(ConfigError, match="two exchanges a round.*precision: previous"):
        Follower(kits["a"])


def test_nothing_before_a_handout(kits: Federation) -> None:
    follower = Follower(kits["a"])
    assert follower.means == {}
    for call in (follower.to_bytes, follower.stored, lambda: follower.encrypt(MODEL, 1.0)):
        with pytest.raises(StateError, match="has no global model yet"):
            call()
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(follower)


def test_a_relay_of_a_model_that_cannot_be_sent(kits: Federation) -> None:
    with pytest.raises(RangeError, match="'w'"):
        Relay(kits["server"], {"w": np.full(3, np.nan, np.float32)})
    with pytest.raises(LayoutError):
        Relay(kits["server"], {})


GOOD = {"run": "r", "round": 0, "first": True, "store": False, "metrics": []}


@pytest.mark.parametrize(
    ("facts", "blobs"),
    [
        (GOOD | {"more": 1}, {"manifest": b"m"}),
        ({}, {"manifest": b"m"}),
        (GOOD | {"round": True}, {"manifest": b"m"}),
        (GOOD | {"round": -1}, {"manifest": b"m"}),
        (GOOD | {"run": "r" * 65}, {"manifest": b"m"}),
        (GOOD | {"metrics": ["a", "a"]}, {"manifest": b"m"}),
        (GOOD | {"metrics": [1]}, {"manifest": b"m"}),
        (GOOD, {}),
        (GOOD, {"manifest": "m"}),
        (GOOD, {"manifest": b"m", "aggregate-1": b"a"}),
        (GOOD, {"manifest": b"m", "aggregate-0": b"a", "aggregate-2": b"a"}),
        (GOOD, {"manifest": b"m", "more": b"a"}),
    ],
)
def test_handouts_that_are_none(facts: dict[str, object], blobs: dict[str, bytes]) -> None:
    with pytest.raises(FormatError):
        Handout.from_parts(facts, blobs)


def test_a_handout_goes_and_comes() -> None:
    handout = Handout("r", 3, b"m", True, b"model", tuple(b"%d" % i for i in range(12)), True, ("loss",))
    assert Handout.from_parts(handout.facts(), handout.blobs()) == handout
