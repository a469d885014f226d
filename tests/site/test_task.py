"""Tasks of the user's own: where they are found, what they must have, and how they are called."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError, LayoutError, RangeError, TaskError
from secagg.site.task import CheckedTask
from secagg.site.task_class import load_task, read_options
from secagg.wire.layout import Layout

TASK = """
import numpy as np

class Line:
    def __init__(self, slope, start=0.0, *, steps: int = 3) -> None:
        self.model = {"w": np.full(2, start, np.float32)}
        self.examples, self.slope, self.steps = 7, slope, steps

    def train(self, round):
        for _ in range(self.steps):
            self.model["w"] = self.model["w"] + np.float64(self.slope)

    def validate(self):
        return {"mean": self.model["w"].mean()}
"""


@pytest.fixture(autouse=True)
def own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory; what tests import from it is forgotten after them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: Path, text: str = TASK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


# Options.


def test_options() -> None:
    texts = ["part=1/3", "seed=0", "lr=1e-3", "path=/data/a=b", "deep=true", "none="]
    expected = {"part": "1/3", "seed": 0, "lr": 1e-3, "path": "/data/a=b", "deep": True, "none": None}
    assert read_options(texts) == expected
    assert read_options([]) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "'seed' has another form than NAME=VALUE"),
        (["=1"], "NAME=VALUE"),
        (["a b=1"], "NAME=VALUE"),
        (["seed=1", "seed=1"], "seed is given twice"),
        (["seed=[1]"], "is a list; give one value"),
        (["seed=!!python/name:os.system"], "is not YAML"),
        (["files=*.nii"], r"'\*.nii' is not YAML \(expected .*\): put text into quotes that YAML sees"),
    ],
)
def test_options_that_cannot_be(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_options(texts)


# Where a task is found.


def test_a_task_in_a_file(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "line_task.py", "from line_helper import *\n" + TASK)
    write(tmp_path / "folder" / "line_helper.py", "")
    for place in ("folder/line_task.py:Line", f"{tmp_path}/folder/line_task.py:Line"):
        task = load_task(place, {"slope": 0.5, "steps": 2})
        task.train(0, ignored)
        assert task.examples == 7
        assert task.state["w"].tolist() == [1.0, 1.0]
        assert task.validate() == {"mean": 1.0}


@pytest.mark.parametrize("name", ["line_module", "line_package.inner.line_module"])
def test_a_task_in_a_module_of_the_working_directory(tmp_path: Path, name: str) -> None:
    write(tmp_path / (name.replace(".", "/") + ".py"))
    assert load_task(f"{name}:Line", {"slope": 1}).examples == 7


def test_a_module_of_the_working_directory_takes_no_librarys_place(tmp_path: Path) -> None:
    write(tmp_path / "wave.py", "raise SystemExit('the wrong one')")  # the standard library has one
    with pytest.raises(ConfigError, match="has no class 'Line'"):
        load_task("wave:Line", {})
    with pytest.raises(ConfigError, match=r"cannot be imported as module 'wave', which is .*: rename the file"):
        load_task("wave.py:Line", {})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "write module:Class or file.py:Class"),
        ("module", "write module:Class or file.py:Class"),
        (":Line", "write module:Class or file.py:Class"),
        ("a..b:Line", "write module:Class or file.py:Class"),
        ("../b:Line", "write module:Class or file.py:Class"),
        ("no_such_module:Line", "no module 'no_such_module' is in .*, nor installed"),
        ("no_such.inner.module:Line", "no module 'no_such' is in"),
        ("json.no_such:Line", "no module 'json.no_such' is in"),
        ("nothing.py:Line", "there is no file .*nothing.py"),
        ("good.py:Missing", r"good.py has no class 'Missing'"),
        ("folder:Line", "folder has no class 'Line'"),
        ("good.py:np", "has no class 'np'"),
        ("good.py:", "has no class ''"),
        ("good.py:Line.train", "has no class 'Line.train'"),
        ("not-a-name.py:Line", "rename the file"),
    ],
)
def test_a_task_that_is_not_there(tmp_path: Path, place: str, message: str) -> None:
    write(tmp_path / "good.py")
    write(tmp_path / "not-a-name.py")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        load_task(place, {"slope": 1})


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such_library", ModuleNotFoundError),
        ("from json import no_such_name", ImportError),
        ("def (", SyntaxError),
        ("raise ValueError('no')", ValueError),
        ("import sys; sys.exit(0)", SystemExit),
        ("class Line:\n    def __init__(self, slope): raise OSError('no')", OSError),
        ("class Line:\n    def __init__(self, slope): import no_such_library", ModuleNotFoundError),
        ("class Line:\n    def __init__(self, slope): raise SystemExit(0)", SystemExit),
    ],
)
def test_code_that_raises(tmp_path: Path, text: str, cause: type[BaseException]) -> None:
    write(tmp_path / "raising_task.py", text)
    with pytest.raises(TaskError, match=f"raised {cause.__name__}: ") as caught:
        load_task("raising_task.py:Line", {"slope": 1})
    assert type(caught.value.__cause__) is cause


def test_an_error_of_secagg_that_a_task_raises_on_purpose(tmp_path: Path) -> None:
    write(
        tmp_path / "refusing_task.py",
        """
        from secagg.errors import ConfigError

        class Line:
            def __init__(self, slope):
                raise ConfigError(f"slope is {slope}; use 1 or more")
        """,
    )
    with pytest.raises(ConfigError, match="slope is 0; use 1 or more"):
        load_task("refusing_task.py:Line", {"slope": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing a required argument: 'slope'"),
        ({"slope": 1, "rate": 2}, "got an unexpected keyword argument 'rate'"),
    ],
)
def test_options_that_the_class_does_not_take(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path / "line_options.py")
    with pytest.raises(ConfigError) as caught:
        load_task("line_options.py:Line", options)
    assert message in str(caught.value)
    assert "it takes (slope, start=0.0, *, steps=3)" in str(caught.value)


# What a task must have.


def ignored(done: float, total: float) -> None:
    pass


class Good:
    def __init__(self, model: Any = None) -> None:
        self.model = {"w": np.zeros(3, np.float32)} if model is None else model
        self.examples: Any = 5

    def train(self, round: int) -> None:
        pass


def without(name: str) -> Callable[[], Any]:
    def make() -> Any:
        task = Good()
        delattr(task, name)
        return task

    return make


def but(**attributes: Any) -> Callable[[], Any]:
    def make() -> Any:
        task = Good()
        for name, value in attributes.items():
            setattr(task, name, value)
        return task

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without("model"), "has no attribute 'model': give it a torch.nn.Module, or a dict"),
        (but(model=3), "has 'int' as its model; a torch.nn.Module is needed"),
        (but(model=[np.zeros(3)]), "has 'list' as its model"),
        (but(model=None), "has 'NoneType' as its model"),
        (without("examples"), "has no attribute 'examples': give it its number of training examples"),
        (but(examples="many"), "has the attribute examples 'many'"),
        (but(examples=True), "has the attribute examples True"),
        (but(examples=None), "has the attribute examples None"),
        (object, "has no method 'train'"),
        (but(train=None), r"has no method 'train': train\(round\)"),
        (but(train=lambda: None), r"has train\(\): train\(round\) or train"),
        (but(train=lambda round, rounds: None), r"has train\(round, rounds\)"),
        (but(validate=3), r"has no method 'validate': validate\(\)"),
        (but(validate=lambda state: {}), r"has validate\(state\)"),
    ],
)
def test_what_a_task_lacks(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"the task own:Task {message}"):
        CheckedTask("own:Task", make())


@pytest.mark.parametrize("examples", [3, 2.5, np.int64(3), np.float32(2.5)])
def test_numbers_of_examples(examples: Any) -> None:
    assert CheckedTask("own:Task", but(examples=examples)()).examples == examples


# How a task is called.


def test_a_module_keeps_its_dtypes() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).to(torch.bfloat16)
    task = CheckedTask("own:Task", Good(network))
    state = {
        name: value.to(torch.float32) if value.is_floating_point() else value for name, value in task.state.items()
    }
    state["0.bias"] = torch.tensor([1.0, 2.0, 3.0])
    task.load(state)
    assert network[0].bias.tolist() == [1.0, 2.0, 3.0]
    assert {value.dtype for value in task.state.values()} == {torch.bfloat16, torch.int64}
    assert list(task.state) == list(network.state_dict())


def test_a_dict_keeps_its_dtypes_and_libraries_whatever_training_leaves() -> None:
    model = {
        "half": np.zeros(2, np.float16),
        "brain": torch.zeros(2, dtype=torch.bfloat16, requires_grad=True),
        "scalar": np.array(0.0, np.float32),
        "steps": np.array(0, np.int32),
    }
    own = Good(model)
    task = CheckedTask("own:Task", own)
    task.load(
        {
            "half": np.full(2, 0.1, np.float32),
            "brain": torch.full((2,), 0.1),
            "scalar": np.array(0.5, np.float32),
            "steps": np.array(4, np.int32),
        }
    )
    assert own.model is model
    assert model["half"].dtype == np.float16
    assert model["brain"].dtype == torch.bfloat16
    model["half"] = model["half"] - np.ones(2)
    model["scalar"] = model["scalar"] * 2.0
    model["steps"] = int(model["steps"]) + 1
    kinds = {"half": np.float16, "brain": torch.bfloat16, "scalar": np.float32, "steps": np.int32}
    assert {name: value.dtype for name, value in task.state.items()} == kinds
    assert float(task.state["scalar"]) == 1.0
    assert int(task.state["steps"]) == 5


def add(*tensors: Any) -> None:
    for tensor in tensors:
        tensor += 1


def test_tensors_that_others_hold_too_are_those_that_are_trained() -> None:
    network = torch.nn.Linear(2, 3)
    own = {"w": np.zeros(3)}
    leaf = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.SGD([leaf], lr=1.0)

    def descend() -> None:
        (-leaf.sum()).backward()
        optimiser.step()

    trained: list[tuple[Any, Callable[[], None]]] = [
        (network.state_dict(), lambda: add(*(parameter.data for parameter in network.parameters()))),
        (dict(own), lambda: add(own["w"])),
        ({"leaf": leaf}, descend),
    ]
    for model, train in trained:
        task = CheckedTask("own:Task", Good(model))
        task.load({name: value * 0 + 4 for name, value in task.state.items()})
        train()
        for value in task.state.values():
            assert set(np.ravel(value.tolist())) == {5.0}


def test_tensors_that_cannot_be_written_to_are_replaced() -> None:
    model: dict[str, Any] = {
        "constant": np.broadcast_to(np.float32(0), 3),
        "number": np.float32(0),
        "expanded": torch.zeros(1).expand(3),
    }
    task = CheckedTask("own:Task", Good(model))
    model["number"] = 7.0
    task.load({"constant": np.ones(3, np.float32), "number": np.array(1, np.float32), "expanded": torch.ones(3)})
    assert {name: value.tolist() for name, value in task.state.items()} == {
        "constant": [1.0] * 3,
        "number": 1.0,
        "expanded": [1.0] * 3,
    }


@pytest.mark.parametrize(
    "value",
    [
        "text",
        [[1], [1, 2]],
        None,
        np.zeros(3, complex),
        np.array([None] * 3),
        np.ma.zeros(3),
        torch.zeros(3, dtype=torch.cfloat),
    ],
)
def test_what_training_leaves_that_is_no_tensor_of_floats(value: Any) -> None:
    own = Good({"w": torch.zeros(3)} if torch.is_tensor(value) else None)
    task = CheckedTask("own:Task", own)
    own.model["w"] = value
    with pytest.raises(LayoutError, match="'w'"):
        Layout.of(task.state)


def test_a_count_that_has_become_a_fraction_is_not_cut() -> None:
    for model, value in (({"n": np.array(3)}, np.array(3.5)), ({"n": torch.tensor(3)}, torch.tensor(3.5))):
        own = Good(model)
        task = CheckedTask("own:Task", own)
        own.model["n"] = value
        assert float(task.state["n"]) == 3.5  # `GlobalModel` refuses it


@pytest.mark.parametrize("model", [None, [1.0]])
def test_a_model_that_is_one_no_more(model: Any) -> None:
    own = Good()
    task = CheckedTask("own:Task", own)
    own.model = model
    for call in (lambda: task.state, lambda: task.load({"w": np.zeros(3)})):
        with pytest.raises(ConfigError, match=f"has {type(model).__name__!r} as its model"):
            call()


@pytest.mark.parametrize("name", ["model", "examples"])
def test_a_property_that_raises(name: str) -> None:
    def fail(own: Good) -> None:
        raise ValueError("no data")

    made = Good()
    task = CheckedTask("own:Task", made)
    made.__class__ = type("Failing", (Good,), {name: property(fail)})
    with pytest.raises(TaskError, match=f"{name} of the task own:Task raised ValueError: no data") as caught:
        _ = task.state if name == "model" else task.examples
    assert type(caught.value.__cause__) is ValueError


def test_a_dict_that_training_has_changed_to_another_one() -> None:
    own = Good()
    task = CheckedTask("own:Task", own)
    own.model = {"w": np.ones(3), "extra": np.ones(1)}
    assert {name: value.dtype.name for name, value in task.state.items()} == {"w": "float32", "extra": "float64"}


def test_a_module_that_has_become_another_one() -> None:
    own = Good(torch.nn.Linear(2, 3))
    task = CheckedTask("own:Task", own)
    state, own.model = task.state, torch.nn.Linear(4, 3)
    with pytest.raises(LayoutError, match="the model of the task own:Task is another one than before"):
        task.load(state)


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError, KeyError, RangeError, SystemExit])
def test_training_and_validation_that_raise(error: type[BaseException]) -> None:
    def fail(*arguments: Any) -> Any:
        raise error("of my own")

    for task, call in ((but(train=fail)(), "train"), (but(validate=fail)(), "validate")):
        checked = CheckedTask("own:Task", task)
        with pytest.raises(
            TaskError, match=f"{call} of the task own:Task raised {error.__name__}: .*of my own"
        ) as caught:
            checked.train(0, ignored) if call == "train" else checked.validate()
        assert type(caught.value.__cause__) is error


def test_an_interruption_is_no_error_of_the_task() -> None:
    def interrupted(round: int) -> None:
        raise KeyboardInterrupt(15)

    with pytest.raises(KeyboardInterrupt):
        CheckedTask("own:Task", but(train=interrupted)()).train(0, ignored)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, {}),
        ({"dice": np.float32(0.5), "loss": torch.tensor(2.0)}, {"dice": 0.5, "loss": 2.0}),
        ({1: 1}, {"1": 1.0}),
    ],
)
def test_metrics(metrics: Any, expected: dict[str, float]) -> None:
    assert CheckedTask("own:Task", but(validate=lambda: metrics)()).validate() == expected


def test_no_metrics() -> None:
    assert CheckedTask("own:Task", Good()).validate() == {}


@pytest.mark.parametrize("metrics", [None, 0.5, [0.5], {"dice": "good"}, {"dice": None}, {"dice": np.zeros(2)}])
def test_metrics_that_are_none(metrics: Any) -> None:
    with pytest.raises(ConfigError, match="validate of the task own:Task returned .* names to numbers"):
        CheckedTask("own:Task", but(validate=lambda: metrics)()).validate()


def test_training_that_reports_how_far_it_is() -> None:
    class Reports(Good):
        def train(self, round: int, report: Callable[[float, float], None]) -> None:
            report(round, 10)

    seen: list[tuple[float, float]] = []
    CheckedTask("own:Reports", Reports()).train(3, lambda done, total: seen.append((done, total)))
    assert seen == [(3, 10)]


# A network that is wrapped at this site.


def test_a_wrapped_network_has_the_names_of_the_plain_one() -> None:
    class Task:
        def __init__(self) -> None:
            self.network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
            self.model = torch.nn.DataParallel(torch.compile(self.network, backend="eager"))
            self.examples = 1

        def train(self, round: int) -> None:
            self.network[0].weight.data += 1

    task = Task()
    checked = CheckedTask("wrapped", task)
    plain = dict(task.network.state_dict())
    assert list(checked.state) == list(plain)
    checked.load({name: torch.full_like(value, 3) for name, value in plain.items()})
    checked.train(0, ignored)
    assert checked.state["0.weight"].tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert task.network[1].num_batches_tracked == 3
    with pytest.raises(LayoutError, match=r"is another one than before: .* it lacks '1\.bias'$"):
        checked.load({name: value for name, value in plain.items() if name != "1.bias"})
