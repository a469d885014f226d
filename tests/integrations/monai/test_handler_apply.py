"""After `apply` the network that was trained is the global model, as it is at the other sites."""

from __future__ import annotations

import pytest
import torch
from monai_sites import Sites, assert_equal, make_network, make_trainer, snapshot

import secagg
from secagg.errors import ConfigError, FormatError, RoundMismatchError, SecAggError, VerificationError
from secagg.integrations.monai import SecAggHandler
from secagg.site import network_state

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = Sites.make()
NAMES = ("site-1", "site-2", "site-3")


def trained(*names: str, round: int = 0) -> dict[str, tuple[SecAggHandler, torch.nn.Module]]:
    sites = {}
    for seed, name in enumerate(names):
        net = make_network()
        handler = SITES.handler(net, name)
        make_trainer(net, seed, examples=seed + 1, train_handlers=[handler]).run()
        sites[name] = handler, net
    return sites


def test_the_network_is_the_global_model_after_the_last_round() -> None:
    sites = trained(*NAMES)
    for round in range(2):
        if round:
            for handler, net in sites.values():
                make_trainer(net, round, train_handlers=[handler]).run()
        result = SITES.aggregate(*(handler.update for handler, _ in sites.values()), round=round)
        for handler, _ in sites.values():
            assert handler.round == round
            assert handler.apply(result)
            assert handler.round == handler.model.round == round + 1
    first = sites["site-1"][0].model.state
    for seed, (handler, net) in enumerate(sites.values()):
        assert_equal(network_state(net), handler.model.state)
        assert int(net[1].num_batches_tracked) == seed + 1 + 4  # the site's own count
        floats = {name: value for name, value in net.state_dict().items() if value.is_floating_point()}
        assert_equal(floats, {name: first[name] for name in floats})
    assert not torch.equal(first["0.weight"], make_network().state_dict()["0.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_the_networks_own_dtype_and_wrappers(dtype: torch.dtype) -> None:
    sites = trained("site-1")
    net = torch.nn.DataParallel(make_network().to(dtype))
    handler = SITES.handler(make_network(), "site-2")
    make_trainer(net, 7, train_handlers=[handler]).run()
    handler.apply(SITES.aggregate(sites["site-1"][0].update, handler.update))
    state = network_state(net)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {dtype}
    assert_equal(state, {name: value.to(state[name].dtype) for name, value in handler.model.state.items()})


def test_the_same_again_loads_it_again() -> None:
    sites = trained("site-1", "site-2")
    result = SITES.aggregate(*(handler.update for handler, _ in sites.values()))
    handler, net = sites["site-1"]
    assert handler.apply(result)
    with torch.no_grad():
        net[3].bias += 1
    assert not handler.apply(result)
    assert handler.model.differs(net) is None


def test_before_any_training_it_is_the_global_model_alone() -> None:
    sites = trained("site-1", "site-2")
    late = SITES.handler(make_network(), "site-3")
    assert late.apply(SITES.aggregate(*(handler.update for handler, _ in sites.values())))
    assert late.round == 1


def test_what_is_refused_leaves_the_network_as_it_was_trained() -> None:
    sites = trained(*NAMES)
    handler, net = sites["site-1"]
    before, model = snapshot(net.state_dict()), snapshot(handler.model.state)
    assert handler.update is not None
    others = SITES.aggregate(sites["site-2"][0].update, sites["site-3"][0].update)
    server = secagg.Identity.generate()
    faults: list[tuple[type[SecAggError], secagg.Update | None, secagg.Receipt | None]] = [
        (VerificationError, others, None),
        (VerificationError, others, secagg.Receipt.of(handler.update, server)),
        (RoundMismatchError, _of_round(3), None),
        (FormatError, None, None),
    ]
    for error, aggregate, receipt in faults:
        with pytest.raises(SecAggError) as caught:
            handler.apply(aggregate, receipt)
        assert type(caught.value) is error, caught.value
        assert_equal(net.state_dict(), before)
        assert_equal(handler.model.state, model)
        assert handler.round == 0
    handler.model.withdraw()
    assert handler.apply(others)
    assert handler.model.differs(net) is None


def test_without_its_own_update_where_that_may_be() -> None:
    sites = trained(*NAMES)
    handler, net = sites["site-1"]
    others = SITES.aggregate(sites["site-2"][0].update, sites["site-3"][0].update)
    assert handler.apply(others, may_lack_own=True)
    assert handler.model.differs(net) is None


def _of_round(round: int) -> secagg.Update:
    aggregator = secagg.Aggregator(SITES.config, SITES.keys.server, round=round)
    for name in NAMES:
        site = secagg.Client(SITES.config, SITES.keys.client, name)
        aggregator.add(site.encrypt(make_network().state_dict(), 1.0, round))
    return aggregator.finish()


@pytest.mark.parametrize("given", [None, torch.nn.Linear(1, 1)])
def test_what_is_no_global_model(given: object) -> None:
    with pytest.raises(ConfigError, match=rf"is given a {type(given).__name__}; give it the global model"):
        SecAggHandler(given, weight=1)  # type: ignore[arg-type]


def test_what_sites_have_measured_is_averaged() -> None:
    sites = Sites.make(metrics=["dice"])
    networks = {name: make_network() for name in NAMES}
    handlers = {name: sites.handler(net, name) for name, net in networks.items()}
    given = dict(zip(NAMES, (0.25, 0.5, 0.75), strict=True))
    for name, handler in handlers.items():
        handler.metrics = {"dice": given[name]}
        make_trainer(networks[name], train_handlers=[handler]).run()
    result = sites.aggregate(*(handler.update for handler in handlers.values()))
    total = sum(handler.weight for handler in handlers.values())
    mean = sum(handler.weight * given[name] for name, handler in handlers.items()) / total
    for handler in handlers.values():
        handler.apply(result)
        assert handler.model is not None
        assert handler.model.metrics == {"dice": pytest.approx(mean, rel=1e-2)}
