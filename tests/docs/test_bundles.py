"""What docs/bundles.md shows runs: two sites' bundles with the page's file, a real server, kits and certificates."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from provisioned import Federation
from served import Served
from tiny_bundle import write_bundle

from secagg.site.folder import TRAINED_FILE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
SITES = ("site-1", "site-2")
ROUNDS = 3


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


@dataclass
class Bundle:
    """A site's program, which may be started again."""

    folder: Path
    kit: Path
    server: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += ["--config_file", "['configs/train.json','configs/secagg.json']", "--site", self.kit.name[-1]]
        command += ["--run#0#kit", str(self.kit), "--run#0#server", self.server]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with (self.folder / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log))

    def wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + 300
        while not path.exists():
            assert self.processes[-1].poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bundle]]:
    """Both sites have done all rounds; the first was killed when it had trained for the first one, alone."""
    folder = tmp_path_factory.mktemp("bundles")
    kits = Federation.make(
        folder,
        sites=list(SITES),
        hosts=["localhost"],
        metrics=["val_mean_dice"],
        aggregation={"min_clients": 2, "max_clients": 4},
    )
    with Served(kits["server"], folder / "served") as server:
        made = [
            Bundle(write_bundle(folder / "bundles" / site, secagg=block("json")), kits[site], server.address)
            for site in SITES
        ]
        try:
            made[0].start()
            made[0].wait_for(made[0].kit / TRAINED_FILE)
            made[0].kill()
            for bundle in made:
                bundle.start()
            for bundle in made:
                assert bundle.processes[-1].wait(300) == 0, bundle.log
            yield made
        finally:
            for bundle in made:
                bundle.kill()


def test_all_sites_have_one_global_model(bundles: list[Bundle]) -> None:
    for name in ("global.pt", "best.pt"):
        one, other = (torch.load(bundle.folder / "models" / name) for bundle in bundles)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert not value.is_floating_point() or torch.equal(value, other[key]), key


def test_a_site_that_was_killed_went_on(bundles: list[Bundle]) -> None:
    assert "round 0 (1 of 3): going on with what was trained before" in bundles[0].log
    assert "going on" not in bundles[1].log
