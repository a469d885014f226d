"""What the network holds when training begins is the global model, or nothing is trained, and nothing sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from monai_sites import Sites, assert_equal, make_network, make_trainer, snapshot

from secagg.errors import LayoutError, StateError
from secagg.integrations.monai import SecAggHandler
from secagg.site import GlobalModel, network_state

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = Sites.make(stay=["*mask"])


def network(seed: int = 0) -> torch.nn.Module:
    """With something that stays at the site."""
    made = make_network(seed)
    made[0].register_buffer("mask", torch.zeros(2))
    return made


def handlers_at_iterations(trainer: Engine) -> list[Any]:
    return [handler for event in Events if "ITERATION" in event.name for handler, *_ in trainer._event_handlers[event]]


@pytest.mark.parametrize("first", [False, True], ids=["after the handler", "before the handler"])
def test_a_checkpoint_that_is_loaded_when_training_starts(tmp_path: Path, first: bool) -> None:
    checkpoint, other = tmp_path / "model.pt", network(1)
    torch.save({"net": other.state_dict()}, checkpoint)
    net = network()
    handler, model = SITES.handler(net), SITES.model(net)
    loader = CheckpointLoader(str(checkpoint), {"net": net})
    trainer = make_trainer(net, train_handlers=[loader, handler] if first else [handler, loader])
    if first:
        trainer.run()
        assert handler.update is not None
        return
    name, largest = max(
        ((name, float((value - other.state_dict()[name]).abs().max())) for name, value in model.state.items()),
        key=lambda item: item[1],
    )
    with pytest.raises(StateError, match=rf"by up to {largest:.3g} in '{name}'.* CheckpointLoader, before the SecAgg"):
        trainer.run()
    assert handler.update is None
    assert_equal(network_state(net), snapshot(other.state_dict()))  # no step was made
    with pytest.raises(StateError, match="training would not begin from the global model"):
        handler.complete(trainer)


def test_once_in_each_run_and_nothing_stays_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that is run again, goes on with more epochs, or is another one."""
    net, checks, iterations = network(), [], []
    handler = SITES.handler(net)
    trainer = make_trainer(net, train_handlers=[handler])
    before = handlers_at_iterations(trainer)

    def count(self: GlobalModel, local: Any) -> tuple[str, float] | None:
        checks.append(len(iterations))
        return differs(self, local)

    differs = GlobalModel.differs
    monkeypatch.setattr(GlobalModel, "differs", count)

    def seen(engine: Engine) -> None:
        iterations.append(handlers_at_iterations(engine))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, seen)
    trainer.run()
    trainer.run()
    trainer.state.max_epochs += 2  # as MonaiAlgo does
    trainer.run()
    assert checks == [0, 4, 8]
    assert len(iterations) == 16
    assert all(attached == [*before, seen] for attached in iterations)
    another = make_trainer(net, train_handlers=[handler])
    another.run()
    assert len(checks) == 4
    assert handlers_at_iterations(another) == handlers_at_iterations(make_trainer(net))


def test_a_run_that_ended_before_its_first_iteration_leaves_nothing_behind() -> None:
    net = network()
    handler = SITES.handler(net)
    broken = make_trainer(net, train_handlers=[handler])

    def fail() -> None:
        raise OSError("disk gone")

    with broken.add_event_handler(Events.EPOCH_STARTED, fail), pytest.raises(OSError, match="disk gone"):
        broken.run()
    trainer = make_trainer(net, train_handlers=[handler])
    before = handlers_at_iterations(broken)
    trainer.run()
    broken.run()
    assert len(before) == len(handlers_at_iterations(broken)) + 1
    assert handler.update is not None


def write(name: str, value: float) -> Callable[[Engine], None]:
    def to(engine: Engine) -> None:
        tensor = network_state(engine.network)[name]
        with torch.no_grad():
            tensor.reshape(-1)[-1] = value

    return to


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED])
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("1.running_var", 3.0, "2"), ("3.bias", math.nan, "nan"), ("0.weight", math.inf, "inf")],
)
def test_what_else_is_written_by_a_handler(event: Events, name: str, value: float, shown: str) -> None:
    handler = SITES.handler(network())
    trainer = make_trainer(network(), train_handlers=[handler])
    trainer.add_event_handler(event, write(name, value))
    with pytest.raises(StateError, match=rf"by up to {shown} in '{name}'"):
        trainer.run()
    assert handler.update is None


def test_what_is_the_sites_own_may_be_written() -> None:
    handler = SITES.handler(network())
    trainer = make_trainer(network(), train_handlers=[handler])
    trainer.add_event_handler(Events.STARTED, write("1.num_batches_tracked", 7))
    trainer.add_event_handler(Events.STARTED, write("0.mask", 0.5))
    trainer.run()
    assert handler.update is not None
    assert int(trainer.network[1].num_batches_tracked) == 11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_another_dtype_holds_what_it_can(dtype: torch.dtype) -> None:
    """A step of its own resolution is seen all the same, or of the global model's, where that is coarser."""
    handler = SITES.handler(network())  # of float32
    net = network(5).to(dtype)
    make_trainer(net, train_handlers=[handler]).run()
    assert handler.update is not None
    trainer = make_trainer(net, train_handlers=[handler])
    coarse = torch.float32 if dtype == torch.float64 else dtype
    near = torch.nextafter(network()[3].bias.detach().to(coarse), torch.tensor([9.0], dtype=coarse))
    trainer.add_event_handler(Events.STARTED, write("3.bias", float(near)))
    with pytest.raises(StateError, match=r"'3\.bias'"):
        trainer.run()


def test_one_name_of_two_of_a_tensor() -> None:
    def twins() -> torch.nn.Module:
        net = make_network()
        net.append(net[3])
        net[3] = torch.nn.Identity()
        return torch.nn.ModuleDict({"a": net, "b": net[4]})

    net = twins()
    model = Sites.make().model(net)
    assert model.differs(net) is None
    state = snapshot(network_state(net))
    with pytest.raises(LayoutError, match="one tensor"):
        model.differs(state)
    with torch.no_grad():
        net["b"].bias += 1
    found = model.differs(net)
    assert found is not None
    assert found[0] in ("a.4.bias", "b.bias")
    assert found[1] == pytest.approx(1)


def test_an_error_that_another_handler_swallows() -> None:
    """MONAI's handlers raise it again; one that does not lets the run go on to its end, where nothing is sent."""
    handler, seen = SITES.handler(network()), []
    trainer = make_trainer(network(), train_handlers=[handler])
    trainer.state.max_epochs = 3
    trainer.add_event_handler(Events.STARTED, write("0.weight", 0.75))
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: seen.append(type(error)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append("trained"))
    trainer.run()
    assert handler.update is None
    assert set(seen) == {StateError}


def test_a_run_of_no_iterations() -> None:
    """What was written is found in the end; else a site that trained nothing sends zeros."""
    for writes in (True, False):
        handler, net = SITES.handler(network()), network()
        trainer = make_trainer(net, train_handlers=[handler])
        if writes:
            trainer.add_event_handler(Events.STARTED, write("0.weight", 0.75))
        trainer.add_event_handler(Events.STARTED, Engine.terminate)
        if writes:
            with pytest.raises(StateError, match=r"'0\.weight'"):
                trainer.run()
            assert handler.update is None
        else:
            trainer.run()
            assert handler.update is not None
            assert all(float(v.abs().max()) == 0 for n, v in handler.model.difference(net).items() if "num" not in n)


def test_handlers_of_two_trainers_in_turns() -> None:
    """One handler in two trainers of which one never gets to train."""
    net = network()
    handler = SecAggHandler(SITES.model(net), weight=1)
    one, two = (make_trainer(network(seed), train_handlers=[handler]) for seed in (1, 2))
    one.fire_event(Events.STARTED)
    two.run()
    assert handlers_at_iterations(one) == handlers_at_iterations(two) == handlers_at_iterations(make_trainer(net))
