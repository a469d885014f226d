"""`secagg plan`: sizes that are exact, errors that are real, and a configuration that works."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from provisioned import Secagg

import secagg as library
from secagg.cli.plan_report import publish_words
from secagg.errors import ConfigError
from secagg.scheme.aggregation import Aggregation
from secagg.setup.bounds import needed_bits, read_sample, suggest_max_abs
from secagg.setup.choices import Choice, choices, cost, header, recommend
from secagg.setup.model_file import read_layout
from secagg.setup.speed import measure
from secagg.wire.layout import Layout

#: Sizes up and down, expansion and bits of a row of the table, and the seconds behind them.
NUMBERS = re.compile(r"([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +[\d.]+ m?s +[\d.]+ m?s ")

SHAPES = {"enc.conv.weight": [16, 4, 3, 3, 3], "enc.conv.bias": [16], "head.weight": [30, 40], "scale": []}
VALUES = 16 * 4 * 27 + 16 + 1200 + 1


def random_state(seed: int, largest: float = 1.0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.uniform(-largest, largest, shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.yaml"
    path.write_text(yaml.safe_dump(SHAPES), encoding="utf-8")
    return path


@pytest.fixture
def layout(shapes: Path) -> Layout:
    return read_layout(shapes)


AGGREGATION = Aggregation(max_clients=3, max_abs=1.0, max_weight=10)
CHOICES = {f"{choice.lib} {choice.name}": choice for choice in choices(AGGREGATION, 14.0)}


def test_every_library_has_choices() -> None:
    assert {name.partition(",")[0] for name in CHOICES if "CKKS" not in name} == {
        "seal BGV",
        "pyfhel BGV",
        "flashe FLASHE",
    }
    assert {choice.lib for name, choice in CHOICES.items() if "CKKS" in name} == {"tenseal", "seal", "pyfhel"}
    assert len(CHOICES) == 10


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_sizes_are_exact_and_errors_real(choice: Choice, layout: Layout) -> None:
    plan = cost(choice, layout, AGGREGATION)
    keys = library.generate_keys(plan.config)
    aggregator = library.Aggregator(plan.config, keys.server)
    states = [random_state(seed) for seed in range(3)]
    for number, state in enumerate(states, 1):
        site = library.Client(plan.config, keys.client, f"site-{number}")
        update = site.encrypt(state, weight=10)
        assert update.nbytes == plan.update_nbytes
        aggregator.add(update)
    aggregate = aggregator.finish()
    assert aggregate.nbytes == plan.aggregate_nbytes
    assert plan.expansion == plan.update_nbytes / (4 * VALUES)
    mean = site.decrypt(aggregate)
    allowed = 2.0**-plan.precision + 2.0**-23  # and the rounding to float32
    for name in SHAPES:
        exact = sum(state[name].astype(np.float64) for state in states) / 3
        assert np.abs(mean[name] - exact).max() <= allowed
    # What is shown is no more than eight times what is there, where a step of quantisation is the error.
    if plan.precision < 16:
        assert max(np.abs(mean[n] - sum(s[n].astype(np.float64) for s in states) / 3).max() for n in SHAPES) > (
            2.0**-plan.precision / 8
        )


@pytest.mark.parametrize("max_weight", [1.0, 1e6])
@pytest.mark.parametrize("max_abs", [1.0, {"default": 1.0, "head.*": 0.001}])
def test_measuring_takes_any_bounds_and_number_of_sites(layout: Layout, max_abs: Any, max_weight: float) -> None:
    aggregation = Aggregation(max_clients=50, max_abs=max_abs, max_weight=max_weight)
    for choice in choices(aggregation, 14.0):
        if choice.name in ("FLASHE, 11 bits", "BGV, 16 bits", "CKKS for sums only"):
            config = cost(choice, layout, aggregation).config
            seconds = measure(config, header("aggregate", 50, config, layout))
            assert all(0 < value < math.inf for value in seconds)


@pytest.mark.parametrize("needed", [8.0, 14.0, 20.0, 24.0])
@pytest.mark.parametrize("max_abs", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("sites", [2, 30, 1000])
def test_ckks_for_sums_has_the_bits_and_is_smaller_than_claras(
    layout: Layout, sites: int, max_abs: float, needed: float
) -> None:
    aggregation = Aggregation(max_clients=sites, max_abs=max_abs)
    found = {
        (choice.lib, choice.name): cost(choice, layout, aggregation)
        for choice in choices(aggregation, needed)
        if choice.name == "CKKS for sums only"
    }
    assert len(found) == 3
    for (lib, _), plan in found.items():
        assert plan.precision >= max(needed, 16)
        params = plan.config.params.to_dict()
        assert params["seeded"] is (lib != "pyfhel")
        assert params["complex_slots"] is True
    assert found["seal", "CKKS for sums only"].config.params.block_nbytes < 102_400  # bytes of a block of Clara's


def test_the_smallest_that_fits_is_recommended(layout: Layout) -> None:
    costs = [cost(choice, layout, AGGREGATION) for choice in CHOICES.values()]
    sizes = {id(item): item.update_nbytes + item.aggregate_nbytes for item in costs}
    for needed in (5.0, 9.5, 14.0, 17.0):
        best, why = recommend(costs, needed)
        assert best.precision >= needed
        assert all(item.precision < needed for item in costs if sizes[id(item)] < sizes[id(best)])
        assert "smallest" in why
    best, why = recommend(costs, 60.0)
    assert best.precision == max(item.precision for item in costs)
    assert "none has the 60.0 bits" in why


def test_a_choice_that_cannot_hold_the_sum_says_so(layout: Layout) -> None:
    with pytest.raises(ConfigError, match="lower scale_bits, max_abs or max_clients"):
        cost(CHOICES["tenseal CKKS, Clara's params"], layout, Aggregation(max_clients=3, max_abs=1e30))


@pytest.mark.parametrize(
    ("largest", "bound"), [(1.0, 2.0), (0.00803, 0.017), (0.5001, 1.1), (4.95, 9.9), (6e-7, 1.2e-6)]
)
def test_one_number_for_all(largest: float, bound: float) -> None:
    assert suggest_max_abs({"a.w": largest, "a.b": largest / 16, "zeros": 0.0}) == bound


def test_patterns_where_tensors_differ() -> None:
    largest = {
        "a.conv.w": 1.0,
        "a.conv.b": 0.5,
        "a.norm.w": 1e-3,  # a module of its own size
        "a.norm.b": 4e-3,
        "head.w": 0.9,  # a module of two sizes
        "head.b": 1e-4,
        "idle.w": 0.0,
        "odd[0].w": 1e-5,  # a name that is no pattern
    }
    found = suggest_max_abs(largest)
    assert found == {"default": 2.0, "a.norm.*": 8e-3, "head.b": 2e-4, "odd[[]0].*": 2e-5}
    aggregation = Aggregation(max_abs=found)
    aggregation.check_patterns(largest)
    assert aggregation.bound("odd[0].w") == 2e-5
    assert aggregation.bound("a.norm.new") == 8e-3


names = st.lists(st.sampled_from(["a", "b", "a*", "w[0]", "é", "default"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(names, st.floats(1e-30, 1e30) | st.just(0.0), min_size=1))
def test_every_tensor_gets_one_number_that_suits_it(largest: dict[str, float]) -> None:
    if not any(largest.values()):
        largest["a"] = 1.0
    aggregation = Aggregation(max_abs=suggest_max_abs(largest))
    aggregation.check_patterns(largest)
    for name, value in largest.items():
        bound = Fraction(aggregation.bound(name))
        if value:  # with headroom, at most 16 times too large, and up to a tenth for the two digits
            assert 2 * Fraction(value) * Fraction(1 - 2**-50) <= bound <= Fraction(352, 10) * Fraction(value)


def test_needed_bits(layout: Layout, tmp_path: Path) -> None:
    """A value of ±v everywhere lies log2(max_abs / v) below max_abs; three bits more keep the error an eighth of it."""
    for number, value in enumerate((0.25, -0.125)):
        state = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
        np.savez(tmp_path / f"{number}.npz", **state, step=np.int64(3))
    one = read_sample([tmp_path / "0.npz"], layout)
    assert needed_bits(one, layout, Aggregation(max_abs=1.0)) == pytest.approx(2 + 3)
    both = read_sample([tmp_path / "0.npz", tmp_path / "1.npz"], layout)
    assert both.largest == dict.fromkeys(SHAPES, 0.25)
    rms = math.sqrt((0.25**2 + 0.125**2) / 2)
    assert needed_bits(both, layout, Aggregation(max_abs=1.0)) == pytest.approx(math.log2(1 / rms) + 3)
    patterns = {"default": 1.0, "head.weight": 0.25}
    share = 1200 / VALUES
    expected = math.log2(math.sqrt(share * 0.25**2 + (1 - share)) / 0.25) + 3
    assert needed_bits(one, layout, Aggregation(max_abs=patterns)) == pytest.approx(expected)
    assert needed_bits(None, layout, Aggregation()) == 14


def test_a_model_may_come_in_any_form(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    state["steps"] = torch.tensor(3)
    (tmp_path / "m.json").write_text(
        json.dumps(
            {name: {"shape": shape, "dtype": "bfloat16"} for name, shape in SHAPES.items()}
            | {"steps": {"shape": [], "dtype": "int64"}}
        )
    )
    torch.save(state, tmp_path / "m.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.pth")
    torch.save({"model": state, "optimizer": {"lr": 0.1}}, tmp_path / "other.pt")
    read = [read_layout(tmp_path / name) for name in ("m.json", "m.pt", "lightning.pth", "other.pt")]
    assert read[0].size("encrypted") == VALUES
    assert read[0].size("local") == 1
    assert read == read[:1] * 4
    np.savez(tmp_path / "m.npz", **random_state(0))
    assert read_layout(tmp_path / "m.npz").to_json() == [[n, "float32", s, "encrypted"] for n, s in SHAPES.items()]


def test_plan_with_a_sample_writes_a_config_that_works(secagg: Secagg, shapes: Path, tmp_path: Path) -> None:
    update = random_state(1, 0.01)
    update["enc.conv.bias"] = update["enc.conv.bias"] / 1000
    torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in update.items()}, tmp_path / "u.pt")
    arguments = ("plan", shapes.name, "--sites", 3, "--max-weight", 40, "--updates", "u.pt")
    result = secagg(*arguments, "--out", "federation.yaml")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "federation.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# made by: secagg plan {shapes.name} --sites 3 --updates u.pt --max-weight 40\n")
    config = library.Config.load(tmp_path / "federation.yaml")
    assert config.aggregation.max_clients == 3
    assert config.aggregation.max_weight == 40
    assert config.aggregation.max_abs == {"default": 0.02, "enc.conv.bias": pytest.approx(2e-5, rel=0.2)}

    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    rows = [line for line in lines if " shared key" in line]
    numbers = [[float(number) for number in NUMBERS.search(row).groups()] for row in rows]  # type: ignore[union-attr]
    assert len(rows) == 10
    marked = [row for row in rows if row.startswith(" ▸")]
    assert len(marked) == 1
    recommended = next(line for line in lines if line.startswith("recommended: "))
    assert f": {config.lib}, {config.params.scheme}" in recommended
    found = re.search(r"the smallest whose error fits: ([\d.]+) bits of precision, ([\d.]+) are needed$", recommended)
    assert found is not None
    bits, needed = map(float, found.groups())
    up = numbers[rows.index(marked[0])][0]
    assert numbers[rows.index(marked[0])][3] == bits >= needed
    assert up == min(row[0] for row in numbers if row[3] >= needed)
    assert f"# {recommended}\n" in text
    assert f"# trust: {library.available_backends()[config.lib].trust}\n" in text

    keys = library.generate_keys(config)
    assert config.aggregation.min_clients == 3
    sites = [library.Client(config, keys.client, name) for name in ("a", "b", "c")]
    aggregator = library.Aggregator(config, keys.server)
    updates = [site.encrypt(update, weight=40) for site in sites]
    for sent in updates:
        aggregator.add(sent)
        assert abs(sent.nbytes / 1e3 - up) < 0.01 + 5e-3  # names of one letter instead of site-1, to three decimals
    mean = sites[0].decrypt(aggregator.finish(), like=update)
    assert np.abs(mean["head.weight"] - update["head.weight"]).max() <= 0.02 / 2 ** (bits - 0.1)

    again = secagg(*arguments, "--out", "federation.yaml")
    assert again.returncode == 2
    assert "federation.yaml exists; a configuration is never overwritten" in again.stderr
    assert "measure" not in again.stderr
    assert (tmp_path / "federation.yaml").read_text(encoding="utf-8") == text


def test_plan_without_a_sample(secagg: Secagg, shapes: Path, tmp_path: Path) -> None:
    result = secagg("plan", shapes, "--sites", 2)
    assert result.returncode == 0, result.stderr
    assert "max_abs is the default, 8" in result.stdout
    assert "give a sample update as --updates" in result.stdout
    assert "add --out federation.yaml" in result.stdout
    assert "of two sites each can compute the other's update" in result.stdout
    assert "warning" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [shapes.name]


@pytest.mark.parametrize(("preset", "count"), [("clara", 1), ("exact", 0), ("smallest", 0)])
def test_who_publishes_ckks_models_is_warned(preset: str, count: int) -> None:
    config = library.Config.from_dict({"he": {"preset": preset}})
    assert [line.partition(" leaks ")[0] for line in publish_words(config)] == [
        "CKKS: a mean that leaves the sites"
    ] * count


def test_a_library_that_is_not_installed(shapes: Path) -> None:
    command = ["plan", str(shapes), "--sites", "3"]
    code = f"import sys; sys.modules['seal'] = None; from secagg.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if " shared key" in line]
    without = [line for line in rows if "[1]" in line]
    assert {line.split()[0] for line in without} == {"seal"}
    assert len(without) == 4
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
    (("missing.yaml",), 7, "cannot read 'missing.yaml': No such file"),
    (("missing.pt",), 7, "cannot read 'missing.pt': No such file"),
    (("folder.npz",), 7, "cannot read 'folder.npz'"),
    (("model.bin",), 7, "must end in .yaml, .yml, .json, .npz, .pt, .pth"),
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
    (("integers.pt",), 1, "has no float tensor"),
    (("good.yaml", "--max-weight", "-1"), 2, "aggregation.max_weight is -1.0"),
    (("good.yaml", "--max-weight", "nan"), 2, "aggregation.max_weight is nan"),
    (("good.yaml", "--out", "nowhere/federation.yaml"), 2, "'nowhere/federation.yaml': there is no folder 'nowhere'"),
    (("good.yaml", "--out", "folder.npz"), 2, "folder.npz exists"),
    (("good.yaml", "--updates", "good.yaml"), 7, "good.yaml is a list of shapes"),
    (("good.yaml", "--updates", "missing.npz"), 7, "cannot read 'missing.npz'"),
    (("good.yaml", "--updates", "u-good.npz", "u-nan.npz"), 1, "u-nan.npz: tensor 'w' has a value that is NaN"),
    (("good.yaml", "--updates", "u-inf.npz"), 1, "u-inf.npz: tensor 'w' has a value that is NaN"),
    (("good.yaml", "--updates", "u-zero.npz"), 1, "all values of u-zero.npz are zero"),
    (("good.yaml", "--updates", "u-other.npz"), 1, "u-other.npz: a sample update has the float tensors of the model"),
    (("good.yaml", "--updates", "u-more.npz"), 1, "the float tensor 'v' is only in u-more.npz"),
    (("good.yaml", "--updates", "u-shape.npz"), 1, "tensor 'w' has shape [3, 1], the model [3]"),
    (("good.yaml", "--updates", "u-large.npz"), 2, "aggregation.max_abs is inf"),
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
