"""Rounds for a loop that trains by itself: real kits, a server in threads, models of NumPy and torch."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from provisioned import Federation as Provisioned
from toy_transport import ToyLink, ToyServer

from secagg.errors import ConfigError, KeyFileError, LayoutError, MismatchError, RangeError, TransportError
from secagg.server import Federation, Limits
from secagg.site import Session, train_rounds
from secagg.trust import load_server_kit, load_site_kit

WEIGHTS = {"a": 1.0, "b": 3.0, "c": 4.0}
#: What a round adds at each site: exact in float32, and so is its mean.
STEPS = {"a": 8.0, "b": 0.0, "c": 2.0}
MEAN = 2.0

Open = Callable[[str], Session]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    aggregation = {"min_clients": 2, "max_clients": 4, "max_abs": 8.0, "max_weight": 4.0}
    return Provisioned.make(
        tmp_path_factory.mktemp("kits"),
        hosts=[],
        sites=list(WEIGHTS),
        he={"lib": "flashe", "config": {"value_bits": 20, "rounding": "nearest"}},
        aggregation=aggregation,
    )


@pytest.fixture
def provisioned(kits: Provisioned, tmp_path: Path) -> Provisioned:
    shutil.copytree(kits.kits, tmp_path / "kits")
    return Provisioned(kits.provisioner, tmp_path / "kits")


@pytest.fixture
def connect(provisioned: Provisioned, tmp_path: Path) -> Iterator[Open]:
    """Return what opens a session; all sites have joined, so that no round ends before one of them begins."""
    kit = load_server_kit(provisioned["server"])
    limits = Limits(idle_seconds=60.0)
    federation = Federation(
        kit.config,
        kit.key,
        tmp_path / "run",
        round_timeout=60,
        project=kit.project,
        identity=kit.identity,
        limits=limits,
    )

    def session(site: str) -> Session:
        kit = load_site_kit(provisioned[site])
        certificate = (provisioned[site] / "tls.crt").read_bytes()
        return Session(ToyLink(server, certificate), kit.name, timeout=60, project=kit.project)

    with ToyServer(federation) as server:
        yield session


def zeros() -> dict[str, NDArray[np.float32]]:
    return {"w": np.zeros(100, np.float32)}


def train(
    folder: Path, session: Session, model: dict[str, Any], rounds: int, until: int | None = None
) -> list[tuple[int, float]]:
    """Train as a site does; return which rounds, and what each began from."""
    seen = []
    name = folder.name
    for round in train_rounds(folder, session, model, WEIGHTS[name], rounds):
        seen.append((round, float(model["w"][0])))
        if round == until:
            break
        model["w"] += np.float32(STEPS[name])
    return seen


def in_threads(provisioned: Provisioned, connect: Open, work: Callable[[str, Path, Session], Any]) -> dict[str, Any]:
    sessions = {name: connect(name) for name in WEIGHTS}
    for session in sessions.values():
        session.join()
    with ThreadPoolExecutor(3) as pool:
        futures = {name: pool.submit(work, name, provisioned[name], sessions[name]) for name in WEIGHTS}
        return {name: future.result(120) for name, future in futures.items()}


def test_all_sites_train_all_rounds_from_the_mean(provisioned: Provisioned, connect: Open) -> None:
    models = {name: zeros() for name in WEIGHTS}
    seen = in_threads(provisioned, connect, lambda name, kit, session: train(kit, session, models[name], 3))
    for name, model in models.items():
        assert [round for round, _ in seen[name]] == [0, 1, 2]
        np.testing.assert_allclose([begun for _, begun in seen[name]], [0, MEAN, 2 * MEAN], atol=1e-3)
        np.testing.assert_allclose(model["w"], 3 * MEAN, atol=1e-3)
        np.testing.assert_array_equal(model["w"], models["a"]["w"])


def test_who_breaks_off_is_not_waited_for(
    provisioned: Provisioned, connect: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """The round timeout is a minute: without its word, the others would wait that long."""
    models = {name: zeros() for name in WEIGHTS}

    def work(name: str, kit: Path, session: Session) -> list[tuple[int, float]]:
        return train(kit, session, models[name], 2, until=1 if name == "c" else None)

    start = time.monotonic()
    seen = in_threads(provisioned, connect, work)
    assert time.monotonic() - start < 30
    assert {name: len(rounds) for name, rounds in seen.items()} == {"a": 2, "b": 2, "c": 2}
    assert [text for text in caplog.messages if "leaves" in text] == [
        "round 1 (2 of 2): this site leaves, and has not trained for it"
    ]
    np.testing.assert_allclose(models["a"]["w"], MEAN + (1 * 8 + 3 * 0) / 4, atol=1e-3)
    np.testing.assert_allclose(models["c"]["w"], MEAN, atol=1e-3)


def test_a_torch_module_and_a_site_without_examples(provisioned: Provisioned, connect: Open) -> None:
    networks = {name: torch.nn.ParameterDict({"w": torch.zeros(100)}) for name in WEIGHTS}

    def work(name: str, kit: Path, session: Session) -> list[int]:
        seen = []
        for round in train_rounds(load_site_kit(kit), session, networks[name], 0 if name == "c" else 1, 2):
            seen.append(round)
            with torch.no_grad():
                networks[name]["w"] += STEPS[name]
        return seen

    assert in_threads(provisioned, connect, work) == {"a": [0, 1], "b": [0, 1], "c": []}
    for network in networks.values():
        torch.testing.assert_close(network["w"].data, torch.full((100,), 8.0), rtol=0, atol=1e-3)


def test_what_was_encrypted_is_not_trained_again(
    provisioned: Provisioned, connect: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """One site breaks off while it trains, another before its upload; both are started again."""
    caplog.set_level(logging.INFO, "secagg.site")
    models = {name: zeros() for name in WEIGHTS}

    def work(name: str, kit: Path, session: Session) -> list[int]:
        seen = []
        if name == "a":
            rounds = train_rounds(kit, session, models[name], WEIGHTS[name], 2)
            for round in rounds:
                seen.append(round)
                models[name]["w"] += np.float32(STEPS[name])
                if round == 1:
                    break  # as an error would
            rounds.close()
        elif name == "b":
            upload = session.upload
            session.upload = _broken  # type: ignore[method-assign]
            with pytest.raises(TransportError):
                train(kit, session, models[name], 2)
            session.upload = upload  # type: ignore[method-assign]
            seen.append(0)
        models[name] = zeros()  # as another process begins
        return [*seen, *(round for round, _ in train(kit, session, models[name], 2))]

    assert in_threads(provisioned, connect, work) == {"a": [0, 1, 1], "b": [0, 1], "c": [0, 1]}
    assert "going on with the update that was encrypted before" in caplog.text
    for model in models.values():
        np.testing.assert_allclose(model["w"], 2 * MEAN, atol=1e-3)


def _broken(*_: Any) -> Any:
    raise TransportError("the server is gone")


def test_after_the_last_round_it_yields_none_and_loads_the_model(provisioned: Provisioned, connect: Open) -> None:
    in_threads(provisioned, connect, lambda _, kit, session: train(kit, session, zeros(), 1))
    model = zeros()
    with connect("a") as session:
        assert train(provisioned["a"], session, model, 1) == []
    np.testing.assert_allclose(model["w"], MEAN, atol=1e-3)


@pytest.mark.parametrize("rounds", [0, -1, 2.0, True, None])
def test_rounds_are_a_number(provisioned: Provisioned, connect: Open, rounds: Any) -> None:
    with pytest.raises(ConfigError, match="rounds are to be trained"):
        next(train_rounds(provisioned["a"], connect("a"), zeros(), 1, rounds))


def test_what_is_wrong_is_found_before_training(provisioned: Provisioned, connect: Open) -> None:
    def begin(model: Any, examples: Any = 1, kit: Any = None) -> None:
        next(train_rounds(kit or provisioned["a"], session, model, examples, 2))

    with connect("a") as session:
        with pytest.raises(KeyFileError, match="that of a site"):
            begin(zeros(), kit=provisioned["server"])
        with pytest.raises(KeyFileError, match="is no kit"):
            begin(zeros(), kit=provisioned.kits / "nowhere")
        with pytest.raises(RangeError, match="max_weight"):
            begin(zeros(), 5)
        with pytest.raises(ConfigError, match="number of training examples"):
            begin(zeros(), "many")
        with pytest.raises(ConfigError, match=r"torch\.nn\.Module"):
            begin([1, 2])
        with pytest.raises(LayoutError):
            begin({"w": np.zeros(3, np.int64)})


def test_a_kit_serves_one_loop_at_a_time(provisioned: Provisioned, connect: Open) -> None:
    with connect("a") as session:
        first = train_rounds(provisioned["a"], session, zeros(), 1, 2)
        assert next(first) == 0
        with pytest.raises(ConfigError, match="one kit, one process"):
            next(train_rounds(provisioned["a"], session, zeros(), 1, 2))
        first.close()
        assert next(train_rounds(provisioned["a"], session, zeros(), 1, 2)) == 0


def test_a_model_that_the_others_do_not_have(provisioned: Provisioned, connect: Open) -> None:
    """What differs from the first update is refused; the others go on."""

    def work(name: str, kit: Path, session: Session) -> None:
        if name == "c":
            with pytest.raises(MismatchError):
                train(kit, session, {"w": np.ones(100, np.float32)}, 1)
            session.skip(0)
        else:
            train(kit, session, zeros(), 1)

    for name in WEIGHTS:
        connect(name).join()
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(work, name, provisioned[name], connect(name)) for name in ("a", "b")]
        with connect("a") as session:
            while len(session.status().added) < 2:
                time.sleep(0.01)
        pool.submit(work, "c", provisioned["c"], connect("c")).result(60)
        for future in others:
            future.result(60)
