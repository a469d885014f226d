"""Fixtures and tables of the benchmarks: ``make bench``, or ``python -m pytest benchmarks -v -k decrypt``.

The model is MONAI's SegResNet with 4,700,914 parameters, the params are those of NVIDIA Clara Train. Speed is not
asserted, since other programs run beside: two sides of a ratio take turns in one run, and the table at the end says
what was met; bench_frameworks.py alone asserts CPU time. Sizes, errors and results are asserted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import costs
import numpy as np
import pytest
import tenseal as ts
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report

import secagg
from secagg.bench.settings import CLARA, SETTINGS
from secagg.trust.key import KeyPair

RESULTS = Path(__file__).parent / "results" / "bench.json"
REPORT = pytest.StashKey[Report]()
AGGREGATION = {"min_clients": 2, "max_clients": 30, "max_abs": 8.0, "max_weight": 1.0}


@dataclass
class Times:
    """Seconds of each round: on the wall, and of this process's CPU, which other programs disturb less."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*args)
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return result

    @property
    def seconds(self) -> float:
        return median(self.wall)


@dataclass(frozen=True)
class Comparison:
    """Two sides that took turns."""

    ours: Times
    bare: Times
    result: Any

    @property
    def ratio(self) -> float:
        return self.ours.seconds / self.bare.seconds

    @property
    def cpu_ratio(self) -> float:
        return median(self.ours.cpu) / median(self.bare.cpu)

    @property
    def detail(self) -> str:
        return f"{_seconds(self.ours.seconds)} / {_seconds(self.bare.seconds)}, CPU time {self.cpu_ratio:.2f}"


@pytest.fixture
def benchmark(benchmark: BenchmarkFixture) -> BenchmarkFixture:
    """That of pytest-benchmark, which also notes ``peak_nbytes``: memory above the start, in the first round."""
    pedantic = benchmark.pedantic

    def run(target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        watched = costs.FirstPeak(target)
        result = pedantic(watched, *args, **kwargs)
        benchmark.extra_info["peak_nbytes"] = watched.nbytes
        return result

    benchmark.pedantic = run
    return benchmark


@pytest.fixture
def message(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """``message(sent, mean, truth, peak)`` notes ``nbytes``, ``precision_bits`` and ``peak_nbytes``.

    `sent` is a message or its size, `mean` what has been decrypted, `truth` what that should be. `peak` is the memory
    of another process, where that does the work. What has no message, like a kernel, does not call it.
    """

    def note(sent: Any, mean: Any = None, truth: Any = None, peak: int | None = None) -> None:
        benchmark.extra_info["nbytes"] = costs.size(sent)
        if mean is not None:
            benchmark.extra_info["precision_bits"] = costs.precision_bits(mean, truth)
        if peak is not None:
            benchmark.extra_info["peak_nbytes"] = peak

    return note


@pytest.fixture(scope="session")
def decrypted() -> Callable[..., Any]:
    """``decrypted(config, keys, sent, state)``: the mean of a message, and of another of the same values."""
    return costs.decrypt


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Callable[..., Comparison]:
    """``compare(ours, bare, rounds, prepare)``: medians of two sides, the bare one timed before each round of ours.

    `prepare` returns the arguments of `ours`. A first round of both is not counted.
    """

    def run(
        ours: Callable[..., Any],
        bare: Callable[[], object],
        rounds: int,
        prepare: Callable[[], tuple[Any, ...]] = tuple,
    ) -> Comparison:
        mine, theirs = Times(), Times()

        def turn() -> tuple[tuple[Any, ...], dict[str, Any]]:
            theirs.run(bare)
            return prepare(), {}

        result = benchmark.pedantic(lambda *args: mine.run(ours, *args), setup=turn, rounds=rounds, warmup_rounds=1)
        for times in (mine, theirs):
            del times.wall[0], times.cpu[0]
        comparison = Comparison(mine, theirs, result)
        benchmark.extra_info.update(bare_seconds=theirs.seconds, ratio=comparison.ratio, cpu_ratio=comparison.cpu_ratio)
        return comparison

    return run


@pytest.fixture
def times() -> Callable[[], Times]:
    """A new stopwatch."""
    return Times


@pytest.fixture
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a word to the terminal while a benchmark runs."""
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write(f"{text} ", flush=True)

    return write


@pytest.fixture(scope="session")
def model() -> dict[str, torch.Tensor]:
    """State dict of SegResNet with MONAI's default blocks, under a fixed seed: 83 float32 tensors."""
    from monai.networks.nets import SegResNet

    torch.manual_seed(0)
    state = SegResNet(init_filters=16, out_channels=2).state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (83, 4_700_914)
    return dict(state)


@pytest.fixture(scope="session")
def flat(model: dict[str, torch.Tensor]) -> np.ndarray:
    """The model as one float32 vector."""
    return flatten(model)


@pytest.fixture(scope="session")
def configure() -> Callable[..., secagg.Config]:
    """``configure(backend, encrypt, **aggregation)``; a backend is one of `SETTINGS`."""

    def config(backend: str = "tenseal", encrypt: str = "all", **aggregation: float) -> secagg.Config:
        numbers = {**AGGREGATION, **aggregation}
        return secagg.Config.from_dict({"he": SETTINGS[backend].he, "encrypt": encrypt, "aggregation": numbers})

    return config


@pytest.fixture(scope="session")
def make_keys(configure: Callable[..., secagg.Config]) -> Callable[[str], KeyPair]:
    """``make_keys(backend)``: one pair each."""
    return cache(lambda backend: secagg.generate_keys(configure(backend)))


@pytest.fixture(scope="session")
def keys(make_keys: Callable[[str], KeyPair]) -> KeyPair:
    """The pair of TenSEAL with Clara's params."""
    return make_keys("tenseal")


@pytest.fixture(scope="session")
def context() -> ts.Context:
    """TenSEAL's own symmetric context of the same params."""
    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        CLARA["poly_modulus_degree"],
        coeff_mod_bit_sizes=CLARA["coeff_mod_bit_sizes"],
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = 2.0 ** CLARA["scale_bits"]
    return context


@pytest.fixture(scope="session")
def updates(configure: Callable[..., secagg.Config], keys: KeyPair, model: dict[str, torch.Tensor]) -> list[bytes]:
    """Updates of two sites that send the same model."""
    return [secagg.Client(configure(), keys.client, name).encrypt(model).to_bytes() for name in ("site-1", "site-2")]


@pytest.fixture(scope="session")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    configure: Callable[..., secagg.Config],
    keys: KeyPair,
    model: dict[str, torch.Tensor],
) -> Path:
    """What ``support/peak_memory.py`` needs."""
    path = tmp_path_factory.mktemp("federation")
    (path / "config.json").write_text(json.dumps(configure().to_dict()))
    keys.client.save(path / "client.key")
    keys.server.save(path / "server.key")
    np.savez(path / "model.npz", **{name: tensor.numpy() for name, tensor in model.items()})
    return path


@pytest.fixture(scope="session")
def flatten_state() -> Callable[[Mapping[str, Any]], np.ndarray]:
    """Turns a state dict into one vector."""
    return flatten


def flatten(state: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(tensor).reshape(-1) for tensor in state.values()])


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """The report of this run, to which rows of this file are added."""
    found = request.config.stash[REPORT]
    found.command = f"python -m pytest benchmarks/{request.path.name}"
    return found


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if not report.measurements:
        return
    terminalreporter.section("secagg: SegResNet, 4,700,914 parameters, 30 sites planned")
    for line in report.lines():
        terminalreporter.write_line(line)
    report.save(RESULTS)
    terminalreporter.write_line(f"\nwritten to {RESULTS}")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"
