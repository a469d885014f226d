"""Two processes that train one network of a bundle: rank 0 takes part in the federation, the other follows it."""

from __future__ import annotations

from typing import Any

import bundle_ranks
import pytest
import torch
from monai_ranks import RANKS, start
from monai_sites import METRIC, assert_equal, make_evaluator, make_network, make_trainer

from secagg.integrations.monai.bundle_task import BundleTask

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(tmp_path_factory.mktemp("ranks"), bundle_ranks.__file__)


def test_all_ranks_train_and_measure_what_rank_0_holds(ranks: list[dict[str, Any]]) -> None:
    for round in range(2):
        network = make_network(5 + round)
        for seen in ranks:
            assert_equal(seen["begun"][round], network.state_dict())
        # BatchNorm's statistics are rank 0's, as DistributedDataParallel has them.
        learnt = [
            {name: value for name, value in seen["trained"][round].items() if "running" not in name} for seen in ranks
        ]
        assert_equal(learnt[0], learnt[1])
        assert not torch.equal(learnt[0]["0.weight"], network.state_dict()["0.weight"])
        assert ranks[0]["measured"][round] == BundleTask(make_trainer(network), make_evaluator(network), 4).validate()
    assert [len(seen["measured"]) for seen in ranks] == [2, 0]
    assert ranks[0]["told"] == [(1, 3), (2, 3), (3, 3)] * 2


def test_all_ranks_hold_the_last_global_model(ranks: list[dict[str, Any]]) -> None:
    assert [seen["result"] for seen in ranks] == [{METRIC: 1.0}, {}]
    for seen in ranks:
        assert_equal(seen["final"], make_network(7).state_dict())


def test_what_ends_rank_0_ends_all(ranks: list[dict[str, Any]]) -> None:
    assert [seen["raised"] for seen in ranks] == ["QuorumError: nobody else came"] * RANKS
