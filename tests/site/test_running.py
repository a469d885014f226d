"""A task's whole part in a federation: metrics of all sites, the best model, the first one; over a toy transport."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from changing_sites import Told, removed
from provisioned import Federation as Provisioned
from toy_transport import ToyLink, ToyServer

import secagg
from secagg.errors import (
    ConfigError,
    IdentityError,
    MismatchError,
    SecAggError,
    StateError,
    TaskError,
    VerificationError,
)
from secagg.server import Federation, Limits
from secagg.setup.installing import install
from secagg.site import GlobalModel, Session, SiteRecord, best_model, run_task
from secagg.site.best_model import Best, find_best, keep_best, open_best
from secagg.site.first_model import begin_from
from secagg.site.folder import BEST_FACTS_FILE, BEST_FILE, MODEL_FILE
from secagg.trust import load_server_kit, load_site_kit
from secagg.trust.kit import SiteKit

EXAMPLES = {"a": 1.0, "b": 3.0}

#: What sites measure of the models of rounds 0, 1 and 2, and of the last one. The best of the first three is number 1.
DICE = {"a": [0.2, 0.9, 0.5, 1.0], "b": [0.3, 0.7, 0.6, 1.0]}
MEANS = [(a + 3 * b) / 4 for a, b in zip(*DICE.values(), strict=True)]


class Silent:
    """Adds 1 to its weights in each round."""

    def __init__(self, name: str, start: float = 0.0, **measured: list[float]) -> None:
        self.model: dict[str, Any] = {"w": np.full(100, start, np.float32), "steps": np.array(0)}
        self.examples, self.measured, self.fails = EXAMPLES[name], measured, -1
        self.validations = 0

    @property
    def at(self) -> int:
        return round(float(self.model["w"][0]))

    def train(self, round: int) -> None:
        if round == self.fails:
            raise RuntimeError("out of memory")
        self.model["w"] += np.float32(1)
        self.model["steps"] += 1


class Counting(Silent):
    """Measures by a list, too."""

    def validate(self) -> dict[str, float]:
        self.validations += 1
        return {name: values[self.at] for name, values in self.measured.items()}


def made(folder: Path, **project: Any) -> Provisioned:
    return Provisioned.make(
        folder,
        hosts=[],
        sites=[*EXAMPLES, "c"],
        he={"lib": "flashe", "config": {"value_bits": 20, "rounding": "nearest"}},
        aggregation={"min_clients": 2, "max_clients": 4, "max_abs": 8.0, "max_weight": 4.0},
        **project,
    )


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    return made(tmp_path_factory.mktemp("kits"), metrics=["dice"])


@pytest.fixture
def provisioned(kits: Provisioned, tmp_path: Path) -> Provisioned:
    shutil.copytree(kits.kits, tmp_path / "kits")
    return Provisioned(kits.provisioner, tmp_path / "kits")


class World:
    """A server, and what runs tasks of sites in threads."""

    def __init__(self, kits: Provisioned, folder: Path) -> None:
        kit = load_server_kit(kits["server"])
        federation = Federation(
            kit.config,
            kit.key,
            folder / "run",
            round_timeout=60,
            project=kit.project,
            identity=kit.identity,
            limits=Limits(idle_seconds=60.0),
        )
        self.kits, self.server, self.federation = kits, ToyServer(federation), federation
        self.told = {name: Told() for name in EXAMPLES}
        self.records: dict[str, list[SiteRecord]] = {name: [] for name in EXAMPLES}

    def connect(self, kit: SiteKit, layout: secagg.Layout) -> AbstractContextManager[Session]:
        certificate = (kit.folder / "tls.crt").read_bytes()
        link = ToyLink(self.server, certificate)
        return Session(link, kit.name, timeout=20, project=kit.project, layout=layout)

    def run(self, name: str, task: Any, rounds: int = 3, **options: Any) -> dict[str, float]:
        told, keep = self.told[name], self.records[name].append
        return run_task(self.kits[name], self.connect, task, rounds, reporter=told, keep=keep, **options)

    def both(self, tasks: dict[str, Any], rounds: int = 3, **options: Any) -> dict[str, dict[str, float]]:
        with ThreadPoolExecutor() as pool:
            futures = {
                name: pool.submit(self.run, name, task, rounds, **{key: value[name] for key, value in options.items()})
                for name, task in tasks.items()
            }
            return {name: future.result(120) for name, future in futures.items()}


@pytest.fixture
def world(provisioned: Provisioned, tmp_path: Path) -> Iterator[World]:
    world = World(provisioned, tmp_path)
    with world.server:
        yield world


def tasks() -> dict[str, Counting]:
    return {name: Counting(name, dice=DICE[name]) for name in EXAMPLES}


def files(folder: Path, kind: str) -> dict[str, Path]:
    return {name: folder / f"{name}-{kind}.safetensors" for name in EXAMPLES}


def test_sites_learn_the_mean_of_what_all_measure_and_keep_the_best_model(world: World, tmp_path: Path) -> None:
    running, out, best = tasks(), files(tmp_path, "out"), files(tmp_path, "best")
    results = world.both(running, out=out, best=best)
    assert results == {name: {"dice": values[3]} for name, values in DICE.items()}
    for name in EXAMPLES:
        assert [record.metrics["dice"] for record in world.records[name]] == DICE[name][1:]
        means = [record.means["dice"] for record in world.records[name]]
        np.testing.assert_allclose(means, MEANS[:3], rtol=2e-3)  # max_abs is a coarse bound for it
        assert means == [record.means["dice"] for record in world.records["a"]]
        np.testing.assert_allclose(safetensors.numpy.load_file(out[name])["w"], 3, atol=1e-3)
        np.testing.assert_allclose(safetensors.numpy.load_file(best[name])["w"], 1, atol=1e-3)
        assert running[name].at == 3  # which the task holds in the end
        assert running[name].validations == 4  # once for each model
        found = find_best(world.kits[name])
        assert found is not None
        assert (found.metric, found.round, found.value) == ("dice", 1, means[1])
        told = world.told[name].lines
        assert [line[:8] for line in told if "is the best so far" in line] == ["round 0:", "round 1:"]
        assert any("the global model that round 1 began from, with the best dice: 0.75" in line for line in told)


def test_the_best_model_outlives_an_interruption(world: World, tmp_path: Path) -> None:
    """One site ends in round 2, after the best model; the next process writes it."""
    first = tasks()
    first["a"].fails = 2
    best = files(tmp_path, "best")
    with ThreadPoolExecutor() as pool:
        other = pool.submit(world.run, "b", first["b"])
        with pytest.raises(TaskError, match="out of memory"):
            world.run("a", first["a"])
        world.run("a", tasks()["a"], best=best["a"])
        other.result(120)
    np.testing.assert_allclose(safetensors.numpy.load_file(best["a"])["w"], 1, atol=1e-3)
    world.run("b", tasks()["b"], best=best["b"])  # all rounds are done, and nobody has to be there
    np.testing.assert_allclose(safetensors.numpy.load_file(best["b"])["w"], 1, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 9.0])
def test_without_a_number_of_each_site_there_is_no_mean(world: World, tmp_path: Path, value: float) -> None:
    """9 is beyond max_abs: an update must not be lost for that."""
    running = tasks()
    running["a"].measured["dice"] = [0.1, value, 0.1, 0.1]
    world.both(running)
    assert [set(record.means) for record in world.records["b"]] == [{"dice"}, set(), {"dice"}]
    (line,) = [line for line in world.told["a"].lines if "not sent" in line]
    assert line.startswith(f"warning: round 1: the metric dice is {value:.6g}")
    assert ("raise aggregation.max_abs" in line) == (value == 9.0)


def test_a_site_that_measures_nothing(world: World, tmp_path: Path) -> None:
    best = files(tmp_path, "best")
    world.both({"a": Silent("a"), "b": tasks()["b"]}, best=best)
    for name in EXAMPLES:
        assert all(record.means == {} for record in world.records[name])
        assert not best[name].exists()
        assert any("there is no mean of dice" in line for line in world.told[name].lines)
    assert any("this site measures no dice" in line for line in world.told["a"].lines)


def test_a_metric_that_the_task_does_not_know_is_found_before_training(world: World) -> None:
    task = Counting("a", loss=[1.0] * 4)
    with pytest.raises(ConfigError, match=r"averages the metric 'dice'.* it returns 'loss'"):
        world.run("a", task)
    assert task.at == 0


def test_a_best_model_needs_a_metric(tmp_path: Path) -> None:
    kits = made(tmp_path / "made")
    with pytest.raises(ConfigError, match=r"nothing to choose the best model by: .*metrics: \[dice\]"):
        World(kits, tmp_path).run("a", tasks()["a"], best=tmp_path / "best.safetensors")


def test_two_models_need_two_files(provisioned: Provisioned, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match="name two files"):
        World(provisioned, tmp_path).run("a", tasks()["a"], best=path, out=path)


@pytest.mark.parametrize("rounds", [0, -1, 2.0, True, None, "3"])
def test_rounds_are_a_number(provisioned: Provisioned, tmp_path: Path, rounds: Any) -> None:
    with pytest.raises(ConfigError, match="rounds are to be trained"):
        World(provisioned, tmp_path).run("a", tasks()["a"], rounds)


@pytest.mark.parametrize(
    "facts",
    [b"", b"{}", b"[]", b'{"metric": "dice", "value": NaN, "round": 1}', b'{"metric": 1, "value": 1, "round": 2}'],
)
def test_facts_that_tell_nothing_are_no_best_model(world: World, facts: bytes) -> None:
    """Or are those of another model than the file beside them, as after an interruption."""
    world.both(tasks())
    folder = world.kits["a"]
    found = find_best(folder)
    assert isinstance(found, Best)
    assert json.loads((folder / BEST_FACTS_FILE).read_bytes())["round"] == 1
    (folder / BEST_FACTS_FILE).write_bytes(facts)
    assert find_best(folder) is None
    (folder / BEST_FILE).unlink()
    assert find_best(folder) is None


def test_a_new_training_has_no_best_model_of_the_last_one(
    world: World, provisioned: Provisioned, tmp_path: Path
) -> None:
    world.both(tasks())
    for name in EXAMPLES:
        (provisioned[name] / MODEL_FILE).unlink()
    (tmp_path / "again").mkdir()
    again = World(provisioned, tmp_path / "again")
    worse = {name: Counting(name, dice=[0.1, 0.2]) for name in EXAMPLES}
    with again.server:
        again.both(worse, rounds=1)
    found = find_best(provisioned["a"])
    assert found is not None
    assert found.round == 0
    assert found.value == pytest.approx(0.1, abs=1e-3)


def test_a_site_that_begins_late_has_no_best_model_of_another_training(
    world: World, provisioned: Provisioned, tmp_path: Path
) -> None:
    """It comes after the round in which the one of the last training was the best."""
    world.both(tasks())
    for name in EXAMPLES:
        (provisioned[name] / MODEL_FILE).unlink()
    assert find_best(provisioned["a"]).round == 1  # type: ignore[union-attr]
    (tmp_path / "again").mkdir()
    again = World(provisioned, tmp_path / "again")
    with again.server:
        again.told["c"], again.records["c"] = Told(), []
        others = {"b": Counting("b", dice=[0.1] * 4), "c": Counting("b", dice=[0.1] * 4)}
        again.both(others, rounds=2)
        again.both({"a": Counting("a", dice=[0.1] * 4), "b": Counting("b", dice=[0.1] * 4)}, rounds=3)
    found = find_best(provisioned["a"])
    assert found is not None
    assert found.round == 2
    assert found.value == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("writes", range(4))
@pytest.mark.parametrize("again", [True, False])
def test_whatever_is_interrupted_there_is_a_best_model(
    kits: Provisioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, again: bool
) -> None:
    """The next process applies the same sum again, or goes on from a model of a later round."""
    model = GlobalModel(secagg.Client.load(kits["a"]), {"w": np.zeros(100, np.float32)})

    def measured(round: int, dice: float) -> Best | None:
        model.round, model.base = round, bytes([round] * 32)
        model.save_model(tmp_path / MODEL_FILE)
        return keep_best(tmp_path, round, "dice", {"dice": dice})

    assert measured(0, 0.7) == Best("dice", 0.7, 0, bytes(32).hex())
    left = [writes]

    class KilledError(Exception):
        pass

    def counted(real: Any) -> Any:
        def write(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return real(*arguments, **options)

        return write

    with monkeypatch.context() as patched, suppress(KilledError):
        patched.setattr(best_model, "replace_file", counted(best_model.replace_file))
        patched.setattr(Path, "replace", counted(Path.replace))
        measured(1, 0.9)
    before, after = (0.7, 0), (0.9, 1)
    found = find_best(tmp_path)
    assert found is not None
    assert (found.value, found.round) == (after if writes >= 2 else before)
    with open_best(tmp_path) as stored:
        assert (stored.header.round, stored.header.base) == (found.round, bytes([found.round] * 32))
    if again:
        measured(1, 0.9)
        found = find_best(tmp_path)
    assert measured(2, 0.5) is None
    assert find_best(tmp_path) == found
    assert measured(3, 0.95) is not None
    with open_best(tmp_path) as stored:
        assert stored.header.round == 3


@pytest.mark.parametrize("leaves", [False, True])
def test_the_best_model_outlives_the_key(world: World, provisioned: Provisioned, tmp_path: Path, leaves: bool) -> None:
    """It is under the key of the last epoch, and better than all that follow; another site may be revoked meanwhile."""
    world.both(tasks())
    world.federation.close()

    changes = [removed("c")] if leaves else []
    for number, change in enumerate([*changes, lambda made, changed, kits: made.rotate(None, changed, kits)]):
        provisioned = provisioned.change(tmp_path / f"change-{number}", change)
        for kit in provisioned.kits.iterdir():
            install({path.name: path.read_bytes() for path in kit.iterdir()}, world.kits[kit.name])
    provisioned = world.kits
    again = World(provisioned, tmp_path)
    best = files(tmp_path, "best")
    with again.server:
        again.both({name: Counting(name, dice=[0.1] * 6) for name in EXAMPLES}, 5, best=best)
    for name in EXAMPLES:
        found = find_best(provisioned[name])
        assert (found and found.round) == 1
        np.testing.assert_allclose(safetensors.numpy.load_file(best[name])["w"], 1, atol=1e-3)


def test_a_best_model_that_cannot_be_read_costs_no_final_model(world: World, tmp_path: Path) -> None:
    world.both(tasks())
    path = world.kits["a"] / BEST_FILE
    damaged = bytearray(path.read_bytes())
    damaged[-200] ^= 1
    path.write_bytes(damaged)
    out, best = tmp_path / "out.safetensors", tmp_path / "best.safetensors"
    with pytest.raises(SecAggError):
        world.run("a", tasks()["a"], out=out, best=best)
    np.testing.assert_allclose(safetensors.numpy.load_file(out)["w"], 3, atol=1e-3)
    assert not best.exists()


# Where the first model comes from.


def saved(path: Path, value: float) -> Path:
    state = {"w": np.full(100, value, np.float32), "steps": np.array(7)}
    if path.suffix == ".npz":
        np.savez(path, **state)
    elif path.suffix == ".pt":
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    else:
        safetensors.numpy.save_file(state, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_the_first_model_from_a_file(world: World, tmp_path: Path, suffix: str) -> None:
    start = saved(tmp_path / f"start{suffix}", 1.0)
    running = tasks()
    world.both(running, rounds=2, start=dict.fromkeys(EXAMPLES, start))
    for name, task in running.items():
        np.testing.assert_allclose(task.model["w"], 3, atol=1e-3)
        assert task.model["steps"] == 9
        assert world.records[name][0].metrics["dice"] == DICE[name][2]


def test_a_network_from_a_file_of_numpy(world: World, tmp_path: Path) -> None:
    class Torch(Counting):
        def __init__(self, name: str) -> None:
            super().__init__(name, dice=DICE[name])
            self.model = torch.nn.Linear(4, 2)  # type: ignore[assignment]

        def train(self, round: int) -> None:
            pass

        at = 0  # type: ignore[assignment]

    start = tmp_path / "start.npz"
    np.savez(start, weight=np.ones((2, 4), np.float32), bias=np.zeros(2, np.float32))
    running = {name: Torch(name) for name in EXAMPLES}
    world.both(running, rounds=1, start=dict.fromkeys(EXAMPLES, start))
    for task in running.values():
        torch.testing.assert_close(task.model.weight.data, torch.ones(2, 4))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"w": np.zeros(100, np.float32)}, "lacks 'steps'"),
        ({"w": np.zeros(100, np.float32), "steps": np.array(0), "v": np.array(0)}, "also has 'v'"),
        ({"w": np.zeros(99, np.float32), "steps": np.array(0)}, r"'w' in the shape \[99\], .* in \[100\]"),
    ],
)
def test_a_file_of_another_model(world: World, tmp_path: Path, state: dict[str, Any], fault: str) -> None:
    np.savez(tmp_path / "start.npz", **state)
    with pytest.raises(SecAggError, match=fault):
        world.run("a", tasks()["a"], start=tmp_path / "start.npz")


def test_another_first_model_than_the_manifests_is_found_before_joining(tmp_path: Path) -> None:
    """With metrics, whose tensors are no part of the model."""
    saved(tmp_path / "initial.npz", 2.0)
    kits = made(tmp_path / "made", metrics=["dice"], initial=str(tmp_path / "initial.npz"))
    world = World(kits, tmp_path)
    with world.server:
        with pytest.raises(VerificationError, match="first global model is another than the one that the manifest"):
            world.run("a", tasks()["a"])
        start = dict.fromkeys(EXAMPLES, tmp_path / "initial.npz")
        world.both(tasks(), rounds=1, start=start)
    assert {record.metrics["dice"] for record in world.records["a"]} == {DICE["a"][3]}


def test_another_first_model_than_the_manifests_in_a_loop_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that does not say from what the round begins."""
    saved(tmp_path / "initial.npz", 2.0)
    kits = made(tmp_path / "made", initial=str(tmp_path / "initial.npz"))
    world, kit = World(kits, tmp_path), load_site_kit(kits["a"])
    right, wrong = (GlobalModel(secagg.Client.load(kit), Silent("a", value).model) for value in (2.0, 0.0))
    with world.server, world.connect(kit, right.layout) as session:
        session.join()
        status = session.status
        monkeypatch.setattr(session, "status", lambda: replace(status(), base=None))
        session.catch_up(right, tmp_path / "download")
        with pytest.raises(VerificationError, match="first global model is another than the one that the manifest"):
            session.catch_up(wrong, tmp_path / "download")


def test_the_first_model_of_one_site(world: World) -> None:
    """The others wait for it, whatever they begin from."""
    running = {"a": Counting("a", 1.0, dice=DICE["a"]), "b": Counting("b", -5.0, dice=DICE["b"])}
    with ThreadPoolExecutor() as pool:
        other = pool.submit(world.run, "b", running["b"], 2, start_by="a")
        deadline = time.monotonic() + 20
        while "b" not in world.federation.status().waiting_for and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not other.done()
        world.run("a", running["a"], 2, start_by="a")
        other.result(60)
    assert "beginning from the first global model of a" in world.told["b"].lines
    for task in running.values():
        np.testing.assert_allclose(task.model["w"], 3, atol=1e-3)
    assert [record.metrics["dice"] for record in world.records["b"]] == DICE["b"][2:]


class Cut(SecAggError):
    """The connection is gone, and the process with it."""


@pytest.mark.parametrize("lost", [False, True])
def test_the_first_model_is_stored_after_an_interruption(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """It lies in the folder then, and the others wait for it; or it was stored, and the answer is lost."""
    real = Session.save_model

    def cut(self: Session, path: Any, *arguments: Any) -> bool:
        if lost:
            real(self, path, *arguments)
        raise Cut("cut")

    running = {"a": Counting("a", 1.0, dice=DICE["a"]), "b": Counting("b", -5.0, dice=DICE["b"])}
    with monkeypatch.context() as patched:
        patched.setattr(Session, "save_model", cut)
        with pytest.raises(Cut):
            world.run("a", Counting("a", 1.0, dice=DICE["a"]), 1, start_by="a")
    running["a"].model["w"] += np.float32(0.25)  # begun anew, at random
    world.both(running, 1, start_by={"a": "a", "b": "a"})
    for task in running.values():
        np.testing.assert_allclose(task.model["w"], 2, atol=1e-3)


def test_another_first_model_of_a_site_that_has_lost_its_folder(world: World) -> None:
    first = {"a": Counting("a", 1.0, dice=DICE["a"]), "b": Counting("b", -5.0, dice=DICE["b"])}
    first["b"].fails = 0
    with ThreadPoolExecutor() as pool:
        other = pool.submit(world.run, "b", first["b"], 1, start_by="a")
        first["a"].fails = 0
        with pytest.raises(TaskError):
            world.run("a", first["a"], 1, start_by="a")
        with pytest.raises(TaskError):
            other.result(60)
    (world.kits["a"] / MODEL_FILE).unlink()
    for _ in range(2):
        with pytest.raises(StateError, match="a has stored another first model on the server than it has now"):
            world.run("a", Counting("a", 2.0, dice=DICE["a"]), 1, start_by="a")
    running = {"a": Counting("a", 1.0, dice=DICE["a"]), "b": Counting("b", 0.0, dice=DICE["b"])}
    world.both(running, 1, start_by={"a": "a", "b": "a"})
    for task in running.values():
        np.testing.assert_allclose(task.model["w"], 2, atol=1e-3)


def test_the_site_that_all_began_from_comes_back_without_its_folder(world: World) -> None:
    running = {"a": Counting("a", 1.0, dice=DICE["a"]), "b": Counting("b", -5.0, dice=DICE["b"])}
    world.both(running, 1, start_by={"a": "a", "b": "a"})
    (world.kits["a"] / MODEL_FILE).unlink()
    back = {"a": Counting("a", -5.0, dice=[0.1] * 4), "b": Counting("b", 1.0, dice=DICE["b"])}
    world.both(back, 2, start_by={"a": "a", "b": "a"})
    for task in back.values():
        np.testing.assert_allclose(task.model["w"], 3, atol=1e-3)


def test_sites_that_begin_from_different_models_do_not_train_together(world: World) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(world.run, "a", Counting("a", 1.0, dice=DICE["a"]), 1)
        while "a" not in world.federation.status().added:
            time.sleep(0.02)
            assert not first.done() or first.result()
        with pytest.raises(MismatchError, match="another global model"):
            world.run("b", Counting("b", 0.0, dice=DICE["b"]), 1)
        world.run("b", Counting("b", 1.0, dice=DICE["b"]), 1)
        first.result(60)


def test_a_first_model_that_nobody_makes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IdentityError):
        world.run("a", tasks()["a"], start_by="nobody")
    connect = world.connect

    def impatient(kit: SiteKit, layout: secagg.Layout) -> AbstractContextManager[Session]:
        session = connect(kit, layout)
        session.timeout = 1.5  # type: ignore[attr-defined]
        return session

    monkeypatch.setattr(world, "connect", impatient)
    with pytest.raises(StateError, match=r"b has not stored its first model within 1.5 s: start it"):
        world.run("a", tasks()["a"], start_by="b")


def test_a_first_model_of_another_site_is_refused(tmp_path: Path) -> None:
    """Which a server may show in its place."""
    kits = made(tmp_path / "made")
    session = StoredSession(GlobalModel(secagg.Client.load(kits["b"]), {"w": np.ones(3, np.float32)}), tmp_path)
    mine = GlobalModel(secagg.Client.load(kits["a"]), {"w": np.zeros(3, np.float32)})
    project = load_server_kit(kits["server"]).project
    arguments = (tmp_path, project, session, mine, Told())
    with pytest.raises(VerificationError, match="the first model on the server is of b, not of c"):
        begin_from("c", *arguments)  # type: ignore[arg-type]
    assert mine.state["w"][0] == 0
    assert begin_from("b", *arguments)  # type: ignore[arg-type]
    assert mine.state["w"][0] == 1


def test_a_first_model_under_the_digest_of_another_is_refused(tmp_path: Path) -> None:
    """Or that of the manifest would let a site begin from what it likes."""
    saved(tmp_path / "initial.npz", 2.0)
    kits = made(tmp_path / "made", initial=str(tmp_path / "initial.npz"))
    project = load_server_kit(kits["server"]).project
    state = {"w": np.full(100, 3, np.float32), "steps": np.array(0)}
    forged = GlobalModel(secagg.Client.load(kits["b"]), state, base=project.base)
    mine = GlobalModel(secagg.Client.load(kits["a"]), {**state, "w": np.zeros(100, np.float32)})
    session: Any = StoredSession(forged, tmp_path)
    with pytest.raises(VerificationError, match="is not the one that it is said to be"):
        begin_from("b", tmp_path, project, session, mine, Told())
    assert mine.state["w"][0] == 0


class StoredSession:
    """A server that has the first model of one site."""

    timeout = 1.0

    def __init__(self, model: GlobalModel, folder: Path) -> None:
        self._path = folder / "stored.secagg"
        model.save_model(self._path)

    def status(self) -> Any:
        return SimpleNamespace(models=(0,), round=0)

    def load_model(self, path: Path, round: int) -> secagg.Update:
        return secagg.Update.open(self._path)
