"""A site that comes late to a federation whose sites write their rounds by hand, as README.md does."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from running import wait_until
from served import Kits, Served, federation

import secagg
from secagg.errors import MismatchError, StateError
from secagg.site import GlobalModel, Session
from secagg.site.catching_up import model_to_load, stores_model
from secagg.trust import load_site_kit

ROUNDS, LATE_ROUND = 4, 2
STATE = {"w": np.zeros(1000, np.float32)}
EARLY = ("site-1", "site-2", "site-3")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("late"), federation())


def make_client(kits: Kits, name: str) -> secagg.Client:
    kit = load_site_kit(kits[name])
    return secagg.Client(kit.config, kit.key, name, identity=kit.identity, project=kit.project)


class Run:
    """Sites that go through the rounds, the early ones not beyond `LATE_ROUND` until the late one is there."""

    def __init__(self, kits: Kits, address: str, folder: Path, *, stored: bool) -> None:
        self.kits, self.address, self.folder, self.stored = kits, address, folder, stored
        self.late_is_there = threading.Event()

    def session(self, name: str) -> Session:
        return self.kits.session(name, self.address)

    def take_part(self, name: str) -> GlobalModel:
        client, path = make_client(self.kits, name), self.folder / name
        client.restore_carry(b"")  # a site that comes for the first time has nothing to carry
        model = GlobalModel(client, STATE)
        with self.session(name) as session:
            if name not in EARLY:
                wait_until(lambda: session.status().round == LATE_ROUND)
            session.join()
            session.catch_up(model, path)
            if name not in EARLY:
                assert model.round == LATE_ROUND
                self.late_is_there.set()
            while model.round < ROUNDS:
                if model.round == LATE_ROUND:
                    assert self.late_is_there.wait(120)
                update = model.encrypt({"w": model.state["w"] + 0.5}, weight=1.0)
                with session.exchange(update, path) as aggregate:
                    model.apply(aggregate, session.receipt(model.round))
                    if self.stored:
                        session.store_model(model, aggregate, self.folder / f"{name}.model")
        return model


@pytest.mark.parametrize("stored", [True, False])
def test_a_site_that_joins_in_round_2(kits: Kits, tmp_path: Path, stored: bool) -> None:
    """By the stored model, or by the aggregates of both rounds; from then on it is waited for as the others are."""
    with (
        Served(kits["server"], tmp_path / "server", ("--round-timeout", 60)) as served,
        ThreadPoolExecutor(4) as pool,
    ):
        for name in EARLY:  # no round ends before all of them have joined
            with kits.session(name, served.address) as session:
                session.join()
        run = Run(kits, served.address, tmp_path, stored=stored)
        models = list(pool.map(run.take_part, (*EARLY, "site-4")))
        with run.session("site-1") as session:
            # Of the last two: that of whose turn it is, the first of four sites in round 4.
            assert session.status().models == ((3, 4) if stored else ())
    for model in models:
        np.testing.assert_array_equal(model.state["w"], models[0].state["w"])
        assert model.base == models[0].base
    np.testing.assert_allclose(models[0].state["w"], 0.5 * ROUNDS, atol=ROUNDS * 2e-3)  # 11 bits of max_abs 1
    lines = (tmp_path / "server" / "run" / "rounds.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["uploads"]) for line in lines] == [3, 3, 4, 4]


def test_what_cannot_be_caught_up_with(kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server") as served:
        run = Run(kits, served.address, tmp_path, stored=False)
        client = make_client(kits, "site-1")
        with run.session("site-1") as session:
            ahead = GlobalModel(client, STATE, round=3, base=bytes(32))
            with pytest.raises(StateError, match="the server is at round 0, this site at round 3"):
                session.catch_up(ahead, tmp_path / "x")
            model = GlobalModel(client, STATE)
            session.catch_up(model, tmp_path / "x")
            session.upload(model.encrypt(STATE, 1.0))
            other = GlobalModel(client, {"w": STATE["w"] + 1})
            with pytest.raises(MismatchError, match="round 0 begins from another global model"):
                session.catch_up(other, tmp_path / "x")
            for name in ("site-2", "site-3"):
                with run.session(name) as another:
                    another.upload(GlobalModel(make_client(kits, name), STATE).encrypt(STATE, 1.0))
            with session.download(0, tmp_path / "x") as aggregate:
                with pytest.raises(StateError, match="that of round 0: apply the aggregate of round 0 first"):
                    session.store_model(model, aggregate, tmp_path / "model")
                model.apply(aggregate)
                assert not session.store_model(model, aggregate, tmp_path / "model")  # it is the turn of site-2
                assert not (tmp_path / "model").exists()


def test_a_loop_that_is_started_again_in_the_middle_of_a_round(kits: Kits, tmp_path: Path) -> None:
    """Its update is in the sum already: it waits for that, trains nothing again, and goes on."""
    with Served(kits["server"], tmp_path / "server") as served, ThreadPoolExecutor(1) as pool:
        run = Run(kits, served.address, tmp_path, stored=False)
        models = {name: GlobalModel(make_client(kits, name), STATE) for name in EARLY}
        with run.session("site-1") as session:
            session.join()
            session.upload(models["site-1"].encrypt({"w": STATE["w"] + 0.5}, 1.0))
        with run.session("site-1") as session:  # another process, which has kept nothing
            session.join()
            again = GlobalModel(make_client(kits, "site-1"), STATE)
            waiting = pool.submit(session.catch_up, again, tmp_path / "aggregate")
            for name in EARLY[1:]:
                assert not waiting.done()
                with run.session(name) as other:
                    other.upload(models[name].encrypt({"w": STATE["w"] + 0.5}, 1.0))
            waiting.result(60)
            assert again.round == 1
            with session.download(0, tmp_path / "aggregate") as aggregate:
                assert all(model.apply(aggregate) for model in models.values())  # which knows its own
            assert again.base == models["site-2"].base
            np.testing.assert_array_equal(again.state["w"], models["site-2"].state["w"])


@pytest.mark.parametrize(
    ("here", "models", "aggregates", "begun", "expected"),
    [
        (0, (), (0, 1), False, None),
        (0, (1,), (0, 1), False, 1),  # whatever the initial model was
        (1, (2,), (0, 1), True, None),
        (1, (2,), (0,), True, 2),
        (0, (2, 1), (1,), True, 2),
    ],
)
def test_the_way_to_the_open_round(
    here: int, models: tuple[int, ...], aggregates: tuple[int, ...], begun: bool, expected: int | None
) -> None:
    assert model_to_load(here, 2, models, aggregates, begun) == expected


def test_no_way_to_the_open_round() -> None:
    with pytest.raises(StateError, match=r"the model of round 1; .* no later model, and no aggregate of round 2"):
        model_to_load(1, 3, (0, 1), (0, 1), begun=True)


def test_sites_take_turns() -> None:
    turns = [[site for site in "abc" if stores_model(site, round, ("c", "a", "b"))] for round in range(4)]
    assert turns == [["a"], ["b"], ["c"], ["a"]]
