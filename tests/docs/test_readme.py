"""What README.md shows works as it stands there, and the loops of docs/own-task.md."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mortal import free_port
from provisioned import COMMANDS
from served import Kits, Served

import secagg
from secagg.scheme.codec import codec_for
from secagg.scheme.scales import bin_of, bound_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BACKENDS = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
OWN_TASK = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")

#: A task of one's own, for the commands.
TASK = """
import numpy as np

class Task:
    examples = 1

    def __init__(self):
        self.model = {"w": np.zeros(1000, np.float32)}

    def train(self, round):
        self.model["w"] += 0.01
"""

ROUNDS_OF_SITE = 4  # of `secagg site`, unless it is told

#: Of the loops: each round measures how large values are.
MEASURED = {"he": {"preset": "smallest"}, "aggregation": {"min_clients": 3, "max_clients": 6}}


def error_of(config: secagg.Config, weights: list[int], largest: float) -> float:
    """A bound on the error of a mean, where the largest weighted value of any site is this."""
    place = bin_of(largest)
    assert place is not None
    return codec_for(config.params, config.aggregation).mean_error(len(weights), sum(weights), bound_of(place))


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands() -> list[str]:
    return [line.partition(" #")[0].strip() for line in "".join(blocks("")).splitlines() if line.strip()]


def test_it_is_short() -> None:
    assert len(README.split()) <= 1400


def test_there_is_a_test_for_every_block() -> None:
    """The Python is run alone; there is one configuration, and nothing else."""
    assert len(blocks("python")) == 1
    assert len(blocks("yaml")) == 1
    assert README.count("\n```") == 2 * (1 + 1 + len(blocks("")))
    assert {line.split()[0] for line in commands()} == {"make", "pip", "secagg"}


def test_the_library_example_prints_the_weighted_mean(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocks("python")[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    values = [float(number) for number in re.findall(r"\d+\.\d*", result.stdout)]
    config = secagg.Config.from_dict({"he": {"preset": "exact"}, "aggregation": {"min_clients": 3, "max_clients": 30}})
    assert values == pytest.approx([3.0] * 9, abs=error_of(config, [100, 100, 300], 4.0 * 300))
    (shown,) = re.findall(r"# (\d\.\d+): 3.0 but for rounding", blocks("python")[0])
    assert {f"{value:.2f}" for value in values} == {shown}


def run_at_sites(
    folder: Path,
    code: str,
    names: Callable[[str], dict[str, Any]],
    late: str | None = None,
    config: secagg.Config | None = None,
) -> dict[str, dict[str, Any]]:
    """Run code that begins with the kit of ``site-1`` at three sites, and at one that comes when they have ended."""
    kits = Kits.make(folder, config or secagg.Config.from_dict(MEASURED))

    def take_part(site: str) -> dict[str, Any]:
        (folder / site).mkdir()
        text = code.replace("fl.example.org:8443", server.address).replace('"site-1"', repr(str(kits[site])))
        text = text.replace("aggregate.secagg", f"{folder}/{site}/aggregate")
        for name in ("model", "scales"):
            text = text.replace(f"{name}.secagg", f"{folder}/{site}/{name}")
        given = names(site)
        exec(text, given)
        return given

    sites = ("site-1", "site-2", "site-3")
    timeout = ("--round-timeout", 300)  # if one fails, the others do not wait for an hour
    with Served(kits["server"], folder / "server", timeout) as server, ThreadPoolExecutor(3) as pool:
        for site in sites:  # no round ends before all of them have joined
            with kits.session(site, server.address) as session:
                session.join()
        done = dict(zip(sites, pool.map(take_part, sites), strict=True))
        if late is not None:
            done[late] = take_part(late)
    return done


def own_loop() -> str:
    """The lines of docs/own-task.md."""
    (text,) = (text for text in blocks("python", OWN_TASK) if "SiteSession" in text)
    return text


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    """A training that adds a half; a site that comes late takes over what the others have."""

    def names(site: str) -> dict[str, Any]:
        return {
            "network": {"w": np.zeros(1000, np.float32)},
            "train": lambda state: {"w": state["w"] + 0.5},
            "dataset": [None],
            "rounds": 2,
        }

    done = run_at_sites(tmp_path, own_loop(), names, late="site-4")
    assert len(done) == 4
    error = 2 * error_of(secagg.Config.from_dict(MEASURED), [1, 1, 1], 0.5)
    for given in done.values():
        assert given["model"].round == 2
        np.testing.assert_allclose(given["model"].state["w"], 1.0, atol=error)
        assert given["model"].base == done["site-1"]["model"].base


@pytest.mark.parametrize("given", [{}, {"max_abs": 1.0, "max_weight": 1.0}])
def test_the_loop_with_monai(tmp_path: Path, given: dict[str, float]) -> None:
    """Where scales are measured, and where they are given: one loop for both."""
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedTrainer

    def names(site: str) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(int(site[-1]))
        network = torch.nn.Linear(4, 1)
        torch.nn.init.zeros_(network.weight)
        torch.nn.init.zeros_(network.bias)
        data = [{"image": torch.randn(4, generator=draw), "label": torch.ones(1)} for _ in range(4)]
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=DataLoader(Dataset(data), batch_size=2),
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), 0.02),
            loss_function=torch.nn.MSELoss(),
        )
        return {"network": network.state_dict(), "trainer": trainer, "dataset": [None], "rounds": 2}

    (handler,) = (text for text in blocks("python", OWN_TASK) if "SecAggHandler" in text)
    opened, loop, _ = own_loop().partition("    while ")
    assert loop
    aggregation = {"min_clients": 3, "max_clients": 6, **given}
    config = secagg.Config.from_dict({"he": {"preset": "smallest"}, "aggregation": aggregation})
    assert config.aggregation.calibrated != bool(given)
    done = run_at_sites(tmp_path, opened + textwrap.indent(textwrap.dedent(handler), "    "), names, config=config)
    models = [given["model"].state for given in done.values()]
    assert models[0]["bias"].item() > 0.03
    for model in models:
        assert torch.equal(model["weight"], models[0]["weight"])


def test_the_configurations() -> None:
    """Those of the README and of the page of backends."""
    config = secagg.Config.from_dict(yaml.safe_load(blocks("yaml")[0]))
    assert secagg.Config.from_dict(config.to_dict()) == config
    forms = re.findall(r"^\| `(\{lib: .*?\})` \| preset `(\w+)`", BACKENDS, re.MULTILINE)
    assert [preset for _, preset in forms] == ["clara", "exact", "smallest"]
    for form, preset in forms:
        config = secagg.Config.from_dict({"he": yaml.safe_load(form)})
        assert config == secagg.Config.from_dict({"he": {"preset": preset}})
    bits = [
        int(number) for number in re.findall(r"With `max_abs`, `exact` has (\d+), and `smallest` (\d+)", BACKENDS)[0]
    ]
    for preset, expected in zip(("exact", "smallest"), bits, strict=True):
        fixed = secagg.Config.from_dict({"he": {"preset": preset}, "aggregation": {"max_abs": 1.0}})
        assert fixed.params.to_dict()["value_bits"] == expected


def test_the_commands_of_a_federation(tmp_path: Path) -> None:
    """In their order; the two other sites do what the first one does."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "model.pt")
    np.savez(tmp_path / "update.npz", w=np.full(1000, 0.01, np.float32))
    (tmp_path / "own.py").write_text(TASK, encoding="utf-8")
    port, environment = free_port(), {"SECAGG_PASSPHRASE": "a passphrase for this test"}

    def start(line: str, errors: int = subprocess.STDOUT) -> subprocess.Popen[str]:
        for name in ("fl.example.org:8443", "0.0.0.0:8443"):
            line = line.replace(name, f"localhost:{port}")
        return subprocess.Popen(
            [sys.executable, "-m", "secagg.cli", *shlex.split(line)[1:]],
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def run(line: str) -> str:
        with start(line) as process:
            output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, f"{line}\n{output}"
        return output

    todo = [line for line in commands() if line.startswith("secagg ")]
    names = [line.split()[1] for line in todo]
    assert names == ["plan", "provision", "unpack", "serve", "unpack", "doctor", "site", "status"]
    plan, provision, unpack_server, serve, unpack, doctor, site, status = todo
    run(plan)
    own = yaml.safe_dump({"project": "brain", "hosts": ["localhost"], "sites": ["site-1", "site-2", "site-3"]})
    config = (tmp_path / "federation.yaml").read_text(encoding="utf-8")
    (tmp_path / "project.yaml").write_text(own + config, encoding="utf-8")
    run(provision)
    run(unpack_server)
    with start(serve, subprocess.DEVNULL) as server, ThreadPoolExecutor(3) as pool:
        try:
            assert server.stdout is not None
            assert "serving on" in server.stdout.readline()
            everywhere = [[line.replace("site-1", f"site-{number}") for number in (1, 2, 3)] for line in (unpack, site)]
            for line in everywhere[0]:
                run(line)
            assert "FAIL" not in run(doctor)
            for output in pool.map(run, [f"{line} --timeout 300" for line in everywhere[1]]):
                assert f"{ROUNDS_OF_SITE} rounds are done" in output
            assert f"round        {ROUNDS_OF_SITE}" in run(status)
        finally:
            server.kill()
    assert (tmp_path / "model.safetensors").exists()


def test_commands_that_are_named_exist() -> None:
    """Of the text, too, with their options; targets of make, and extras of pip."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = commands() + re.findall(r"`((?:make|pip|secagg) [^`]+)`", README + BACKENDS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in named:
        program, word, *rest = line.split()
        if program == "make":
            assert re.search(rf"^{word}:", makefile, re.MULTILINE), line
        elif program == "pip":
            assert {name for names in re.findall(r"\[(.*)\]", line) for name in names.split(",")} <= extras.keys(), line
        else:
            assert word in COMMANDS or word == "--help", line
            options = [option for option in rest if option.startswith("--")]
            if options:
                of = [word, rest[0]] if word == "bench" else [word]  # each benchmark has options of its own
                shown = subprocess.run(
                    [sys.executable, "-m", "secagg.cli", *of, "--help"],
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=True,
                ).stdout
                assert all(re.search(rf"(^|\s|\[){option}\b", shown) for option in options), line


def test_the_picture_is_small() -> None:
    (path,) = re.findall(r"!\[[^\]]+\]\((\S+)\)", README)
    data = (ROOT / path).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) < 100_000


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, section in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        if target.startswith("http"):
            continue
        path = (ROOT / page).parent.joinpath(target) if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if section and path.suffix == ".md":
            assert section in sections(path), f"{page}: {target}#{section}"


def sections(path: Path) -> set[str]:
    """The anchors of a page: those that GitHub gives to its headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
