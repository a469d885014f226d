"""The workflow for forks: its commands exist."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_of_the_workflow_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {line.split()[0] for line in lines} == {".ci/run", "make", "pipx"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for line in lines:
        program, word, *values = line.split()[:3] if " " in line else (line, "")
        if program == "make":
            assert re.search(rf"^{word}:", makefile, re.MULTILINE), line
            assert all(re.search(rf"^{value.partition('=')[0]} \?=", makefile, re.MULTILINE) for value in values), line
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    script = build["test-command"].removeprefix("python {project}/")
    assert (ROOT / script).is_file()
