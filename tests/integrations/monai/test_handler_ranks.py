"""Two processes that train one network: rank 0 sends, both hold the global model, an error at one is one at both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai_ranks import CASES, RANKS, ROUNDS, STEPS, seed, start
from monai_sites import assert_equal, make_network, make_trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(tmp_path_factory.mktemp("ranks"))


def averaged(network: torch.nn.Module, round: int) -> None:
    """What the trainers of both ranks do, in one process: each step goes along the mean gradient.

    BatchNorm is in training, and its statistics are those of rank 0, as DistributedDataParallel has them.
    """
    loaders = [make_trainer(network, seed(round, rank), STEPS).data_loader for rank in range(RANKS)]
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    network.train()
    for batches in zip(*loaders, strict=True):
        optimizer.zero_grad()
        gradients = []
        for rank, batch in enumerate(batches):
            statistics = {name: value.clone() for name, value in network.named_buffers()}
            loss = torch.nn.functional.mse_loss(network(batch["image"]), batch["label"])
            gradients.append(torch.autograd.grad(loss, list(network.parameters())))
            if rank:
                network.load_state_dict(statistics, strict=False)
        for parameter, *both in zip(network.parameters(), *gradients, strict=True):
            parameter.grad = sum(gradient / RANKS for gradient in both)
        optimizer.step()


def test_rounds(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["rounds"] for rank in ranks)
    network = make_network()
    for round in range(ROUNDS):
        for seen in (one, two):
            assert seen["round"][round] == round
            assert seen["applied"][round] is True
            assert seen["left"][round] == 0  # nothing of the handler's at later iterations
        # Rank 1 had other weights and another count: all ranks begin from what rank 0 has loaded.
        assert_equal(one["begun"][round], two["begun"][round])
        assert_equal(one["begun"][round], network.state_dict())
        # The update is that of training with the mean gradient of both, bit for bit.
        start = {name: value.clone() for name, value in network.state_dict().items()}
        averaged(network, round)
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(one["changed"][round][name], value - start[name]), name
        assert_equal(one["trained"][round], network.state_dict())
        # After `apply` both hold the global model, and rank 0's count.
        assert_equal(one["after"][round], two["after"][round])
        assert not torch.equal(one["after"][round]["0.weight"], one["trained"][round]["0.weight"])
        network.load_state_dict(one["after"][round])
    assert_equal(one["after"][-1], one["model"])
    assert int(one["after"][-1]["1.num_batches_tracked"]) == ROUNDS * STEPS


def test_bits_of_other_dtypes(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["half_precision"] for rank in ranks)
    assert_equal(one, two)
    assert_equal(one, make_network().to(torch.bfloat16).state_dict())


#: Error and a part of its message at rank 0; at rank 1 it is the same.
FAULTS: dict[str, tuple[str, str]] = {
    "another_model": ("LayoutError", "another model than the global one"),
    "another_network": (
        "LayoutError",
        "rank 1 trains another network than rank 0: it has 3.weight torch.float32[1, 4, 3",
    ),
    "another_length": ("LayoutError", "it has 4.weight torch.float32[1, 1, 1, 1, 1] in the place of nothing"),
    "without_a_network": ("LayoutError", "SupervisedTrainer has no attribute network"),
    "written_at_first": ("StateError", "of rank 0 differed from it by up to "),
    "written_at_second": ("StateError", "of rank 1 differed from it by up to "),
    "written_at_both": ("StateError", "of rank 0 differed from it by up to "),
    "no_number_at_second": ("StateError", "of rank 1 differed from it by up to nan in '0.weight'"),
    "out_of_range": ("RangeError", "'3.bias'"),
    "a_key_at_each": ("ConfigError", "rank 1 is given a GlobalModel: rank 0 alone has the global model and the key"),
    "a_key_at_none": ("ConfigError", "is given a NoneType; give it the global model"),
    "a_weight_that_cannot_be": ("RangeError", "weight"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_an_error_at_one_is_one_at_both(ranks: list[dict[str, Any]], case: str) -> None:
    kind, message = FAULTS[case]
    for rank in ranks:
        assert rank[case][0] == kind, rank[case]
        assert message in rank[case][1]


def test_a_calibration_that_fails(ranks: list[dict[str, Any]]) -> None:
    (one, two) = (rank["calibrations"] for rank in ranks)
    assert one == [("QuorumError", "nobody else"), ("OSError", "network is gone"), ("", ""), True]
    assert two == [("QuorumError", "nobody else"), ("StateError", "rank 0: OSError: network is gone"), ("", ""), False]


def test_an_aggregate_that_is_refused(ranks: list[dict[str, Any]]) -> None:
    for raised, same, round in (rank["refused"] for rank in ranks):
        assert raised[0] == "VerificationError"
        assert same
        assert round == 0


def test_all_cases_are_held() -> None:
    assert set(CASES) == {*FAULTS, "rounds", "half_precision", "calibrations", "refused"}
