"""Nothing leaves a site but ciphertext, whatever its script, the server and other filters do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare_job import Server, Site, adds, params_of, reply_of, scope
from provisioned import Federation

from secagg.integrations.nvflare import SecAggDecryptor, SecAggEncryptor

Job = Callable[..., tuple[Server, list[Site]]]

#: In the values of a model, and so in every plaintext of it.
SECRET = np.float32(0.1234567)

FAILED = {"data": "TASK_DATA_FILTER_ERROR", "result": "TASK_RESULT_FILTER_ERROR"}


class Passes(Filter):
    """Another filter: what it has seen."""

    seen: Any = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        self.seen = dict(shareable["DXO"]["data"])
        return shareable


def leaks(reply: Shareable) -> bool:
    return SECRET.tobytes() in fobs.dumps(reply)


def trained(model: FLModel, **changes: Any) -> FLModel:
    params = {name: np.full_like(value, SECRET) for name, value in model.params.items()}
    kept: dict[str, Any] = {"params": params, "params_type": "FULL", "meta": {"NUM_STEPS_CURRENT_ROUND": 1}}
    return FLModel(**kept | {name: change(params) if callable(change) else change for name, change in changes.items()})


def result(changes: dict[str, Any]) -> Callable[[Shareable], Shareable]:
    return lambda data: FLModelUtils.to_shareable(trained(FLModelUtils.from_shareable(data), **changes))


def test_the_canary_would_be_seen(job: Job) -> None:
    server, _ = job()
    assert leaks(result({})(fobs.loads(reply_of({"layer.weight": np.zeros(3, np.float32)}))))
    assert SECRET.tobytes() not in server.task()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"params": {}}, "0 tensors"),
        (
            {"params": lambda params: {"layer.weight": params["layer.weight"]}},
            "lacks 'layer.bias'",
        ),  # '8 vars excluded'
        ({"params": lambda params: params | {"layer.extra": np.full(3, SECRET)}}, "extra"),
        ({"params": lambda params: params | {"layer.weight": np.full((2, 4), SECRET)}}, "after training"),
        ({"params": lambda params: params | {"layer.weight": np.full((2, 3), np.nan)}}, "has nan"),
        ({"params": lambda params: params | {"layer.weight": np.full((2, 3), np.inf)}}, "has inf"),
        ({"params": lambda params: params | {"layer.weight": np.full((2, 3), 1e6)}}, "max_abs"),
        ({"params": lambda params: params | {"layer.weight": "text"}}, "LayoutError"),
        ({"params_type": "DIFF"}, "WEIGHT_DIFF"),
        ({"params": None, "metrics": {"accuracy": float(SECRET)}, "params_type": None}, "METRICS"),
        ({"meta": {}}, "NUM_STEPS_CURRENT_ROUND"),
        ({"meta": {"NUM_STEPS_CURRENT_ROUND": 4}}, "max_weight"),
        ({"meta": {"NUM_STEPS_CURRENT_ROUND": "3"}}, "weight"),
        ({"meta": {"NUM_STEPS_CURRENT_ROUND": -1}}, "weight"),
    ],
)
def test_a_result_that_cannot_be_encrypted_is_dropped(
    job: Job, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], says: str
) -> None:
    server, sites = job()
    reply = sites[0].run(server.task(), result(changes))
    assert reply.get_return_code() == FAILED["result"]
    assert "DXO" not in reply
    assert not leaks(reply)
    assert re.search(says, caplog.text)


def test_what_is_no_model_is_dropped(job: Job) -> None:
    server, sites = job()
    plain = Shareable()
    plain["weights"] = SECRET.tobytes()
    for reply in (
        sites[0].run(server.task(), lambda data: plain),
        sites[0].run(server.task(), lambda data: DXO(DataKind.COLLECTION, {"a": 1}).to_shareable()),
        sites[0].run(server.task(), lambda data: data),  # the global model, without a weight
    ):
        assert reply.get_return_code() == FAILED["result"]
        assert not leaks(reply)


def test_an_error_of_the_script_goes_alone(job: Job) -> None:
    server, sites = job()

    def fails(data: Shareable) -> Shareable:
        reply = make_reply("EXECUTION_EXCEPTION")
        reply["weights"] = SECRET.tobytes()
        return reply

    reply = sites[0].run(server.task(), fails)
    assert reply.get_return_code() == "EXECUTION_EXCEPTION"
    assert not leaks(reply)


def test_any_error_in_the_filter_drops_the_result(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    server, sites = job()

    def fails(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("secagg.site.Follower.encrypt", fails)
    reply = sites[0].run(server.task(), result({}))
    assert reply.get_return_code() == FAILED["result"]
    assert not leaks(reply)


def test_a_result_is_not_sent_without_its_state(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full: the next process would not know what this one has sent."""
    server, sites = job()

    def fails(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("secagg.site.Follower.save", fails)
    assert sites[0].run(server.task(), result({})).get_return_code() == FAILED["result"]


@pytest.mark.parametrize(
    "task",
    [
        {"layer.weight": np.ones(3, np.float32)},
        {},
        {"secagg.facts": {}, "secagg.blobs": {}, "secagg.first": {}, "secagg.stores": ""},
        {"secagg.facts": {}, "secagg.blobs": {}, "secagg.first": {}, "secagg.stores": 3},
        {"secagg.facts": b"{}", "secagg.blobs": {}, "secagg.first": {}, "secagg.stores": ""},
    ],
)
def test_a_task_of_another_server_reaches_no_script(job: Job, task: dict[str, Any]) -> None:
    """Such as one that would send plaintext: the job's server lacks our components."""
    _, sites = job()
    reply = sites[0].run(reply_of(task), lambda data: pytest.fail("the script has seen it"))
    assert reply.get_return_code() == FAILED["data"]


def test_other_tasks_reach_no_script(job: Job) -> None:
    server, sites = job()
    for name in ("validate", "submit_model"):
        reply = sites[0].run(server.task(), lambda data: pytest.fail("the script has seen it"), name=name)
        assert reply.get_return_code() == "TASK_UNKNOWN"


ORDERS: dict[str, tuple[list[Filter], list[Filter]]] = {
    "no encryptor": ([SecAggDecryptor()], []),
    "no decryptor": ([], [SecAggEncryptor()]),
    "another first": ([Passes(), SecAggDecryptor()], [SecAggEncryptor()]),
    "another last": ([SecAggDecryptor()], [SecAggEncryptor(), Passes()]),
    "the other way round": ([SecAggEncryptor()], [SecAggDecryptor()]),
    "another alone": ([SecAggDecryptor()], [Passes()]),
}


@pytest.mark.parametrize("order", ORDERS)
def test_order_is_checked_before_the_script_runs(kits: Federation, tmp_path: Path, job: Job, order: str) -> None:
    server, _ = job()
    site = Site(tmp_path / "other", "site-1", kits["site-1"], *ORDERS[order])
    reply = site.run(server.task(), result({}))
    assert reply.get_return_code() != "OK"
    assert not leaks(reply)


def test_other_filters_of_a_job_may_be_inside(kits: Federation, tmp_path: Path, job: Job) -> None:
    server, _ = job()
    inner, outer = Passes(), Passes()
    site = Site(tmp_path / "in", "site-1", kits["site-1"], [SecAggDecryptor(), inner], [outer, SecAggEncryptor()])
    server.accept("site-1", site.train(server.task(), adds({})))
    assert inner.seen.keys() == outer.seen.keys() == {"layer.weight", "layer.bias", "num_batches_tracked"}


def test_site_scope_filters_of_results_see_numbers(job: Job) -> None:
    """A site's own policy, such as PercentilePrivacy of its privacy.json, runs before the job's filters."""
    server, sites = job()
    policy = Passes()
    sites[0].scope = scope(task_result_filters={"in": [], "out": [policy]})
    server.accept("site-1", sites[0].train(server.task(), adds({})))
    assert policy.seen.keys() == {"layer.weight", "layer.bias", "num_batches_tracked"}


@pytest.mark.parametrize(
    "order",
    [
        {"task_data_filters": {"in": [Passes()], "out": []}},  # would see ciphertext
        {"task_result_filters": {"in": [], "out": [SecAggEncryptor()]}},  # twice: in the scope and in the job
    ],
)
def test_site_scope_filters_in_the_wrong_place_are_refused(job: Job, order: dict[str, Any]) -> None:
    server, sites = job()
    sites[0].scope = scope(**order)
    reply = sites[0].run(server.task(), result({}))
    assert reply.get_return_code() in FAILED.values()
    assert not leaks(reply)


def test_float64_and_another_order_are_no_fault(job: Job) -> None:
    server, sites = job()

    def script(model: FLModel) -> FLModel:
        params = {
            name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in model.params.items()
        }
        return trained(model, params=lambda _: dict(reversed(params.items())))

    reply = sites[0].train(server.task(), script)
    server.accept("site-1", reply)
    assert params_of(reply).keys() == {"secagg.update"}
