"""The job and the builder of docs/nvflare.md are what works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nvflare_script
import pytest
import yaml

import secagg.integrations.nvflare

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "nvflare.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def test_the_job_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.py").write_text("import nvflare.client as flare\n")
    code = block("python").replace("recipe.run(SimEnv(num_clients=3))", 'recipe.export("jobs")')
    exec(code, {"SimpleNetwork": nvflare_script.network})
    app = tmp_path / "jobs" / "fedavg_secagg" / "app"
    assert [path.name for path in (app / "custom").iterdir()] == ["client.py"]
    assert json.loads((app / "config" / "config_fed_server.json").read_text())["workflows"]


def test_the_builder_of_the_page() -> None:
    _, ours = yaml.safe_load(block("yaml"))
    assert ours["path"] == "secagg.integrations.nvflare.SecAggBuilder"
    secagg.integrations.nvflare.SecAggBuilder(**ours["args"])


def test_names_of_the_page() -> None:
    for name in re.findall(r"`(SecAgg\w+)", PAGE):
        assert hasattr(secagg.integrations.nvflare, name)
    assert len(PAGE.splitlines()) <= 120
