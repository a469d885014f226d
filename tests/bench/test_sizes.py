"""benchmarks/sizes.csv is what this code makes, to the byte, and what it says is what is really sent and allocated."""

from __future__ import annotations

import csv
import importlib.util
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import secagg
import secagg.aggregator
import secagg.wire.container
import secagg.wire.header
from secagg.bench.settings import SETTINGS
from secagg.errors import ConfigError
from secagg.setup.model_file import read_layout
from secagg.wire.tail import tail_nbytes

FOLDER = Path(__file__).parents[2] / "benchmarks"
PARAMETERS = {
    "segresnet": 4700914,
    "resnet50": 25557032 + 2 * 26560,
    "vit-b": 86567656,
    "lora": 4194304,
    "logistic": 650,
}

#: By setting, model and sites.
Rows = dict[tuple[str, str, int], dict[str, str]]


@pytest.fixture(scope="module")
def sizes() -> ModuleType:
    """The script."""
    spec = importlib.util.spec_from_file_location("benchmark_sizes", FOLDER / "sizes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> Rows:
    """The file."""
    with (FOLDER / "sizes.csv").open(encoding="utf-8", newline="") as file:
        return {(row["setting"], row["model"], int(row["sites"])): row for row in csv.DictReader(file)}


def test_the_file_is_what_this_code_makes(sizes: ModuleType) -> None:
    found = sizes.check()
    assert not found, "\n".join([*found[:20], f"({len(found)} rows differ)", sizes.REMEDY])


def test_every_setting_preset_and_model_is_there(rows: Rows) -> None:
    assert {setting for setting, _, _ in rows} == set(SETTINGS)
    assert {row["preset"] for row in rows.values()} == {"clara", "exact", "smallest", ""}
    assert {model: int(rows["tenseal", model, 3]["parameters"]) for _, model, _ in rows} == PARAMETERS
    assert {sites for _, _, sites in rows} == {3, 10, 30, 100, 1000}
    for row in rows.values():
        assert bool(row["problem"]) is not bool(row["up_nbytes"])


def test_a_round_that_cannot_be_says_why(rows: Rows) -> None:
    assert rows["seal-sums", "lora", 1000]["problem"] == (
        "the sum of max_clients 1000 updates of max_abs 8 at scale_bits 34 needs 47.5 bits, the data primes [45] hold "
        "43"
    )
    config = SETTINGS["seal-sums"].config(1000)
    with pytest.raises(ConfigError, match="the sum of max_clients 1000 updates"):
        secagg.Client(config, secagg.generate_keys(SETTINGS["seal-sums"].config(3)).client, "site-1")


def more(function: Callable[..., int]) -> Callable[..., int]:
    return lambda *args: function(*args) + 1


@pytest.mark.parametrize(
    ("module", "name", "longer", "more_bytes"),
    [
        (secagg.wire.container, "_PREAMBLE", struct.Struct("<8sHBBIx"), (1, 1, 0)),
        (secagg.wire.header, "tail_nbytes", more(tail_nbytes), (1, 1, 1)),
    ],
    ids=["header", "tail"],
)
def test_one_byte_more_fails(
    sizes: ModuleType,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: ModuleType,
    name: str,
    longer: object,
    more_bytes: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(module, name, longer)
    assert sizes.main(["--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop() == sizes.REMEDY
    assert len(lines) == sum(not row["problem"] for row in rows.values())
    row = rows["flashe-16", "segresnet", 30]
    (line,) = [line for line in lines if line.startswith("flashe-16, segresnet, 30 sites: ")]
    for column, number in zip(("up_nbytes", "down_nbytes", "sum_nbytes"), more_bytes, strict=True):
        said = f"{column} was {row[column]}, is {int(row[column]) + number}"
        assert (said in line) is bool(number)


def test_what_is_wrong_with_a_file(sizes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = list(sizes.make_rows())
    text = sizes.to_text(rows)
    assert sizes.differences(text, rows) == []
    first, second = text.splitlines()[1:3]
    name = "tenseal, segresnet, 3 sites"
    assert sizes.differences(text.replace(first + "\n", ""), rows) == [f"{name}: was not there, is"]
    assert sizes.differences(text, rows[1:]) == [f"{name}: was there, is not"]
    assert sizes.differences(text.replace(first, first.replace("clara", "")), rows) == [
        f"{name}: preset was empty, is clara"
    ]
    assert sizes.differences(text.replace(first, first.rpartition(",")[0]), rows) == [
        "no row differs, but their order or form"
    ]
    swapped = text.replace(f"{first}\n{second}", f"{second}\n{first}")
    assert sizes.differences(swapped, rows) == ["no row differs, but their order or form"]
    assert sizes.differences("", rows)[0].startswith("the columns were none; they are lib, scheme, ")
    monkeypatch.setattr(sizes, "FILE", tmp_path / "sizes.csv")
    monkeypatch.setattr(sizes, "make_rows", lambda: iter(rows))
    assert sizes.check()[0].startswith("sizes.csv cannot be read: ")
    assert sizes.main([]) == 0
    assert sizes.main(["--check"]) == 0
    assert (tmp_path / "sizes.csv").read_text(encoding="utf-8") == text


def states_of(model: str, largest: float, sites: int) -> list[dict[str, Any]]:
    layout, random = read_layout(FOLDER / "models" / f"{model}.json"), np.random.default_rng(0)
    return [
        {spec.name: random.uniform(-largest, largest, spec.shape).astype(np.float32) for spec in layout.tensors}
        for _ in range(sites)
    ]


def allocated(work: Callable[[], None]) -> int:
    """The bytes of the arrays that the aggregator has made meanwhile, and keeps."""
    tracemalloc.start()
    try:
        work()
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    there = tracemalloc.Filter(True, str(secagg.aggregator.__file__), domain=np.lib.tracemalloc_domain)
    return sum(item.size for item in snapshot.filter_traces([arrays]).filter_traces([there]).statistics("filename"))


def nbytes_of(updates: Sequence[secagg.Update]) -> int:
    return sum(len(update.to_bytes()) for update in updates)


@pytest.mark.parametrize(
    ("setting", "model", "sites"),
    [
        *((setting, "logistic", 3) for setting in SETTINGS),
        ("exact", "logistic", 30),
        ("smallest", "logistic", 100),
        ("exact", "segresnet", 3),
        ("smallest", "segresnet", 3),
    ],
)
def test_rows_are_true(rows: Rows, setting: str, model: str, sites: int) -> None:
    row, config = rows[setting, model, sites], SETTINGS[setting].config(sites)
    keys, states = secagg.generate_keys(config), states_of(model, float(row["largest"]), sites)
    clients = [secagg.Client(config, keys.client, f"site-{number}") for number in range(1, sites + 1)]
    sums, up, down = secagg.Aggregator(config, keys.server), [], []
    scales = None
    if config.aggregation.calibrated:
        calibrations = secagg.Aggregator(config, keys.server, kind="calibration")
        sent = [client.calibrate(state) for client, state in zip(clients, states, strict=True)]
        for calibration in sent:
            calibrations.add(calibration)
        scales = calibrations.finish()
        up, down = [sent[0]], [scales]
    updates = [client.encrypt(state, calibration=scales) for client, state in zip(clients, states, strict=True)]
    assert str(allocated(lambda: sums.add(updates[0]))) == row["sum_nbytes"]
    for update in updates[1:]:
        sums.add(update)
    aggregate = sums.finish()
    up, down = [updates[0], *up], [aggregate, *down]
    assert str(nbytes_of(up)) == row["up_nbytes"]
    assert str(nbytes_of(down)) == row["down_nbytes"]
    frames = [frame for update in up for frame, _ in update.frames() if frame.section == "encrypted"]
    assert str(sum(frame.blocks for frame in frames)) == row["blocks"]
    assert f"{8 * nbytes_of(up) / int(row['parameters']):.3f}" == row["bits_a_parameter"]
    mean = clients[0].decrypt(aggregate)
    allowed = float(row["error_bound"]) + float(row["largest"]) * 2.0**-24  # which rounding to float32 adds
    for name, values in mean.items():
        exact = sum(state[name].astype(np.float64) for state in states) / sites
        assert np.abs(values - exact).max() <= allowed
