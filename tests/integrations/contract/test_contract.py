"""The same federated run through each integration gives the same global model, and each site its own state.

Bit for bit in exact schemes; within what params allow in CKKS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import by_loop
import numpy as np
import pytest
from by_bundle import run_bundle
from by_filters import run_filters
from by_flower import run_flower
from by_grpc import run_grpc
from by_loop import run_loop
from by_monai import run_monai
from by_nvflare import ScriptTask, run_nvflare, run_simulator
from by_relay import run_relay
from by_trainers import run_lightning, run_transformers
from provisioned import Federation
from schedule import SCHEDULE, SITES, UNDISTURBED, Driver, Run, Task, Turn
from tasks import TASKS, digits

import secagg
from secagg import integrations
from secagg.scheme.codec import codec_for
from secagg.setup.provisioner import Provisioner
from secagg.site import GlobalModel

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # A latecomer that begins with a stored model cannot tell whether an earlier process of its site has sent anything.
    pytest.mark.filterwarnings("ignore:site 'site-4' has error_feedback, and the first update"),
]

#: Each way to run a federation, and the tasks that it can train.
DRIVERS: dict[str, tuple[Driver, tuple[str, ...]]] = {
    "loop": (run_loop, tuple(TASKS)),
    "relay": (run_relay, ("digits", "brain")),
    "grpc": (run_grpc, ("digits", "brain")),
    "flower": (run_flower, ("digits", "network", "brain")),
    "nvflare": (run_nvflare, ("digits", "network", "brain")),
    "transformers": (run_transformers, ("network",)),
    "lightning": (run_lightning, ("network",)),
    "monai": (run_monai, ("network", "brain")),
    "monai-bundle": (run_bundle, ("network",)),
    "monai-filters": (run_filters, ("network",)),
}

#: What is below the integrations.
BELOW = {"loop", "relay"}

#: Integrations that are not held to the contract, and why.
ELSEWHERE = {
    "prometheus": "it watches a server, and has no part in what is computed",
    "ray": "it adds updates where they lie; tests/integrations/test_ray.py holds the sum against an aggregator's",
}

#: Few bits, so that what error feedback carries is seen in the model.
COARSE = {"value_bits": 8, "rounding": "nearest", "error_feedback": True}
FIXED = {"max_abs": {"default": 0.5, "*running_*": 8.0}, "max_weight": 1024}
PREVIOUS = {"precision": "previous", "max_weight": 1024}
CKKS = {"scheme": "CKKS", "poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40}

SCHEMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flashe": ({"lib": "flashe", "config": COARSE}, FIXED),
    "flashe-previous": ({"lib": "flashe", "config": COARSE}, PREVIOUS),
    "bgv": ({"lib": "seal", "config": {"scheme": "BGV", **COARSE}}, FIXED),
    "bgv-previous": ({"lib": "seal", "config": {"scheme": "BGV", **COARSE}}, PREVIOUS),
    "ckks": ({"lib": "tenseal", "config": CKKS}, FIXED),
}
#: Those under which what takes longer is run, too.
FEW, SLOW = {"flashe", "bgv-previous", "ckks"}, {"brain", "transformers"}
EXACT = [name for name in SCHEMES if name != "ckks"]

REFERENCES = [(scheme, task) for scheme in EXACT for task in TASKS if scheme in FEW or task not in SLOW]

Make = Callable[[str, str], Federation]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Kits of the federation of a scheme and a task."""

    @cache
    def make(scheme: str, task: str) -> Federation:
        he, aggregation = SCHEMES[scheme]
        if "max_abs" in aggregation and task != "network":  # a pattern that matches nothing is refused
            aggregation = aggregation | {"max_abs": 0.5}
        aggregation = {"min_clients": 2, "max_clients": 4, **aggregation}
        folder = tmp_path_factory.mktemp("kits")
        return Federation.make(folder, sites=list(SITES), hosts=[], he=he, aggregation=aggregation)

    return make


@pytest.fixture(scope="module")
def reference(made: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Run]:
    """The plain loop, in one process that lives to the end."""

    @cache
    def run(scheme: str, task: str) -> Run:
        return run_loop(copied(made(scheme, task), tmp_path_factory.mktemp("reference")), TASKS[task](), UNDISTURBED)

    return run


def copied(federation: Federation, folder: Path) -> Federation:
    """The same kits, in a folder of their own."""
    shutil.copytree(federation.kits.parent, folder, dirs_exist_ok=True)
    return Federation(Provisioner.load(folder / "authority"), folder / "kits")


def cases(*schemes: str) -> pytest.MarkDecorator:
    """Runs a test with each integration, under each of these schemes with which it does not take long."""
    found = [
        (name, task, scheme)
        for name, (_, tasks) in DRIVERS.items()
        for task in tasks
        for scheme in schemes
        if scheme in FEW or (name not in SLOW and task not in SLOW)
    ]
    return pytest.mark.parametrize("driven", found, ids="-".join, indirect=True)


@pytest.fixture
def driven(request: pytest.FixtureRequest, made: Make, tmp_path: Path) -> tuple[str, str, Run]:
    """The task and the scheme of a case, and what sites have seen."""
    name, task, scheme = request.param
    return task, scheme, DRIVERS[name][0](copied(made(scheme, task), tmp_path), TASKS[task](), SCHEDULE)


@cases(*EXACT)
def test_the_same_bits(driven: tuple[str, str, Run], reference: Callable[[str, str], Run]) -> None:
    task, scheme, run = driven
    expected = reference(scheme, task)
    assert run.begun.keys() == expected.begun.keys()
    for where, state in expected.begun.items():
        assert_same(run.begun[where], state, where)
        assert_same(run.trained[where], expected.trained[where], where)
    assert run.final.keys() == expected.final.keys()
    for site, state in expected.final.items():
        assert_same(run.final[site], state, site)


@cases("ckks")
def test_the_same_within_what_params_allow(driven: tuple[str, str, Run], made: Make) -> None:
    """Each round adds the weighted mean difference of its sites; all sites have the same global model after it."""
    task, _, run = driven
    weights, config = TASKS[task].weights, made("ckks", task).provisioner.project.config
    codec = codec_for(config.params, config.aggregation)
    for round, turn in enumerate(SCHEDULE):
        models, after = run.models(round), run.models(round + 1) or run.final
        assert sorted(models) == list(turn.trains)
        total = sum(weights[site] for site in turn.sites)
        allowed = codec.mean_error(len(turn.sites), total / config.aggregation.largest_weight)
        for name, value in models[turn.sites[0]].items():
            if value.dtype.kind != "f":
                continue
            start = value.astype(np.float64)
            mean = sum(weights[site] / total * (run.trained[round, site][name] - start) for site in turn.sites)
            # Three roundings to float32: of the difference, of its mean, and of the new value.
            rounding = 3 * np.finfo(np.float32).eps * (np.abs(start) + 8.0)
            for model in models.values():
                assert np.array_equal(model[name], value), (round, name)
            for model in after.values():
                assert (np.abs(model[name] - start - mean) <= allowed + rounding).all(), (round, name)
    for site, state in run.final.items():
        assert_own(state, task, site)


@pytest.mark.parametrize(("scheme", "task"), REFERENCES, ids="-".join)
def test_all_sites_have_one_global_model(reference: Callable[[str, str], Run], task: str, scheme: str) -> None:
    run = reference(scheme, task)
    for round, turn in enumerate(SCHEDULE):
        models = run.models(round)
        assert sorted(models) == list(turn.trains)
        assert_one_model(models)
    assert sorted(run.final) == list(SITES)
    assert_one_model(run.final)
    for site, state in run.final.items():
        assert_own(state, task, site)


@pytest.mark.parametrize(("scheme", "task"), REFERENCES, ids="-".join)
def test_a_carry_that_is_lost_would_be_seen(
    reference: Callable[[str, str], Run], made: Make, task: str, scheme: str, tmp_path: Path
) -> None:
    def forget(run: Run, task: Task, site: str, model: GlobalModel) -> secagg.Update:
        model.site.restore_carry(b"")
        return by_loop.encrypt(run, task, site, model)

    run = by_loop.run_loop(copied(made(scheme, task), tmp_path), TASKS[task](), SCHEDULE, forget)
    one, other = run.final["site-1"], reference(scheme, task).final["site-1"]
    assert any(not np.array_equal(one[name], value) for name, value in other.items())


@pytest.mark.long
def test_nvflares_simulator_has_the_same_bits(tmp_path: Path) -> None:
    """The short form is `by_nvflare`, in this process; here clients are processes, and what they do is a script."""
    aggregation = {"min_clients": 3, "max_clients": 5, "max_abs": 1.0, "max_weight": 15}
    sites = tuple(ScriptTask.weights)
    kits = Federation.make(
        tmp_path / "kits", sites=list(sites), hosts=[], he=SCHEMES["flashe"][0], aggregation=aggregation
    )
    expected = run_loop(copied(kits, tmp_path / "loop"), ScriptTask(), (Turn(sites),) * 3)
    final = run_simulator(kits, tmp_path / "simulator")
    assert final.keys() == expected.final.keys()
    for site, state in expected.final.items():
        assert_same(final[site], state, site)


def test_digits_are_learnt(reference: Callable[[str, str], Run]) -> None:
    model = reference("flashe", "digits").final["site-4"]
    right = [
        (images @ model["weight"].T + model["bias"]).argmax(1) == classes for images, classes in map(digits, SITES)
    ]
    assert np.concatenate(right).mean() > 0.8


def test_every_integration_is_here() -> None:
    (folder,) = integrations.__path__
    names = {path.stem for path in Path(folder).iterdir() if not path.name.startswith("_")}
    assert names == {name.partition("-")[0] for name in DRIVERS.keys() - BELOW} | ELSEWHERE.keys()


def assert_same(found: dict[str, Any], expected: dict[str, Any], where: Any) -> None:
    assert list(found) == list(expected), where
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, (where, name)
        assert np.array_equal(found[name], value), (where, name, np.abs(found[name] - value).max())


def assert_one_model(states: dict[str, dict[str, Any]]) -> None:
    first, *others = states.values()
    for name, value in first.items():
        assert value.dtype.kind != "f" or all(np.array_equal(state[name], value) for state in others), name


def assert_own(state: dict[str, Any], task: str, site: str) -> None:
    """Hold the counts of a site against how much it has trained."""
    trainings = sum(site in turn.trains for turn in SCHEDULE)
    counts = {name: int(value) for name, value in state.items() if value.dtype.kind == "i"}
    expected = {"digits": {"steps": trainings}, "network": {"0.num_batches_tracked": 2 * trainings}, "brain": {}}
    assert counts == expected[task]
