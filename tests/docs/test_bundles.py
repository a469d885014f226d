"""What docs/bundles.md shows runs: two sites' bundles with the page's file, a real server, kits and certificates."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import monai
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from provisioned import Federation
from served import Served
from tiny_bundle import TRAIN, write_bundle

from secagg.site.folder import TRAINED_FILE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bundles.md").read_text(encoding="utf-8")
SITES = ("site-1", "site-2")
ROUNDS = 3
FILES = "['configs/train.json','configs/secagg.json']"


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


@dataclass
class Bundle:
    """A site's program, which may be started again."""

    folder: Path
    kit: Path
    server: str
    command: tuple[str, ...] = ("-m", "monai.bundle", "run", "--config_file", FILES)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        command = [sys.executable, *self.command, "--site", self.kit.name[-1]]
        command += ["--run#0#kit", str(self.kit), "--run#0#server", self.server]
        command += ["--run#0#report", "rounds.jsonl"]
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


def make_kits(folder: Path, **aggregation: Any) -> Federation:
    """Those of the page's federation, for two sites here."""
    project = yaml.safe_load(block("yaml"))
    here = {"sites": list(SITES), "hosts": ["localhost"]}
    return Federation.make(
        folder, **project | here | {"aggregation": {"min_clients": 2, "max_clients": 4, **aggregation}}
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bundle]]:
    """Both sites have done all rounds; the first was killed when it had trained for the first one, alone."""
    folder = tmp_path_factory.mktemp("bundles")
    kits = make_kits(folder)
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


def test_a_round_is_what_the_page_says(bundles: list[Bundle]) -> None:
    """An epoch, of which each site reports; the command is the page's."""
    assert f'python -m monai.bundle run --config_file "{FILES}"' in PAGE
    files = [str(bundles[0].folder / "configs" / f"{name}.json") for name in ("train", "secagg")]
    assert ConfigParser.load_config_files(files)["train"]["trainer"]["max_epochs"] == 1
    for bundle in bundles:
        lines = [json.loads(line) for line in (bundle.folder / "rounds.jsonl").read_text().splitlines()]
        assert [line["round"] for line in lines] == list(range(ROUNDS))
        assert all(line["verified"] and line["means"].keys() == {"val_mean_dice"} for line in lines)
        assert f"round 2 (3 of 3): val_mean_dice {lines[-1]['metrics']['val_mean_dice']:.4f}; sum of 2" in bundle.log


def test_every_site_learns_the_means(bundles: list[Bundle]) -> None:
    means = [re.findall(r"best so far: val_mean_dice (0\.\d+), mean of all sites", bundle.log) for bundle in bundles]
    assert means[0] == means[1]
    assert float(means[0][-1]) > float(means[0][0]) + 0.1  # it has learnt
    assert f"with the best val_mean_dice: {means[0][-1]}, mean of all sites" in bundles[0].log


@pytest.mark.usefixtures("one_thread")
def test_the_programs_of_sites_and_server_run(tmp_path: Path) -> None:
    """A thread for each site, which trains when it is its turn; what they send each other goes through queues."""
    kits = make_kits(tmp_path / "federation", max_abs=1.0, max_weight=1000)
    programs = dict(zip(("site", "server"), re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), strict=True))
    ways = {site: (Queue[Any](), Queue[Any]()) for site in SITES}

    def run_site(site: str) -> dict[str, torch.Tensor]:
        filters = block("json", 1).replace("/etc/secagg/site-1", str(kits[site]))
        folder = write_bundle(tmp_path / "bundles" / site, secagg_filters=filters)
        there, back = ways[site]
        names: dict[str, Any] = {"receive": lambda: iter(there.get, None), "send": back.put}
        exec(programs["site"].replace("/opt/bundle", str(folder)), names)
        return dict(names["algo"].evaluator.network.state_dict())

    def exchange(weights: Any) -> Iterator[Any]:
        for there, back in ways.values():
            there.put((weights, False))
            yield back.get(timeout=300)

    parser = ConfigParser(TRAIN)
    first = {name: value.numpy() for name, value in parser.get_parsed_content("network").state_dict().items()}
    names: dict[str, Any] = {"first": first, "rounds": ROUNDS, "exchange": exchange}
    with ThreadPoolExecutor() as pool:
        done = [pool.submit(run_site, site) for site in SITES]
        try:
            exec(programs["server"].replace("/etc/secagg/server", str(kits["server"])), names)
            for there, _ in ways.values():
                there.put((names["last"], True))
        finally:
            for there, _ in ways.values():
                there.put(None)
        one, other = (future.result(timeout=300) for future in done)
    monai.utils.set_determinism(None)  # which the bundles have set for this process
    for key, value in one.items():
        assert not value.is_floating_point() or torch.equal(value, other[key]), key
    assert not torch.equal(one["model.0.conv.weight"], torch.from_numpy(first["model.0.conv.weight"]))


#: What a bundle has beside its train.json for several processes that train one network.
SEVERAL = {
    "plain": TRAIN["network"],
    "network": "$torch.nn.parallel.DistributedDataParallel(@plain)",
    "initialize": [*TRAIN["initialize"], "$torch.distributed.init_process_group('gloo')"],
    "finalize": ["$torch.distributed.destroy_process_group()"],
}


@pytest.mark.long
def test_several_processes_are_one_site(tmp_path: Path) -> None:
    """The short form is tests/integrations/monai/test_bundle_ranks.py, without a federation."""
    kits = make_kits(tmp_path)
    with Served(kits["server"], tmp_path / "served") as server:
        folders = [write_bundle(tmp_path / "bundles" / site, secagg=block("json"), several=SEVERAL) for site in SITES]
        made = [Bundle(folder, kits[site], server.address) for folder, site in zip(folders, SITES, strict=True)]
        several = FILES.replace("'configs/secagg.json'", "'configs/several.json','configs/secagg.json'")
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        made[0].command = (*launcher, *made[0].command[:-1], several)
        try:
            for bundle in made:
                bundle.start()
            for bundle in made:
                assert bundle.processes[-1].wait(300) == 0, bundle.log
        finally:
            for bundle in made:
                bundle.kill()
    assert made[0].log.count("round 2 (3 of 3): train") == 1  # rank 0 alone speaks
    test_all_sites_have_one_global_model(made)
