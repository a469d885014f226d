"""The handler in a real `SupervisedTrainer`, with real keys and ciphertexts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai_sites import State, assert_equal, make_network, make_trainer, snapshot

import secagg
from secagg.errors import (
    ConfigError,
    DigestError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    RangeError,
    RoundMismatchError,
    SecAggError,
    StateError,
    VerificationError,
)
from secagg.integrations.monai import SecAggHandler
from secagg.scheme.codec import RealCodec
from secagg.site import GlobalModel, network_state

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = secagg.Config.from_dict(
    {
        "he": {
            "lib": "tenseal",
            "config": {
                "poly_modulus_degree": 8192,
                "coeff_mod_bit_sizes": [60, 40, 40],
                "scale_bits": 40,
                "scheme": "CKKS",
            },
        },
        "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 10},
    }
)
KEYS = secagg.generate_keys(CONFIG)
WEIGHTS = {"site-1": 3, "site-2": 5, "site-3": 10}


def make_model(name: str = "site-1", state: Mapping[str, Any] | None = None, **options: Any) -> GlobalModel:
    return GlobalModel(secagg.Client(CONFIG, KEYS.client, name), state or make_network().state_dict(), **options)


def make_handler(name: str = "site-1", state: Mapping[str, Any] | None = None, **options: Any) -> SecAggHandler:
    return SecAggHandler(make_model(name, state), weight=WEIGHTS[name], **options)


def trained(*names: str) -> list[SecAggHandler]:
    """Handlers of sites that have trained one round from the same network, each on data of its own."""
    handlers = [make_handler(name) for name in names]
    for seed, handler in enumerate(handlers):
        make_trainer(make_network(), seed, train_handlers=[handler]).run()
    return handlers


def aggregate(*updates: secagg.Update | None, round: int = 0) -> secagg.Update:
    aggregator = secagg.Aggregator(CONFIG, KEYS.server, round=round)
    for update in updates:
        assert update is not None
        aggregator.add(update)
    return aggregator.finish()


def tolerance(names: list[str]) -> float:
    """What encryption may change in the mean of these sites."""
    codec = RealCodec(CONFIG.params, CONFIG.aggregation)
    return codec.mean_error(len(names), sum(WEIGHTS[name] for name in names) / CONFIG.aggregation.max_weight)


def assert_weighted_mean(before: State, local: Mapping[str, State], after: State) -> None:
    """Hold a global model against before + Σ w (local − before) / Σ w, in float64."""
    total = sum(WEIGHTS[name] for name in local)
    for name, start in before.items():
        if start.is_floating_point():
            exact = start.double()
            mean = sum(WEIGHTS[site] / total * (state[name].double() - exact) for site, state in local.items())
            # Three float32 roundings: of the difference, of its mean, and of the new value.
            roundings = 3 * torch.finfo(torch.float32).eps * max(1.0, float(exact.abs().max()) + 1.0)
            assert float((after[name].double() - exact - mean).abs().max()) <= tolerance(list(local)) + roundings


@pytest.mark.parametrize("n_sites", [2, 3])
def test_two_rounds_are_federated_averaging(n_sites: int) -> None:
    names = list(WEIGHTS)[:n_sites]
    handlers = {name: make_handler(name) for name in names}
    networks = {name: make_network() for name in names}
    trainers = {
        name: make_trainer(networks[name], seed, examples=seed + 3, train_handlers=[handlers[name]])
        for seed, name in enumerate(names)
    }
    before = snapshot(networks["site-1"].state_dict())
    counter = "1.num_batches_tracked"
    for round in range(2):
        for name in names:
            trainers[name].run()
        local = {name: snapshot(networks[name].state_dict()) for name in names}
        assert any(float((local[name]["0.weight"] - before["0.weight"]).abs().max()) > 1e-3 for name in names)
        result = aggregate(*(handlers[name].update for name in names), round=round)
        for name in names:
            handlers[name].model.apply(result)
            assert handlers[name].model.round == round + 1
            assert handlers[name].encrypt_seconds > 0
        after = snapshot(handlers["site-1"].model.state)
        assert_weighted_mean(before, local, after)
        for seed, name in enumerate(names):
            state = snapshot(handlers[name].model.state)
            assert int(state.pop(counter)) == (seed + 3) * (round + 1)
            assert_equal(state, {key: value for key, value in after.items() if key != counter})
            assert "1.running_var" in state
        before = after


def test_training_starts_from_the_global_model_and_keeps_its_own_counter() -> None:
    one, two = make_handler("site-1"), make_handler("site-2")
    network = make_network()
    seen: list[State] = []
    trainer = make_trainer(network, 1)
    one.attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda: seen.append(snapshot(network.state_dict())))
    trainer.run()
    make_trainer(make_network(), 2, examples=7, train_handlers=[two]).run()
    one.model.apply(aggregate(one.update, two.update))
    trainer.run()
    assert_equal(seen[1], snapshot(one.model.state) | {"1.num_batches_tracked": torch.tensor(4)})
    assert int(network.state_dict()["1.num_batches_tracked"]) == 8


def test_a_new_trainer_each_round_and_a_late_site() -> None:
    one, two = make_handler("site-1"), make_handler("site-2")
    make_trainer(make_network(), 1, train_handlers=[one]).run()
    make_trainer(make_network(), 2, train_handlers=[two]).run()
    result = aggregate(one.update, two.update)
    one.model.apply(result)
    late = make_handler("site-3")
    late.model.apply(result)
    floats = [name for name, value in one.model.state.items() if value.is_floating_point()]
    assert_equal({n: one.model.state[n] for n in floats}, {n: late.model.state[n] for n in floats})

    kept = make_model("site-2", one.model.state, round=1, base=one.model.base)
    restarted = SecAggHandler(kept, weight=WEIGHTS["site-2"])
    for handler in (one, restarted, late):
        make_trainer(make_network(9), 3, train_handlers=[handler]).run()  # its own weights do not matter
    aggregate(one.update, restarted.update, late.update, round=1)


def test_wrong_round_leaves_model_and_round() -> None:
    one, two = make_handler("site-1"), make_handler("site-2")
    for seed, handler in enumerate((one, two)):
        make_trainer(make_network(), seed, train_handlers=[handler]).run()
    result, another = aggregate(one.update, two.update), aggregate(*(site.update for site in trained(*WEIGHTS)))
    assert one.model.apply(result)
    before = snapshot(one.model.state)
    assert not one.model.apply(result)  # the same again is none of another round
    with pytest.raises(RoundMismatchError, match="of round 0, not of round 1"):
        one.model.apply(another)
    assert_equal(one.model.state, before)
    assert one.model.round == 1


def test_each_update_says_which_global_model_it_began_from() -> None:
    one, two = trained("site-1", "site-2")
    initial = one.model.site.base(make_network().state_dict())
    for round, expected in enumerate((initial, None)):
        assert one.update is not None
        assert one.update.header.base == one.model.base
        assert expected in (one.model.base, None)
        result = aggregate(one.update, two.update, round=round)
        for handler in (one, two):
            handler.model.apply(result)
            assert handler.model.base == result.next_base
            make_trainer(make_network(9), 3, train_handlers=[handler]).run()
    assert make_model().base == initial
    assert make_model(state=make_network(1).state_dict()).base != initial


def test_a_sum_of_updates_from_another_global_model_is_refused() -> None:
    handlers = [make_handler(name, make_network(5).state_dict()) for name in ("site-1", "site-2")]
    for seed, handler in enumerate(handlers):
        make_trainer(make_network(5), seed, train_handlers=[handler]).run()
    result = aggregate(*(handler.update for handler in handlers))
    [other] = trained("site-3")
    before, base = snapshot(other.model.state), other.model.base
    with pytest.raises(VerificationError, match="another global model"):
        other.model.apply(result)
    assert_equal(other.model.state, before)
    assert (other.model.round, other.model.base) == (0, base)
    with pytest.raises(MismatchError, match="began from the global model"):  # nor is it added to theirs
        aggregate(*(handler.update for handler in (*handlers, other)))


def test_an_aggregate_without_the_update_that_a_receipt_is_for_is_refused() -> None:
    server = secagg.Identity.generate()
    one, two, three = trained("site-1", "site-2", "site-3")
    assert three.update is not None
    receipt = secagg.Receipt.of(three.update, server)
    before = snapshot(three.model.state)
    with pytest.raises(VerificationError, match="has left it out"):
        three.model.apply(aggregate(one.update, two.update), receipt)
    assert_equal(three.model.state, before)
    assert three.model.round == 0
    three.model.apply(aggregate(one.update, two.update, three.update), receipt)
    assert three.model.round == 1


def test_a_site_goes_on_from_the_stored_model_and_the_aggregates_since(tmp_path: Path) -> None:
    one, two = trained("site-1", "site-2")
    results = []
    for round in range(2):
        if round == 1:
            one.model.save_model(tmp_path / "model-1.secagg")
        results.append(aggregate(one.update, two.update, round=round))
        for handler in (one, two):
            handler.model.apply(results[-1])
            make_trainer(make_network(9), round, train_handlers=[handler]).run()
    late = make_handler("site-3", make_network(7).state_dict())
    own = make_network(7).state_dict()["1.num_batches_tracked"]
    with secagg.Update.open(tmp_path / "model-1.secagg") as model:
        assert (model.header.kind, model.header.site, model.header.round) == ("model", "site-1", 1)
        late.model.load_model(model)
    assert (late.model.round, late.model.base) == (1, results[0].next_base)
    assert late.model.state["1.num_batches_tracked"] == own
    assert not late.model.apply(results[0])  # it is in the model that was stored
    assert late.model.apply(results[1])
    with pytest.raises(RoundMismatchError):
        late.model.apply(results[0])
    assert (late.model.round, late.model.base) == (one.model.round, one.model.base)
    expected, found = snapshot(one.model.state), snapshot(late.model.state)
    del expected["1.num_batches_tracked"], found["1.num_batches_tracked"]
    assert_equal(found, expected)
    make_trainer(make_network(8), 3, train_handlers=[late]).run()
    aggregate(one.update, two.update, late.update, round=2)  # their bases agree


def test_a_stored_model_keeps_what_16_bits_would_lose(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(1, 2, 1).to(torch.bfloat16)
    exact = {name: value + 2.0**-20 for name, value in _wide(network.state_dict()).items()}
    make_model(state=exact).save_model(tmp_path / "model.secagg")
    other = make_model("site-2", network.state_dict())
    with secagg.Update.open(tmp_path / "model.secagg") as model:
        other.load_model(model)
    assert_equal(other.state, exact)


def _wide(state: Mapping[str, torch.Tensor]) -> State:
    return {name: value.to(torch.float32) for name, value in state.items()}


def _of_another_key(path: Path) -> secagg.Update:
    other = secagg.Client(CONFIG, secagg.generate_keys(CONFIG).client, "site-1")
    other.encrypt_model(path, make_network().state_dict(), round=1, base=bytes(32))
    return secagg.Update.open(path)


def _without_a_base(path: Path) -> secagg.Update:
    secagg.Client(CONFIG, KEYS.client, "site-1").encrypt_model(path, make_network().state_dict(), round=1)
    return secagg.Update.open(path)


def _of_another_network(path: Path) -> secagg.Update:
    make_model(state=torch.nn.Linear(2, 3).state_dict()).save_model(path)
    return secagg.Update.open(path)


def _an_aggregate(path: Path) -> secagg.Update:
    return aggregate(*(handler.update for handler in trained("site-1", "site-2")))


def _damaged(path: Path) -> secagg.Update:
    make_model().save_model(path)
    blob = bytearray(path.read_bytes())
    blob[-1000] ^= 1
    return secagg.Update.from_bytes(bytes(blob))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_of_another_key, KeyMismatchError),
        (_without_a_base, VerificationError),
        (_of_another_network, LayoutError),
        (_an_aggregate, MismatchError),
        (_damaged, DigestError),
    ],
)
def test_a_stored_model_that_does_not_fit_leaves_all_as_it_was(
    tmp_path: Path, make: Callable[[Path], secagg.Update], error: type[SecAggError]
) -> None:
    handler = make_handler(state=make_network(3).state_dict())
    before, base = snapshot(handler.model.state), handler.model.base
    with make(tmp_path / "model.secagg") as model, pytest.raises(error) as caught:
        handler.model.load_model(model)
    assert type(caught.value) is error
    assert_equal(handler.model.state, before)
    assert (handler.model.round, handler.model.base) == (0, base)


def test_a_round_needs_its_base() -> None:
    with pytest.raises(StateError, match="round 3 needs its base"):
        make_model(round=3)


def test_another_key_leaves_model_and_round() -> None:
    handlers = [make_handler("site-1"), make_handler("site-2")]
    for seed, handler in enumerate(handlers):
        make_trainer(make_network(), seed, train_handlers=[handler]).run()
    result = aggregate(*(handler.update for handler in handlers))
    other = secagg.generate_keys(CONFIG)
    stranger = SecAggHandler(
        GlobalModel(secagg.Client(CONFIG, other.client, "site-1"), make_network().state_dict()), weight=1
    )
    before = snapshot(stranger.model.state)
    with pytest.raises(KeyMismatchError):
        stranger.model.apply(result)
    assert_equal(stranger.model.state, before)
    assert stranger.model.round == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0])
def test_a_value_out_of_range_is_named_and_nothing_is_sent(value: float, tmp_path: Path) -> None:
    for path in (None, tmp_path / "up.secagg"):
        handler, network = make_handler(upload_path=path), make_network()
        trainer = make_trainer(network, train_handlers=[handler])
        before = snapshot(network.state_dict())

        def spoil(engine: Engine) -> None:
            engine.network.get_parameter("3.weight").data[0, 1] += value

        trainer.add_event_handler(Events.EPOCH_COMPLETED, spoil)
        with pytest.raises(RangeError, match=r"'3\.weight'"):
            trainer.run()
        assert handler.update is None
        assert not list(tmp_path.iterdir())
        assert_equal(handler.model.state, before)


def test_a_site_goes_on_after_a_failed_round() -> None:
    """The second run starts from the global model, not from what the failed one left in the network."""
    handler, network = make_handler(), make_network()
    before = snapshot(network.state_dict())
    make_trainer(network, train_handlers=[handler]).run()
    assert handler.update is not None

    broken = make_trainer(network, train_handlers=[handler])

    def fail(engine: Engine) -> None:
        if engine.state.iteration == 2:
            raise OSError("disk gone")

    broken.add_event_handler(Events.ITERATION_COMPLETED, fail)
    with pytest.raises(OSError, match="disk gone"):
        broken.run()
    assert handler.update is None

    seen: list[State] = []
    again = make_trainer(network, train_handlers=[handler])
    again.add_event_handler(Events.STARTED, lambda: seen.append(snapshot(network.state_dict())))
    again.run()
    assert handler.update is not None
    floats = [name for name, value in before.items() if value.is_floating_point()]
    assert_equal({n: seen[0][n] for n in floats}, {n: before[n] for n in floats})


def test_terminate() -> None:
    for skip, sent in ((False, True), (True, False)):
        handler = make_handler()
        trainer = make_trainer(make_network(), train_handlers=[handler])
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate, skip_completed=skip)
        trainer.run()
        assert (handler.update is not None) is sent


def test_to_a_file(tmp_path: Path) -> None:
    path, other = tmp_path / "up.secagg", make_handler("site-2")
    handler = make_handler(upload_path=str(path))
    make_trainer(make_network(), 1, train_handlers=[other]).run()
    network = make_network()
    before = snapshot(network.state_dict())
    make_trainer(network, 2, train_handlers=[handler]).run()
    assert handler.update is None
    assert handler.upload_path == path
    local = {"site-1": snapshot(network.state_dict())}
    with secagg.Update.open(path) as update:
        assert update.header.site == "site-1"
        assert update.header.round == 0
        result = aggregate(update, other.update)
    handler.model.apply(result)
    other_network = make_network()
    make_trainer(other_network, 1).run()
    assert_weighted_mean(before, local | {"site-2": snapshot(other_network.state_dict())}, handler.model.state)

    broken = make_trainer(network, 2, train_handlers=[handler])
    broken.add_event_handler(Events.ITERATION_COMPLETED, _raise)
    with pytest.raises(OSError, match="disk gone"):
        broken.run()
    assert not path.exists()


def _raise() -> None:
    raise OSError("disk gone")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_dtypes(dtype: torch.dtype) -> None:
    """16-bit networks keep their dtype; what is learnt below its resolution adds up in the global model."""
    networks = {
        name: torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Conv3d(2, 1, 1)) for name in ("site-1", "site-2")
    }
    for network in networks.values():
        network.load_state_dict({name: torch.full_like(value, 0.3) for name, value in network.state_dict().items()})
        network.to(dtype)
    handlers = {name: make_handler(name, network.state_dict()) for name, network in networks.items()}
    before = {name: value.to(torch.float64) for name, value in networks["site-1"].state_dict().items()}
    for seed, (name, network) in enumerate(networks.items()):
        make_trainer(network, seed, train_handlers=[handlers[name]]).run()
        assert {value.dtype for value in network.state_dict().values()} == {dtype}
    local = {name: snapshot(network.state_dict()) for name, network in networks.items()}
    result = aggregate(*(handler.update for handler in handlers.values()))
    held = torch.float64 if dtype == torch.float64 else torch.float32
    assert {spec.dtype for spec in result.header.layout.tensors} == {str(held).removeprefix("torch.")}
    for handler in handlers.values():
        handler.model.apply(result)
        assert_weighted_mean(before, local, handler.model.state)
        assert {value.dtype for value in handler.model.state.values()} == {held}
    assert_equal(handlers["site-1"].model.state, snapshot(handlers["site-2"].model.state))
    # A network that learns nothing sends zeros, whatever the global model lost when it was loaded.
    idle = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Conv3d(2, 1, 1)).to(dtype)
    for handler in handlers.values():
        trainer = make_trainer(idle, train_handlers=[handler])
        trainer.optimizer = torch.optim.SGD(idle.parameters(), 0.0)
        trainer.run()
    unmoved = snapshot(handlers["site-1"].model.state)
    handlers["site-1"].model.apply(aggregate(*(handler.update for handler in handlers.values()), round=1))
    assert_weighted_mean(unmoved, {"site-1": unmoved, "site-2": unmoved}, handlers["site-1"].model.state)


def _forget(state: State) -> State:
    return {name: value for name, value in state.items() if name != "0.bias"}


def _reshape(state: State) -> State:
    return state | {"0.bias": torch.zeros(5)}


def _reorder(state: State) -> State:
    return dict(sorted(state.items()))  # as a file of safetensors has them


@pytest.mark.parametrize(
    ("change", "message"),
    [(_forget, r"0\.bias"), (_reshape, r"0\.bias.*\[5\]"), (_reorder, "only the order differs")],
    ids=["names", "shapes", "order"],
)
def test_a_global_model_of_another_network(change: Callable[[State], State], message: str) -> None:
    handler = make_handler(state=change(dict(make_network().state_dict())))
    network = make_network(5)
    before, iterations = snapshot(network.state_dict()), []
    trainer = make_trainer(network, train_handlers=[handler])
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: iterations.append(1))
    with pytest.raises(LayoutError, match=message):
        trainer.run()
    assert handler.update is None
    assert not iterations
    assert_equal(network.state_dict(), before)


def _twins(tied: bool) -> torch.nn.Module:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), torch.nn.Conv3d(1, 1, 1))
    if tied:
        network[1] = network[0]
    return network


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_that_are_one_in_the_network_or_in_the_global_model_only(tied: bool) -> None:
    make_trainer(_twins(tied), train_handlers=[make_handler(state=_twins(tied).state_dict())]).run()
    handler = make_handler(state=_twins(not tied).state_dict())
    with pytest.raises(LayoutError, match=r"'0\.weight' .* one tensor with '1\.weight'"):
        make_trainer(_twins(tied), train_handlers=[handler]).run()


def test_a_state_that_is_no_tensor() -> None:
    with pytest.raises(LayoutError, match="'extra'"):
        make_model(state={"extra": {"a": 1}})


class Masked(torch.nn.Conv3d):
    """What cannot be averaged, and state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(1, 1, 1)
        self.register_buffer("mask", torch.full((2,), -math.inf))
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(image)

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state


def test_what_stays_at_the_site_goes_on_there_in_a_wrapped_network() -> None:
    config = secagg.Config.from_dict({**CONFIG.to_dict(), "stay": ["*mask", "*_extra_state"]})
    network = torch.nn.DataParallel(torch.nn.Sequential(Masked()))
    model = GlobalModel(secagg.Client(config, KEYS.client, "site-1"), network_state(network))
    handler = SecAggHandler(model, weight=1)
    for round in range(2):
        make_trainer(network, examples=3, train_handlers=[handler]).run()
        assert network.module[0].calls == 3 * (round + 1)
    assert handler.update is not None
    assert [spec.name for spec in handler.update.header.layout.tensors] == ["0.weight", "0.bias"]


def test_a_tensor_of_monai_is_refused_before_training() -> None:
    state = dict(make_network().state_dict())
    state["0.weight"] = MetaTensor(state["0.weight"])
    with pytest.raises(LayoutError, match=r"'0\.weight' is of the class MetaTensor, .*as_subclass\(torch\.Tensor\)"):
        make_model(state=state)


def test_the_upload_goes_where_it_was_told_to_wherever_training_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    handler = make_handler(upload_path="up.secagg")
    monkeypatch.chdir("elsewhere")
    make_trainer(make_network(), train_handlers=[handler]).run()
    assert handler.upload_path == tmp_path / "up.secagg"
    with secagg.Update.open(tmp_path / "up.secagg") as update:
        assert update.header.site == "site-1"


def test_training_does_not_change_the_global_model_that_was_handed_in() -> None:
    given = snapshot(make_network().state_dict())
    kept = snapshot(given)
    handler = make_handler(state=given)
    make_trainer(make_network(5), train_handlers=[handler]).run()
    assert_equal(given, kept)
    before = snapshot(handler.model.state)
    assert float((before["0.weight"] - kept["0.weight"]).abs().max()) == 0


@pytest.mark.parametrize("weight", [0, -1, math.nan, 11, "3"])
def test_a_weight_that_cannot_be_is_refused_before_training(weight: Any) -> None:
    with pytest.raises(RangeError, match="weight"):
        SecAggHandler(make_model(), weight=weight)


def test_a_model_that_cannot_be_encrypted_is_refused_before_training() -> None:
    config = secagg.Config.from_dict({**CONFIG.to_dict(), "encrypt": {"include": ["encoder.*"]}})
    with pytest.raises(ConfigError, match=r"pattern 'encoder.\*' matches no tensor"):
        GlobalModel(secagg.Client(config, KEYS.client, "site-1"), make_network().state_dict())
