"""`SecureSite` behind the filters of a real `MonaiAlgo`, whose bundle the test writes; the server adds by a `Relay`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from provisioned import Federation
from tiny_bundle import write_bundle

import secagg
from secagg.errors import (
    ConfigError,
    FormatError,
    KeyFileError,
    LayoutError,
    MismatchError,
    RangeError,
    RoundMismatchError,
    StateError,
    StorageError,
)
from secagg.integrations.monai import SecureSite, to_weights
from secagg.server import Relay

pytestmark = pytest.mark.usefixtures("one_thread", "seeds_as_before")

SITES = ("site-1", "site-2")
WEIGHTS = {"site-1": 9, "site-2": 10}
METRIC = "val_mean_dice"
FILTERS = {
    "pre_filters": ["$@site.open"],
    "post_weight_filters": ["$@site.seal"],
    "post_evaluate_filters": ["$@site.metrics"],
    "post_statistics_filters": ["$@site.statistics"],
}


@pytest.fixture
def seeds_as_before() -> Iterator[None]:
    """A bundle sets them for the whole process."""
    yield
    monai.utils.set_determinism(None)


@pytest.fixture
def kits(tmp_path: Path) -> Federation:
    return make_kits(tmp_path / "federation", max_abs=1.0, max_weight=20)


def make_kits(folder: Path, **aggregation: Any) -> Federation:
    aggregation = {"min_clients": 2, "max_clients": 4, **aggregation}
    he = {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}
    return Federation.make(folder, sites=list(SITES), hosts=[], he=he, metrics=[METRIC], aggregation=aggregation)


@dataclass
class Client:
    """The program of a site: a bundle, the file of filters, a `MonaiAlgo`."""

    kit: Path
    folder: Path
    algo: MonaiAlgo = field(init=False)

    def __post_init__(self) -> None:
        name = self.kit.name
        site = {"_target_": "secagg.integrations.monai.SecureSite", "kit": str(self.kit), "weight": WEIGHTS[name]}
        write_bundle(self.folder, filters={"site": site, **FILTERS})
        self.start()

    def start(self, **options: Any) -> None:
        """Begin anew, as another process does."""
        self.algo = MonaiAlgo(
            str(self.folder),
            train_kwargs={"site": int(self.kit.name[-1])},
            config_evaluate_filename="configs/train.json",
            eval_kwargs={"site": int(self.kit.name[-1])},
            config_filters_filename="configs/filters.json",
            **options,
        )
        self.algo.initialize({ExtraItems.CLIENT_NAME: self.kit.name})

    def sees(self) -> dict[str, torch.Tensor]:
        """What the evaluator has, which is the global model if it has just run."""
        return {name: value.clone() for name, value in self.algo.evaluator.network.state_dict().items()}


@dataclass
class World:
    """Two sites and what their server has."""

    clients: dict[str, Client]
    relay: Relay
    initial: dict[str, torch.Tensor]

    def handed_out(self, since: int | None = None, *, store: bool = False) -> ExchangeObject:
        return ExchangeObject(weights=to_weights(self.relay.handout(since, store=store), self.initial))

    def round(self, *names: str) -> dict[str, dict[str, float]]:
        """Let sites evaluate, train and send; return what is told of metrics."""
        told = {}
        for name in names or SITES:
            algo, data = self.clients[name].algo, self.handed_out()
            told[name] = algo.evaluate(data).metrics
            algo.train(data)
            self.relay.add(algo.get_weights().weights["secagg"].tobytes())
        self.relay.finish()
        return told


@pytest.fixture
def world(kits: Federation, tmp_path: Path) -> World:
    clients = {name: Client(kits[name], tmp_path / "bundles" / name) for name in SITES}
    initial = clients["site-1"].algo.trainer.network.state_dict()
    return World(clients, Relay(kits["server"], initial), {name: value.clone() for name, value in initial.items()})


def make_site(kits: Federation) -> SecureSite:
    return SecureSite(kits["site-1"], 9)


def test_sites_train_one_model_and_tell_confirmed_means(world: World) -> None:
    told, dice = [], []
    for _ in range(4):
        told.append(world.round())
        found = {name: client.algo.evaluator.state.metrics[METRIC] for name, client in world.clients.items()}
        dice.append(sum(WEIGHTS[name] * value for name, value in found.items()) / sum(WEIGHTS.values()))
    data = world.handed_out()
    for client in world.clients.values():
        client.algo.evaluate(data)
    one, other = (client.sees() for client in world.clients.values())
    for name, value in one.items():
        assert not value.is_floating_point() or torch.equal(value, other[name]), name
    assert dice[-1] > dice[0] + 0.1
    # The means of a round are known when it has ended, and told when the next has confirmed that all saw one sum.
    assert told[0] == told[1] == {"site-1": {}, "site-2": {}}
    for round in (2, 3):
        assert told[round]["site-1"] == told[round]["site-2"] == {METRIC: pytest.approx(dice[round - 2], abs=1e-3)}


def test_nothing_leaves_but_ciphertext(world: World) -> None:
    algo = world.clients["site-1"].algo
    algo.train(world.handed_out())
    sent = algo.get_weights()
    assert sent.weights.keys() == {"secagg"}
    assert sent.weights["secagg"].dtype == np.uint8
    assert (sent.weight_type, sent.optim, sent.metrics, sent.statistics) == (WeightType.WEIGHT_DIFF, None, None, None)
    update = secagg.Update.from_bytes(sent.weights["secagg"].tobytes())
    assert update.header.site == "site-1"
    assert {spec.role for spec in update.header.layout.tensors} == {"encrypted", "local"}


def test_what_was_learnt_is_sent_for_one_round(world: World) -> None:
    """A server that asks for weights where nothing was trained would have the last ones added twice."""
    world.round()
    algo = world.clients["site-1"].algo
    algo.evaluate(world.handed_out())
    with pytest.raises(
        StateError, match="what was learnt for round 0 would be sent once more, for round 1: call train"
    ):
        algo.get_weights()
    algo.train(world.handed_out())
    first, again = (algo.get_weights().weights["secagg"].tobytes() for _ in range(2))  # it may ask twice
    assert {secagg.Update.from_bytes(blob).header.round for blob in (first, again)} == {1}


@pytest.mark.parametrize("value", [float("nan"), 1.5, 1e300])
def test_a_metric_beyond_its_bound_costs_no_update(
    world: World, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site_of(world)
    opened = site.open(world.handed_out()).weights
    with caplog.at_level("WARNING"):
        assert site.metrics(ExchangeObject(metrics={METRIC: value})).metrics == {}
    assert "not sent: the round has no mean of it" in caplog.text
    learnt = {name: np.zeros_like(array) for name, array in opened.items()}
    assert site.seal(ExchangeObject(weights=learnt, weight_type=WeightType.WEIGHT_DIFF)).weights.keys() == {"secagg"}


def test_the_server_may_ask_for_the_encrypted_model(world: World) -> None:
    algo = world.clients["site-1"].algo
    algo.train(world.handed_out(store=True))
    sent = algo.get_weights().weights
    assert sent.keys() == {"secagg", "secagg.model"}
    world.relay.add(*(value.tobytes() for value in sent.values()))


def test_opening_twice_is_opening_once(world: World) -> None:
    world.round()
    site, data = make_site_of(world), world.handed_out()
    first, again = site.open(data).weights, site.open(data).weights
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    algo = world.clients["site-1"].algo
    algo.evaluate(data)
    algo.train(data)  # which opens it again
    algo.evaluate(data)  # and once more, after training
    world.relay.add(algo.get_weights().weights["secagg"].tobytes())


def make_site_of(world: World) -> SecureSite:
    return SecureSite(world.clients["site-1"].kit, 9)


def test_a_restarted_site_goes_on(world: World) -> None:
    world.round()
    client = world.clients["site-1"]
    (kept,) = client.kit.glob("monai-*.secagg")
    assert kept.stat().st_mode & 0o077 == 0
    client.start()
    client.algo.evaluate(world.handed_out(since=0))  # what the server hands to who has the model of round 0
    world.round()
    assert list(client.kit.glob("monai-*.secagg")) == [kept]


def test_what_is_kept_and_damaged_is_named(world: World) -> None:
    world.round()
    client = world.clients["site-1"]
    (kept,) = client.kit.glob("monai-*.secagg")
    kept.write_bytes(kept.read_bytes()[:-1])
    client.start()
    with pytest.raises(StorageError, match=rf"{kept.name}.*move it away"):
        client.algo.evaluate(world.handed_out())


def test_another_run_needs_another_process(world: World, kits: Federation) -> None:
    client = world.clients["site-1"]
    world.round()
    world.relay = Relay(kits["server"], world.initial)
    with pytest.raises(MismatchError, match="another run"):
        client.algo.evaluate(world.handed_out())
    (kept,) = client.kit.glob("monai-*.secagg")
    client.start()
    client.algo.train(world.handed_out())
    client.algo.get_weights()
    assert not kept.exists()  # it is of the run that has ended
    assert len(list(client.kit.glob("monai-*.secagg"))) == 1


@pytest.mark.parametrize("which", [ModelType.BEST_MODEL, ModelType.FINAL_MODEL])
def test_a_whole_model_is_refused(world: World, which: ModelType) -> None:
    client = world.clients["site-1"]
    client.algo.train(world.handed_out())
    for path in client.algo.model_filepaths.values():
        torch.save(client.algo.trainer.network.state_dict(), client.folder / path)
    with pytest.raises(ConfigError, match="a whole model would leave this site in the clear"):
        client.algo.get_weights({ExtraItems.MODEL_TYPE: which})


def test_full_weights_are_refused(world: World) -> None:
    client = world.clients["site-1"]
    client.start(send_weight_diff=False)
    client.algo.train(world.handed_out())
    with pytest.raises(ConfigError, match="send_weight_diff=True"):
        client.algo.get_weights()


def test_statistics_are_refused(world: World) -> None:
    client = world.clients["site-1"]
    assert client.algo.post_statistics_filters
    with pytest.raises(ConfigError, match="statistics of this site's data would leave it in the clear"):
        client.algo.post_statistics_filters[0](ExchangeObject(statistics={"count": 9}), {})


def test_metrics_that_are_not_named_are_dropped(kits: Federation, world: World) -> None:
    site = make_site(kits)
    site.open(world.handed_out())
    assert site.metrics(ExchangeObject(metrics={METRIC: 0.5, "loss": 0.1})).metrics == {}


def test_a_metric_is_a_number(kits: Federation, world: World) -> None:
    site = make_site(kits)
    site.open(world.handed_out())
    with pytest.raises(LayoutError, match=f"metric '{METRIC}' is no number"):
        site.metrics(ExchangeObject(metrics={METRIC: torch.zeros(2)}))


def test_a_model_in_the_clear_is_refused(world: World) -> None:
    with pytest.raises(FormatError, match="no round of secagg's"):
        world.clients["site-1"].algo.train(ExchangeObject(weights=dict(world.initial)))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("secagg", np.zeros(3), "float64.*where bytes are due"),
        ("secagg", np.frombuffer(b"{", np.uint8), "no JSON"),
        ("secagg", np.frombuffer(b"[1]", np.uint8), "facts of a handout are"),
        ("secagg.manifest", np.zeros((2, 2), np.uint8), r"uint8\[2, 2\], where bytes are due"),
        ("secagg.other", np.zeros(2, np.uint8), "a handout has a manifest"),
    ],
)
def test_what_is_no_handout_is_refused(kits: Federation, world: World, name: str, value: Any, match: str) -> None:
    data = world.handed_out()
    data.weights[name] = value
    with pytest.raises(FormatError, match=match):
        make_site(kits).open(data)


def test_a_handout_that_is_played_back_is_refused(world: World) -> None:
    early = world.handed_out()
    world.round()
    world.round()
    algo = world.clients["site-1"].algo
    algo.evaluate(world.handed_out())
    with pytest.raises(RoundMismatchError, match="plays back"):
        algo.train(early)


def test_nothing_is_sent_before_something_was_opened(kits: Federation) -> None:
    site = make_site(kits)
    difference = ExchangeObject(weights={"w": np.zeros(1)}, weight_type=WeightType.WEIGHT_DIFF)
    with pytest.raises(StateError, match="no global model yet"):
        site.seal(difference)


@pytest.mark.parametrize("change", ["lacks", "has a tensor"])
def test_another_network_is_refused(kits: Federation, world: World, change: str) -> None:
    site = make_site(kits)
    difference = {name: value * 0 for name, value in site.open(world.handed_out()).weights.items()}
    if change == "lacks":
        difference.popitem()
    else:
        difference["more"] = np.zeros(1)
    with pytest.raises(LayoutError, match=change):
        site.seal(ExchangeObject(weights=difference, weight_type=WeightType.WEIGHT_DIFF))


@pytest.mark.parametrize("weight", [0, -1, 21, float("nan"), "9", True])
def test_a_weight_is_checked_at_once(kits: Federation, weight: Any) -> None:
    with pytest.raises(RangeError, match="weight"):
        SecureSite(kits["site-1"], weight)


def test_two_exchanges_a_round_are_refused(tmp_path: Path) -> None:
    kits = make_kits(tmp_path)  # scales are measured in the round
    with pytest.raises(ConfigError, match="precision"):
        SecureSite(kits["site-1"], 9)


def test_the_servers_kit_is_refused(kits: Federation) -> None:
    with pytest.raises(KeyFileError):
        SecureSite(kits["server"], 9)


def test_it_is_not_pickled(kits: Federation) -> None:
    with pytest.raises(TypeError, match="secret key"):
        pickle.dumps(make_site(kits))


def test_the_first_model_goes_only_to_who_may_need_it(world: World) -> None:
    world.round()
    late, known = (to_weights(world.relay.handout(since), world.initial) for since in (None, 1))
    assert world.initial.keys() < late.keys()
    assert not world.initial.keys() & known.keys()
    assert json.loads(known["secagg"].tobytes())["round"] == 1
