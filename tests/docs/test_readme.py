"""What README.md shows works as it stands there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from served import Kits, Served, federation

import secagg

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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
    assert values == pytest.approx([3.0] * 9, abs=2e-3)  # rounded to 16 bits of max_abs 8


def test_names_in_the_training_example_exist() -> None:
    tree = ast.parse(blocks("python")[1])
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = {"secagg.integrations.monai", "secagg.integrations.grpc", "secagg.site", "secagg.trust"}
    assert {node.module for node in imports} == modules
    for node in imports:
        module = __import__(str(node.module), fromlist=["_"])
        for name in node.names:
            assert getattr(module, name.name)


def test_the_rounds_without_monai(tmp_path: Path) -> None:
    """At three sites, with the lines before them that open the session; a training that adds one."""
    kits = Kits.make(tmp_path, federation())
    # As far as the model, which is then MONAI's; the rounds stand inside the same block.
    opened = blocks("python")[1].partition("    model = ")[0]
    opened = "\n".join(line for line in opened.splitlines() if "monai" not in line)
    code = opened + "\n" + textwrap.indent(blocks("python")[2], "    ")

    def take_part(name: str) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        text = code.replace("fl.example.org:8443", server.address).replace("aggregate.secagg", f"{folder}/aggregate")
        text = text.replace('"site-1"', repr(name)).replace("len(dataset)", "1.0")
        text = re.sub(r'"site-1/([^"]+)"', lambda match: repr(str(kits[name] / match[1])), text)
        text = text.replace(f"Tls.load({name!r})", f"Tls.load({str(kits[name])!r})")
        names: dict[str, Any] = {
            "state": {"w": np.zeros(1000, np.float32)},
            "train": lambda state: {"w": state["w"] + 0.5},
            "rounds": 2,
        }
        exec(text, names)
        return names

    timeout = ("--round-timeout", 300)  # if one fails, the others do not wait for an hour
    with Served(kits["server"], tmp_path / "server", timeout) as server, ThreadPoolExecutor(3) as pool:
        for name in ("site-1", "site-2", "site-3"):  # no round ends before all of them have joined
            with kits.session(name, server.address) as session:
                session.join()
        done = list(pool.map(take_part, ("site-1", "site-2", "site-3")))
    for names in done:
        np.testing.assert_allclose(names["model"].state["w"], 1.0, atol=4e-3)  # 11 bits of max_abs 1, twice
        assert names["model"].base == done[0]["model"].base


def test_the_config_is_valid() -> None:
    config = secagg.Config.from_dict(yaml.safe_load(blocks("yaml")[0]))
    assert secagg.Config.from_dict(config.to_dict()) == config


def test_the_blocks_of_the_table_are_valid() -> None:
    forms = re.findall(r"^\| `(\{lib: .*?\})` \|", README, re.MULTILINE)
    assert len(forms) == 3
    for form in forms:
        config = secagg.Config.from_dict({"he": yaml.safe_load(form)})
        assert secagg.Config.from_dict(config.to_dict()) == config


def test_commands_exist() -> None:
    text = "\n".join(re.findall(r"```\n(.*?)```", README, re.DOTALL))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for command in set(re.findall(r"^secagg ([\w-]+)", text, re.MULTILINE)):
        result = subprocess.run(
            [sys.executable, "-m", "secagg.cli", command, "--help"], capture_output=True, timeout=300, check=False
        )
        assert result.returncode == 0


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
