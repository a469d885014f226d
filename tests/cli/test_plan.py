"""`secagg plan`: sizes that are exact, errors that are real, and a configuration that works."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from provisioned import Secagg
from small_model import SHAPES, random_state

import secagg as library
from secagg.cli.plan_report import scheme_words

#: Sizes up and down, expansion and error of a row of the table, and the seconds behind them.
NUMBERS = re.compile(r"([\d.]+) +([\d.]+) +([\d.]+) +<?([\d.]+)% +[\d.]+ [mµ]?s +[\d.]+ [mµ]?s$")


def test_plan_writes_a_config_that_works(secagg: Secagg, shapes: Path, tmp_path: Path) -> None:
    update = random_state(1, 0.01)
    update["enc.conv.bias"] = update["enc.conv.bias"] / 1000
    torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in update.items()}, tmp_path / "u.pt")
    arguments = ("plan", shapes.name, "--sites", 3, "--updates", "u.pt")
    result = secagg(*arguments, "--out", "federation.yaml")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "federation.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# made by: secagg plan {shapes.name} --sites 3 --updates u.pt\n")
    aggregation = text[text.index("aggregation:") :]
    assert aggregation == "aggregation:\n  min_clients: 3\n  max_clients: 3\n  precision: auto\n"
    config = library.Config.load(tmp_path / "federation.yaml")

    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert max(map(len, text.splitlines())) <= 122
    first = next(number for number, line in enumerate(lines) if line.startswith("recommended: "))
    assert max(map(len, lines[:first])) <= 80  # the table and what explains it
    rows = [line for line in lines if NUMBERS.search(line)]
    numbers = [[float(number) for number in NUMBERS.search(row).groups()] for row in rows]  # type: ignore[union-attr]
    assert len(rows) == 12
    (marked,) = [row for row in rows if row.startswith(" ▸")]
    assert f": {config.lib}, {config.params.scheme}, 8 bits: the smallest exact one" in lines[first]
    assert config.params.to_dict()["value_bits"] == 8  # all of it is one block at 6 and at 8 bits
    up, down, _, error = numbers[rows.index(marked)]
    assert error == 0.033
    assert up == min(row[0] for row, line in zip(numbers, rows, strict=True) if "CKKS" not in line)
    assert f"# {lines[first]}\n" in text
    assert f"# trust: {library.available_backends()[config.lib].trust}\n" in text
    assert "there is no number to guess" in result.stdout

    table = lines.index("the sample, rounded as FLASHE, 8 bits rounds it:")
    shown = {line.split()[0]: line.split() for line in lines[table + 1 :] if line}
    assert {name for name in shown if name in SHAPES} == set(SHAPES)
    assert shown["overall"][1] == "2,945"
    assert "of no tensor more than 1 %" in result.stdout

    keys = library.generate_keys(config)
    sites = [library.Client(config, keys.client, name) for name in ("a", "b", "c")]
    calibrations = library.Aggregator(config, keys.server, kind="calibration")
    for site in sites:
        calibrations.add(site.calibrate(update, weight=40))
    scales = calibrations.finish()
    aggregator = library.Aggregator(config, keys.server)
    for site in sites:
        sent = site.encrypt(update, weight=40, calibration=scales)
        aggregator.add(sent)
        # Names of one letter instead of site-1, to two decimals.
        assert abs((sent.nbytes + site.calibrate(update).nbytes) / 1e3 - up) < 0.02
    aggregate = aggregator.finish()
    assert abs((aggregate.nbytes + scales.nbytes) / 1e3 - down) < 0.05
    mean = sites[0].decrypt(aggregate, like=update)
    errors = mean["head.weight"].astype(np.float64) - update["head.weight"]
    assert np.square(errors).sum() <= 5e-5 * np.square(update["head.weight"].astype(np.float64)).sum()

    again = secagg(*arguments, "--out", "federation.yaml")
    assert again.returncode == 2
    assert "federation.yaml exists; a configuration is never overwritten" in again.stderr
    assert "measure" not in again.stderr
    assert (tmp_path / "federation.yaml").read_text(encoding="utf-8") == text


def test_a_sample_that_loses_much_is_told(secagg: Secagg, tmp_path: Path) -> None:
    """Few large values among many small ones: those of a tensor in two dimensions have no lanes of their own."""
    random = np.random.default_rng(1)
    update = {
        "head.weight": random.uniform(-0.01, 0.01, (300, 400)),
        "conv.weight": random.uniform(-1e-5, 1e-5, (8, 8, 3)),
        "bias": random.uniform(-1, 1, 400) * 10.0 ** -np.arange(400) / 100,
    }
    update["head.weight"][0, 0] = 1.0
    np.savez(tmp_path / "u.npz", **update)
    result = secagg("plan", "u.npz", "--sites", 3, "--updates", "u.npz")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "recommended: flashe, FLASHE, 6 bits: the smallest exact one; each round leaves 0.55 % of" in result.stdout
    table = [line.split() for line in lines[lines.index("the sample, rounded as FLASHE, 6 bits rounds it:") :]]
    shown = {cells[0]: float(cells[-3].removeprefix("<")) for cells in table[2:6]}
    assert list(shown) == ["head.weight", "conv.weight", "bias", "overall"]
    assert shown["head.weight"] > 70
    assert shown["bias"] <= 0.01  # it has several lanes
    assert re.search(r"of 1 of 3 tensors more than 1 %, of 'head.weight' \d\d %\n", result.stdout)
    assert re.search(r"sent later, by error feedback; value_bits: \d+ in he.config leaves less, where", result.stdout)


def test_plan_without_a_sample(secagg: Secagg, shapes: Path, tmp_path: Path) -> None:
    result = secagg("plan", shapes, "--sites", 2)
    assert result.returncode == 0, result.stderr
    assert "max_abs is" not in result.stdout
    assert "the sample" not in result.stdout
    assert "add --out federation.yaml" in result.stdout
    assert "of two sites each can compute the other's update" in result.stdout
    assert "warning" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [shapes.name]


def test_plan_help_shows_examples(secagg: Secagg) -> None:
    shown = secagg("plan", "--help")
    assert shown.returncode == 0
    assert "secagg plan model.pt --sites 3 --out federation.yaml" in shown.stdout
    assert "conv.weight: [16, 1, 3, 3, 3]" in shown.stdout
    assert "max-weight" not in shown.stdout
    assert (
        "unrecognized arguments: --max-weight 40" in secagg("plan", "model.pt", "--sites", 3, "--max-weight", 40).stderr
    )


@pytest.mark.parametrize("preset", ["clara", "exact", "smallest"])
def test_who_publishes_ckks_models_is_warned(preset: str) -> None:
    words = scheme_words(library.Config.from_dict({"he": {"preset": preset}}))
    if preset == "clara":
        assert words[0] == "CKKS: no value may be beyond max_abs, 8, and no weight beyond max_weight, 1: set them"
        assert "a mean that leaves the sites leaks about the key" in words[1]
    else:
        assert words == ["sites measure in each round how large values are: there is no number to guess"]


def test_a_library_that_is_not_installed(shapes: Path) -> None:
    command = ["plan", str(shapes), "--sites", "3"]
    code = f"import sys; sys.modules['seal'] = None; from secagg.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    without = [line for line in result.stdout.splitlines() if line.endswith("[1]")]
    assert {line.split()[0] for line in without} == {"seal"}
    assert len(without) == 5
    assert all("–" in line for line in without)
    assert not any(line.startswith("▸") for line in without)
    assert "[1] backend 'seal' needs the library seal: pip install 'secagg[seal]'" in result.stdout


class Other:
    """What a checkpoint must not make on loading."""


def write_files(folder: Path) -> None:
    """Models and updates with one fault each."""
    (folder / "good.yaml").write_text("w: [3]\n")
    (folder / "empty.yaml").write_text("")
    (folder / "list.json").write_text("[[3, 3]]")
    (folder / "text.yaml").write_text("w: three")
    (folder / "negative.yaml").write_text("w: [3, -1]")
    (folder / "bool.yaml").write_text("w: [true]")
    (folder / "dtype.yaml").write_text("w: {shape: [3], dtype: complex64}")
    (folder / "dtypes.yaml").write_text("w: {shape: [3], dtype: [float32]}")
    (folder / "key.yaml").write_text("w: {shape: [3], type: float32}")
    (folder / "number.yaml").write_text("3: [3]")
    (folder / "twice.yaml").write_text("w: [3]\nw: [4]")
    (folder / "huge.yaml").write_text("w: [1099511627776, 2]")
    (folder / "broken.yaml").write_text("w: [3")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00w")
    (folder / "integers.yaml").write_text("steps: {shape: [3], dtype: int64}")
    (folder / "hollow.yaml").write_text("w: [0]")
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 something else")
    (folder / "none.npz").write_bytes(b"")
    with (folder / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(folder / "objects.npz", w=np.array([None]))
    (folder / "broken.pt").write_bytes(b"not a checkpoint")
    (folder / "none.pt").write_bytes(b"")
    with (folder / "pickle.pth").open("wb") as stream:
        pickle.dump({"w": Other()}, stream)
    torch.save({"w": Other()}, folder / "objects.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save({"w": "text"}, folder / "string.pt")
    torch.save({"steps": torch.tensor(3)}, folder / "integers.pt")
    torch.save({"net": {"w": torch.ones(3)}, "model": {"w": torch.ones(3)}}, folder / "two.pt")
    (folder / "broken.safetensors").write_bytes(safetensors.numpy.save({"w": np.ones(3)})[:-1])
    (folder / "none.safetensors").write_bytes(b"")
    (folder / "model.bin").write_bytes(b"")
    (folder / "folder.npz").mkdir()
    np.savez(folder / "u-good.npz", w=np.ones(3))
    np.savez(folder / "u-nan.npz", w=np.array([1, np.nan, 0]))
    np.savez(folder / "u-inf.npz", w=np.array([1, -np.inf, 0]))
    np.savez(folder / "u-zero.npz", w=np.zeros(3))
    np.savez(folder / "u-other.npz", v=np.ones(3))
    np.savez(folder / "u-more.npz", w=np.ones(3), v=np.ones(2))
    np.savez(folder / "u-shape.npz", w=np.ones((3, 1)))
    np.savez(folder / "u-large.npz", w=np.full(3, 1.5e308))


FAULTS = [
    (("missing.yaml",), 7, "cannot read the YAML file 'missing.yaml': No such file"),
    (("missing.pt",), 7, "cannot read 'missing.pt': No such file"),
    (("folder.npz",), 7, "cannot read 'folder.npz'"),
    (("model.bin",), 7, "must end in .yaml, .yml, .json, .npz, .safetensors, .pt, .pth"),
    (("empty.yaml",), 7, "write names and shapes"),
    (("list.json",), 7, "write names and shapes"),
    (("text.yaml",), 7, "tensor 'w' has the shape 'three'"),
    (("negative.yaml",), 7, "tensor 'w' has the shape [3, -1]"),
    (("bool.yaml",), 7, "tensor 'w' has the shape [True]"),
    (("dtype.yaml",), 7, "tensor 'w' has the dtype 'complex64'"),
    (("dtypes.yaml",), 7, "tensor 'w' has the dtype ['float32']"),
    (("key.yaml",), 7, "write a name and its shape"),
    (("number.yaml",), 7, "write a name and its shape"),
    (("twice.yaml",), 7, "gives the key 'w' twice in one block"),
    (("huge.yaml",), 7, "more than 1099511627776 values"),
    (("broken.yaml",), 7, "is not YAML"),
    (("binary.yaml",), 7, "is not YAML"),
    (("integers.yaml",), 1, "has no float tensor"),
    (("hollow.yaml",), 1, "has no float tensor"),
    (("broken.npz",), 7, "broken.npz is no .npz of plain arrays"),
    (("none.npz",), 7, "none.npz is no .npz of plain arrays"),
    (("one.npz",), 7, "one array without a name"),
    (("objects.npz",), 7, "objects.npz is no .npz of plain arrays"),
    (("broken.pt",), 7, "Save a state dict: torch.save(model.state_dict(), file)"),
    (("none.pt",), 7, "Save a state dict"),
    (("pickle.pth",), 7, "Save a state dict"),
    (("objects.pt",), 7, "Save a state dict"),
    (("tensor.pt",), 1, "tensor.pt holds a Tensor; a state dict is needed"),
    (("string.pt",), 1, "string.pt: 'w' is a str"),
    (("string.pt",), 1, "must hold a state dict alone"),
    (("integers.pt",), 1, "integers.pt: there is no float tensor to average"),
    (("two.pt",), 1, "two.pt holds 'net' and 'model', each of which may be the model"),
    (("broken.safetensors",), 7, "broken.safetensors is no safetensors file, or damaged"),
    (("none.safetensors",), 7, "none.safetensors is no safetensors file, or damaged"),
    (("missing.safetensors",), 7, "cannot read 'missing.safetensors': No such file"),
    (("good.yaml", "--out", "nowhere/federation.yaml"), 2, "'nowhere/federation.yaml': there is no folder 'nowhere'"),
    (("good.yaml", "--out", "folder.npz"), 2, "folder.npz exists"),
    (("good.yaml", "--updates", "good.yaml"), 7, "good.yaml is a list of shapes"),
    (("good.yaml", "--updates", "missing.npz"), 7, "cannot read 'missing.npz'"),
    (("good.yaml", "--updates", "u-good.npz", "u-nan.npz"), 1, "u-nan.npz: tensor 'w' has NaN or infinity"),
    (("good.yaml", "--updates", "u-inf.npz"), 1, "u-inf.npz: tensor 'w' has NaN or infinity"),
    (("good.yaml", "--updates", "u-zero.npz"), 1, "all values of u-zero.npz are zero"),
    (("good.yaml", "--updates", "u-other.npz"), 1, "u-other.npz: a sample update has the float tensors of the model"),
    (("good.yaml", "--updates", "u-more.npz"), 1, "the float tensor 'v' is only in u-more.npz"),
    (("good.yaml", "--updates", "u-shape.npz"), 1, "tensor 'w' has shape [3, 1], the model [3]"),
    (("good.yaml", "--updates", "u-large.npz"), 1, "tensor 'w' has a value of 1.5e+308, beyond 1.76e+13; is it an"),
]


def test_faults_are_typed_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All in this process: starting one takes longer than finding the fault."""
    from secagg.cli import main

    write_files(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    for arguments, code, message in FAULTS:
        assert main(["plan", "--sites", "3", *arguments]) == code, (arguments, capsys.readouterr().err)
        assert message in capsys.readouterr().err, arguments
    for sites in ("1", "-3", "10001"):
        assert main(["plan", "good.yaml", "--sites", sites]) == 2
        assert f"--sites is {sites}; use 2 to 10000" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
