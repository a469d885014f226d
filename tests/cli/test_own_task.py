"""`secagg site --task`: real sites that train a user's own class, which fails now and then."""

from __future__ import annotations

import contextlib
import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from provisioned import Federation, Secagg
from served import Served

from secagg.scheme.codec import codec_for
from secagg.site.folder import MODEL_FILE
from secagg.trust.kit import load_site_kit

SITES = ("a", "b", "c")
EXAMPLES = {"a": 8, "b": 16, "c": 40}

#: Moves to a point of its own, and fails as long as there is a file that says so.
TASK = """
from pathlib import Path

import numpy as np


class Pull:
    def __init__(self, site, examples, start=0.0):
        self.model = {"w": np.full((3, 4), start, np.float32), "half": np.zeros(5, np.float16), "steps": np.array(0)}
        self.examples = examples
        self.target = examples / 50
        self.site = site

    def fails(self, where):
        note = Path(__file__).parent / f"{self.site}-{where}"
        if note.exists():
            exec(note.read_text())

    def train(self, round):
        self.model["w"] = self.model["w"] + 0.5 * (self.target - self.model["w"].astype(np.float64))
        self.model["half"] += np.float16(0.01)
        self.model["steps"] += 1
        self.fails(f"train-{round}")

    def validate(self):
        self.fails("validate")
        return {"distance": abs(self.target - self.model["w"]).max(), "steps": self.model["steps"]}
"""


@dataclass
class Site:
    """One site's command, which can be started again; `log` is what all its starts wrote."""

    folder: Path
    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(encoding="utf-8")

    @property
    def out(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def records(self) -> list[dict[str, Any]]:
        lines = (self.folder / f"{self.name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(300)

    def fail(self, where: str, code: str) -> Path:
        note = self.folder / f"{self.name}-{where}"
        note.write_text(code, encoding="utf-8")
        return note


@contextlib.contextmanager
def sites(federation: Federation, folder: Path, address: str, rounds: int, *more: str) -> Iterator[list[Site]]:
    (folder / "pull.py").write_text(TASK, encoding="utf-8")
    made = []
    for name in SITES:
        command = [sys.executable, "-m", "secagg.cli", "site", str(federation[name]), "--server", address]
        command += ["--task", "pull.py:Pull", "--option", f"site={name}", "--option", f"examples={EXAMPLES[name]}"]
        command += ["--rounds", str(rounds), "--report", f"{name}.jsonl", "--out", f"{name}.safetensors", *more]
        made.append(Site(folder, name, command))
    try:
        yield made
    finally:
        for site in made:
            if site.process is not None:
                site.process.kill()
                site.process.wait()


def tolerance(federation: Federation, rounds: int) -> float:
    """What quantisation may have changed in so many means, and rounding to float16 besides."""
    config = load_site_kit(federation["a"]).config
    weight = sum(EXAMPLES.values()) / config.aggregation.max_weight
    return rounds * codec_for(config.params, config.aggregation).mean_error(len(SITES), weight) + 2.0**-10


def averaged(rounds: int) -> np.ndarray:
    """What plain averaging makes of it."""
    w, total = 0.0, sum(EXAMPLES.values())
    for _ in range(rounds):
        w = sum(count / total * (w + 0.5 * (count / 50 - w)) for count in EXAMPLES.values())
    return np.full((3, 4), w)


def test_an_own_task_and_a_site_that_is_started_again_after_its_last_round(
    federation: Federation, tmp_path: Path
) -> None:
    with (
        Served(federation["server"], tmp_path / "served") as served,
        sites(federation, tmp_path, served.address, 3) as started,
    ):
        for site in started:
            site.start()
        assert [site.end() for site in started] == [0, 0, 0], [site.log for site in started]
        models = [safetensors.numpy.load_file(site.out) for site in started]
        for site, model in zip(started, models, strict=True):
            assert stat.S_IMODE(site.out.stat().st_mode) == 0o600
            assert {name: value.dtype.name for name, value in model.items()} == {
                "w": "float32",
                "half": "float16",
                "steps": "int64",
            }
            assert int(model["steps"]) == 3
            for name in ("w", "half"):
                np.testing.assert_array_equal(model[name], models[0][name])
            np.testing.assert_allclose(model["w"], averaged(3), atol=tolerance(federation, 3))
            np.testing.assert_allclose(model["half"], 0.03, atol=tolerance(federation, 3))
            distance = float(np.abs(EXAMPLES[site.name] / 50 - model["w"]).max())
            assert site.log.splitlines()[-1] == f"3 rounds are done: distance {distance:.4f}, steps 3.0000"
            assert [record["round"] for record in site.records] == [0, 1, 2]
            assert site.records[-1]["metrics"] == {"distance": pytest.approx(distance), "steps": 3.0}
            assert "round 1 (2 of 3): distance 0." in site.log
            assert "sum of 3 updates, verified" in site.log
        a = started[0]
        before, log = a.out.read_bytes(), a.log
        a.out.unlink()
        for _ in range(2):  # without the file, and with it
            a.start()
            assert a.end() == 0, a.log
            again = safetensors.numpy.load_file(a.out)
            np.testing.assert_array_equal(again["w"], models[0]["w"])
            assert "train" not in a.log.removeprefix(log).replace("--task", "")
        assert len(before) == a.out.stat().st_size


FAILURES = {
    "an error": "raise ValueError('a label is missing')",
    "what the command would take for its own": "raise OSError('the data are gone')",
    "a library": "import no_such_library",
    "an exit": "raise SystemExit(0)",
}


def test_a_task_that_fails_is_shown_to_its_author_and_goes_on_when_it_is_mended(
    federation: Federation, tmp_path: Path
) -> None:
    with (
        Served(federation["server"], tmp_path / "served") as served,
        sites(federation, tmp_path, served.address, 2) as started,
    ):
        a, b, c = started
        failing = {site.name: list(FAILURES.values())[number] for number, site in enumerate((a, b, c))}
        note = a.fail("train-0", failing["a"])
        b.fail("train-1", failing["b"])
        c.fail("validate", f'if self.model["steps"]: {FAILURES["an exit"]}')  # it is called before training, too
        for site in started:
            site.start()
        assert a.end() == 1, a.log
        assert 'pull.py", line ' in a.log  # a traceback, into the user's own file
        assert "ValueError: a label is missing" in a.log
        assert a.log.splitlines()[-1].startswith("secagg: train of the task pull.py:Pull raised ValueError: a label is")
        assert not (federation["a"] / MODEL_FILE).exists()
        note.unlink()
        a.start()  # and the others, which have waited, finish round 0
        assert c.end() == 1, c.log
        assert "raised SystemExit: 0" in c.log
        assert (federation["c"] / MODEL_FILE).exists()  # what the round has made is kept
        assert b.end() == 1, b.log
        assert "Traceback" in b.log
        assert "OSError: the data are gone" in b.log
        for note in tmp_path.glob("[abc]-*"):
            note.unlink()
        for site in (b, c):
            site.start()
        assert [site.end() for site in started] == [0, 0, 0], [site.log for site in started]
        assert "going on from its own global model, of round 1" in b.log
        models = [safetensors.numpy.load_file(site.out)["w"] for site in started]
        for model in models:
            np.testing.assert_array_equal(model, models[0])
        np.testing.assert_allclose(models[0], averaged(2), atol=tolerance(federation, 2))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--task", "pull.py:Push"), 2, "pull.py has no class 'Push'"),
        (("--task", "no_such:Pull"), 2, "no module 'no_such'"),
        (
            ("--task", "pull.py:Pull", "--option", "site=a"),
            2,
            "missing a required argument: 'examples'; it takes (site,",
        ),
        (("--task", "pull.py:Pull", "--option", "examples"), 2, "NAME=VALUE"),
        (("--task", "pull.py:Pull", "--option", "site=a", "--option", "examples=many"), 1, "raised TypeError"),
        (
            ("--task", "pull.py:Pull", "--option", "site=a", "--option", "examples=65"),
            1,
            "weight 65 is over aggregatio",
        ),
        (("--task", "pull.py:Pull", "--option", "site=a", "--option", "examples=-1"), 1, "weight is -1"),
        (("--task", "pull.py:Bare", "--option", "site=a"), 2, "has no attribute 'examples'"),
        (("--task", "pull.py:Texts"), 1, "'w' is a str"),
        (("--out", "model.npz"), 2, "must end in .safetensors, .pt, .pth"),
        (("--out", "missing/model.pt"), 1, "cannot write to the folder"),
        (("--report", "missing/report"), 1, "missing/report"),
    ],
)
def test_what_is_found_out_before_joining(
    secagg: Secagg, federation: Federation, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """There is no server to join."""
    more = """

class Bare:
    def __init__(self, site):
        self.model = {"w": np.zeros(3)}

    def train(self, round):
        pass


class Texts:
    model, examples = {"w": "text"}, 1

    def train(self, round):
        pass
"""
    (tmp_path / "pull.py").write_text(TASK + more, encoding="utf-8")
    result = secagg("site", federation["a"], "--server", "127.0.0.1:1", "--timeout", 500, *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert ("Traceback" in result.stderr) == ("raised" in message)


def test_a_task_in_numpy_needs_no_torch(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "pull.py").write_text(TASK, encoding="utf-8")
    command = ("site", str(federation["a"]), "--server", "127.0.0.1:1", "--timeout", "1", "--task", "pull.py:Pull")
    command += ("--option", "site=a", "--option", "examples=1", "--out", "model.safetensors")
    code = f"import sys; sys.modules['torch'] = None; from secagg.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 5, result.stderr
    assert "joining failed" in result.stderr


def test_a_missing_library_of_the_file(federation: Federation, tmp_path: Path) -> None:
    for module, name in (("safetensors", "model.safetensors"), ("torch", "model.pt")):
        command = ("site", str(federation["a"]), "--server", "127.0.0.1:1", "--out", str(tmp_path / name))
        code = f"import sys; sys.modules[{module!r}] = None; from secagg.cli import main; sys.exit(main({command!r}))"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 4, result.stderr
        assert f"import of {module} halted" in result.stderr
        assert not (tmp_path / name).exists()


def test_a_first_model_from_a_file_and_the_best_one_in_another(tmp_path: Path) -> None:
    """By the mean distance, which is the largest in the beginning."""
    federation = Federation.make(tmp_path / "made", metrics=["distance"])
    np.savez(tmp_path / "first.npz", w=np.zeros((3, 4), np.float32), half=np.zeros(5, np.float16), steps=np.array(5))
    options = ("--start", "first.npz", "--option", "start=0.25")  # which the file takes the place of
    with (
        Served(federation["server"], tmp_path / "served") as served,
        sites(federation, tmp_path, served.address, 2, *options) as started,
    ):
        for site in started:
            site.command += ["--best", f"{site.name}-best.safetensors"]
            site.start()
        assert [site.end() for site in started] == [0, 0, 0], [site.log for site in started]
    total = sum(EXAMPLES.values())
    mean = sum(count * count / 50 for count in EXAMPLES.values()) / total
    for site in started:
        best = safetensors.numpy.load_file(tmp_path / f"{site.name}-best.safetensors")
        np.testing.assert_array_equal(best["w"], 0)
        assert int(safetensors.numpy.load_file(site.out)["steps"]) == 7
        assert site.records[0]["means"] == {"distance": pytest.approx(mean, rel=0.02)}
        shown = re.search(r"that round 0 began from, with the best distance: (\S+), mean of all sites", site.log)
        assert shown is not None
        assert float(shown[1]) == pytest.approx(mean, rel=0.02)
