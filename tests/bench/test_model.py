"""`secagg bench MODEL`: every setting measured on a whole small model, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.numpy
import torch
from small_model import SHAPES, random_state

from secagg.bench import model as bench
from secagg.bench.model import CostRow, Model, choose, compare, expected_seconds, is_long
from secagg.bench.model_files import Files
from secagg.bench.report.backends import size_chart
from secagg.bench.results import Results
from secagg.bench.settings import SETTINGS
from secagg.bench.sides import read_figures, write_job
from secagg.errors import ConfigError, FormatError, LayoutError, RangeError, SecAggError
from secagg.setup.sizes import sizes_of
from secagg.wire.layout import Layout

COMMAND = [sys.executable, "-m", "secagg.cli", "bench"]


@pytest.fixture
def small() -> Model:
    return model_of(random_state(0))


def model_of(state: dict[str, Any]) -> Model:
    return Model.of("m", Layout.of(state), state)


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["setting"]: row for row in Results.load(path, "model").data["rows"]}


def test_every_setting_is_measured(tmp_path: Path) -> None:
    state = random_state(0, 3.0)
    np.savez(tmp_path / "brain.npz", **state, step=np.array(3))
    result = run(tmp_path, "brain.npz", "--sites", 5)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "brain.npz"]
    assert (tmp_path / "bench" / "brain.png").read_bytes().startswith(b"\x89PNG")

    found, rows = Results.load(tmp_path / "bench" / "brain.json", "model"), rows_of(tmp_path / "bench" / "brain.json")
    assert found.command == "secagg bench brain.npz --sites 5"
    assert found.data["model"] == {
        "name": "brain",
        "parameters": 2945,
        "tensors": 4,
        "raw_nbytes": 4 * 2945,
        "values": "of the file",
        "max_abs": 4.0,
    }
    assert list(rows) == ["raw", *SETTINGS]
    model = Model.load(tmp_path / "brain.npz")
    for name, row in rows.items():
        assert row["problem"] is None, row
        assert row.keys() == CostRow("", "", "", "").to_dict().keys()
        assert min(map(len, (row["encrypt_seconds"], row["add_seconds"]))) >= 2
        assert min(row["encrypt_seconds"] + row["add_seconds"] + row["decrypt_seconds"]) > 0
        assert 0 <= row["max_error"] <= row["error_bound"]
        assert 2 <= row["bits"] <= 40
        assert 0 <= row["server_peak_nbytes"] < 1 << 26
        if name != "raw":
            limits = {"max_abs": model.bound} if SETTINGS[name].fixed else {}
            sizes = sizes_of(SETTINGS[name].config(5, **limits), model.layout, 5)
            assert (row["up_nbytes"], row["down_nbytes"]) == (sizes.up_nbytes, sizes.down_nbytes)
    assert rows["flashe-16"]["bits"] > rows["flashe-11"]["bits"] + 3

    lines = result.stdout.splitlines()
    assert lines[0] == "brain.npz: 4 float tensors, 2,945 values, 5 sites"
    assert max(map(len, lines)) <= 100
    table = {line.split()[0]: line.split() for line in lines[3:] if line.startswith(" ")}
    assert {*rows} <= {*table}
    assert table["seal-bgv-16"][1:3] == ["BGV", f"{rows['seal-bgv-16']['up_nbytes'] / 1e3:.2f}"]
    assert "encrypted: the values of the file" in result.stdout


@pytest.mark.parametrize("name", ["m.json", "m.yaml", "m.pt", "m.pth", "m.safetensors"])
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path, state = tmp_path / name, random_state(0)
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    if name in ("m.json", "m.yaml"):
        path.write_text(json.dumps(SHAPES))
    elif name == "m.safetensors":
        safetensors.numpy.save_file({key: np.asarray(value) for key, value in state.items()}, path)
    else:
        halves = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
        halves["tied"] = halves["head.weight"]
        torch.save(halves if name == "m.pt" else {"epoch": 3, "state_dict": halves}, path)
    model = Model.load(path)
    assert model.drawn == (name in ("m.json", "m.yaml"))
    assert {value.dtype.name for value in model.values.values()} == {"float32"}
    assert (model.name, model.parameters, len(model.layout.tensors)) == ("m", 2945, 4)
    if name in ("m.yaml", "m.pth"):
        return  # read as m.json and m.pt are
    raw, row = compare(model, 3, choose(["smallest"]), seconds=0)
    assert raw.up_nbytes == 4 * 2945
    assert row.problem is None
    assert row.up_nbytes is not None


def test_shapes_alone_are_given_the_same_values_each_time(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(SHAPES))
    first, second = Model.load(tmp_path / "m.json"), Model.load(tmp_path / "m.json")
    for name, values in first.values.items():
        np.testing.assert_array_equal(values, second.values[name])
    assert 0.009 < float(np.std(first.values["enc.conv.weight"])) < 0.011


@pytest.mark.parametrize(
    ("largest", "bound"), [(0.3, 0.5), (0.5, 0.5), (1.0, 1.0), (1.5, 2.0), (5000.0, 8192.0), (0.0, 1.0)]
)
def test_the_bound_is_fitted(largest: float, bound: float) -> None:
    assert model_of({"w": np.array([largest, 0], np.float32)}).bound == bound


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    for value in (np.inf, -np.inf, np.nan):
        np.savez(tmp_path / "m.npz", good=np.ones(3), bad=np.array([1, value]))
        with pytest.raises(RangeError, match="tensor 'bad' has NaN or infinity"):
            Model.load(tmp_path / "m.npz")
    result = run(tmp_path, "m.npz")
    assert result.returncode == 1
    assert "m: tensor 'bad' has NaN or infinity; is it of a training that works?" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"")
    (tmp_path / "m.json").write_text("[3]")
    np.savez(tmp_path / "m.npz", steps=np.array([3]))
    for name, kind in (("m.bin", FormatError), ("m.json", FormatError), ("m.npz", LayoutError), ("no.pt", FormatError)):
        with pytest.raises(kind, match=name):
            Model.load(tmp_path / name)


def test_wrong_options(tmp_path: Path, small: Model) -> None:
    with pytest.raises(ConfigError, match="--only names 'sael'; there are tenseal, seal, "):
        choose(["flashe-16", "sael"])
    with pytest.raises(ConfigError, match="--sites is 1; use 2 to 10000"):
        compare(small, 1, choose([]))
    result = run(tmp_path, "m.npz", "--only", "sael")
    assert result.returncode == 2
    assert "--only names 'sael'" in result.stderr


def test_what_is_no_benchmark_is_said(tmp_path: Path) -> None:
    result = run(tmp_path, "repotr")
    assert result.returncode == 2
    assert "no file 'repotr', and no benchmark: those are clara, peers, growth, shards, report" in result.stderr


def test_more_values_than_there_is_memory_for(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"w": [1000000, 1000000]}')
    with pytest.raises(ConfigError, match=r"m takes .* of memory, and .* are free"):
        Model.load(tmp_path / "m.json")


def test_a_place_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones(3))
    result = run(tmp_path, "m.npz", "--out", "m.npz")
    assert result.returncode == 1
    assert "cannot make the folder of 'm.npz/m.json'" in result.stderr
    assert "measure" not in result.stderr


def test_results_are_kept_though_nobody_reads_the_table(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones(3))
    command = " ".join([*COMMAND, "m.npz", "--only", "flashe-16"])
    subprocess.run(["sh", "-c", f"{command} | head -1"], cwd=tmp_path, check=True, timeout=600, capture_output=True)
    assert (tmp_path / "bench" / "m.json").exists()


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    rows = [CostRow("raw", "raw float32", "numpy", "none", 8, 8, [0.1], [0.1], [0.1])]
    model = model_of({"w": np.ones(2)})
    files = Files.of(Path("m.npz"), tmp_path / "new")
    files.save(model, 3, rows, ["secagg", "bench", "m.npz"])
    assert files == (tmp_path / "new" / "m.json", tmp_path / "new" / "m.png")
    assert Files.of(Path("m.npz"), tmp_path / "new") == files
    with pytest.raises(ConfigError, match="m.json exists, and is no result of a model called other"):
        Files.of(Path("other.npz"), files.results)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match="x.json exists"):
        Files.of(Path("m.npz"), tmp_path / "x.json")
    files.results.unlink()
    with pytest.raises(ConfigError, match="m.png exists"):
        Files.of(Path("m.npz"), tmp_path / "new")


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, small: Model) -> None:
    monkeypatch.setitem(sys.modules, "seal", None)
    rows = compare(small, 3, choose(["seal", "flashe-16"]))
    assert [row.setting for row in rows] == ["raw", "seal", "flashe-16"]
    assert str(rows[1].problem).startswith("backend 'seal' needs the library seal: pip install 'secagg[seal]'")
    assert rows[1].up_nbytes is None
    assert rows[2].problem is None
    data = {"model": small.facts(), "sites": 3, "rows": [row.to_dict() for row in rows]}
    assert size_chart("m", Results("model", "secagg bench m.npz", data)).png().startswith(b"\x89PNG")


def test_what_cannot_be_is_told_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    large = model_of({"w": np.array([5000, 0.1], np.float32)})
    _, row = compare(large, 1000, choose(["tenseal-sums"]))
    assert "max_clients" in str(row.problem)
    monkeypatch.setattr(bench, "available", lambda: 100)
    _, row = compare(large, 3, choose(["flashe-16"]))
    assert row.problem is not None
    assert row.problem.startswith("needs about")
    assert row.problem.endswith("of memory, and 100 bytes are free")


def test_a_model_of_zeros() -> None:
    _, *rows = compare(model_of({"w": np.zeros(100, np.float32)}), 3, choose(["tenseal-sums", "smallest"]), seconds=0)
    assert [(row.problem, row.bits) for row in rows] == [(None, None), (None, None)]


def test_a_large_model_is_estimated_and_measured_once(monkeypatch: pytest.MonkeyPatch, small: Model) -> None:
    assert not is_long(small)
    monkeypatch.setattr(bench, "_LARGE", 2944)
    assert is_long(small)
    settings = choose(["flashe-16"])
    assert 0 < expected_seconds(small, 3, settings) < 60
    _, row = compare(small, 3, settings)
    assert (len(row.encrypt_seconds), len(row.add_seconds), len(row.decrypt_seconds)) == (2, 2, 1)


def test_a_mean_that_is_beyond_its_bound_is_an_error(monkeypatch: pytest.MonkeyPatch, small: Model) -> None:
    monkeypatch.setattr(bench, "_promised", lambda model, config: 0.0)
    with pytest.raises(SecAggError, match="flashe-11: a mean is off by .*is promised; report it"):
        compare(small, 3, choose(["flashe-11"]))


def _slow_job(folder: Path) -> Path:
    """A round that takes seconds."""
    model = model_of({"w": np.ones(4_000_000, np.float32)})
    np.savez(folder / "model.npz", **{"0": model.values["w"]})
    job = folder / "job"
    job.mkdir()
    write_job(job, SETTINGS["tenseal"].config(3), model.layout, folder / "model.npz", 0.0)
    return job


def _wait_for(condition: Any) -> Any:
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_a_side_that_is_killed(tmp_path: Path) -> None:
    job = _slow_job(tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "secagg.bench.sides", str(job)])
    sides = _wait_for(
        lambda: [child for child in psutil.Process(process.pid).children() if (job / "server.key").exists()]
    )
    max(sides, key=lambda side: side.cpu_times().user).kill()
    assert process.wait(60) == 0
    assert not any(side.is_running() for side in sides)
    assert read_figures(job) == {"problem": "the system has killed the site's process: is there too little memory?"}


def test_a_side_that_fails(tmp_path: Path) -> None:
    job = _slow_job(tmp_path)
    (tmp_path / "model.npz").unlink()
    subprocess.run([sys.executable, "-m", "secagg.bench.sides", str(job)], check=True)
    figures = read_figures(job)
    assert figures is not None
    assert figures["problem"].startswith("FileNotFoundError")


def test_stopped_by_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"w": [4000000]}')
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [*COMMAND, "m.json", "--only", "tenseal"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
    )
    command = psutil.Process(process.pid)
    # The measurement and a raw, or encrypted, side of it.
    children = _wait_for(lambda: found if len(found := command.children(recursive=True)) >= 3 else None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith(b"secagg: stopped\n")
    assert _wait_for(
        lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bench", "m.json", "temporary"]


def test_help_shows_examples_and_how_plan_differs(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    shown = run(tmp_path, "m.json", "--help")
    assert shown.returncode == 0
    assert "secagg bench my_model.pt\n" in shown.stdout
    assert "`secagg plan` estimates from a few blocks" in shown.stdout
