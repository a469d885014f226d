"""A SuperLink and SuperNodes in processes of their own, over TLS, with node authentication and signed updates."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flower_deployment import Deployment
from flower_example import APP, Run, accuracies, copy_app, make_plain, node_configs
from needles import Needles
from provisioned import Federation
from site_secrets import add_kits, private_scalar

from secagg.trust import load_server_kit, load_site_kit

#: What is mapped where an HE library is loaded: its compiled part.
HE_LIBRARY = re.compile(r"/(tenseal|_tenseal|seal|Pyfhel)\b[^/]*(/.*)?\.so", re.IGNORECASE)

FLASHE = {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}
BGV = {"lib": "seal", "config": {"scheme": "BGV", "value_bits": 16, "rounding": "nearest"}}


def provision(folder: Path, nodes: int, he: Mapping[str, Any]) -> Federation:
    return Federation.make(
        folder,
        sites=[f"site-{number + 1}" for number in range(nodes)],
        hosts=["localhost", "127.0.0.1"],
        he=he,
        aggregation={"min_clients": nodes, "max_clients": nodes, "max_abs": 1.0, "max_weight": 2000},
    )


def secrets_of(federation: Federation, sites: Mapping[str, Path]) -> Needles:
    """What must not be at the server, and what a scan must find there, whose names begin with "own"."""
    needles = Needles()
    add_kits(needles, sites, federation.provisioner.folder)
    needles.add("own signing key", load_server_kit(federation["server"]).identity._key.private_bytes_raw())
    needles.add("own TLS key", private_scalar(federation["server"] / "tls.key"))
    return needles


@contextmanager
def standing_still(number: int) -> Iterator[None]:
    process = psutil.Process(number)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("nodes", "rounds", "he"),
    [pytest.param(2, 1, FLASHE, id="short"), pytest.param(3, 3, BGV, id="long", marks=pytest.mark.long)],
)
def test_a_deployment(
    nodes: int, rounds: int, he: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = provision(tmp_path / "federation", nodes, he)
    sites = {site: federation[site] for site in (f"site-{number + 1}" for number in range(nodes))}
    needles, kits = secrets_of(federation, sites), {site: files_in(kit) for site, kit in sites.items()}
    monkeypatch.setenv("SECAGG_SERVER_KIT", str(federation["server"]))
    here = Run(APP, node_configs(sites), rounds, monkeypatch)
    if he is BGV:
        assert HE_LIBRARY.search(Path("/proc/self/maps").read_text())
    for model in here.models:  # sums are exact, so that they come out the same in the deployment
        needles.add("global model", model[0].tobytes())

    folder = tmp_path / "deployment"
    folder.mkdir()
    app = copy_app(folder)
    todo = (app, "--run-config", f"num-server-rounds={rounds} num-nodes={nodes}")
    found: dict[str, set[str]] = {}
    with Deployment.running(folder, {**sites, "server": federation["server"]}, sites) as deployment:
        if rounds > 1:  # Ctrl-C in the middle, and all of it again
            deployment.submit(*todo)
            deployment.wait_until_told("[ROUND 2/")
            check_ended(deployment, kits)
            deployment.start_superlink()
            deployment.start_nodes()
        deployment.submit(*todo)
        deployment.wait_until_told("configure_evaluate")  # the server has added updates
        server = deployment.server_processes()
        for name in ("flower-superlink", "flwr-serverapp"):
            with standing_still(server[name]):
                assert not HE_LIBRARY.findall(Path(f"/proc/{server[name]}/maps").read_text()), name
                found[name] = needles.found_in_process(server[name])
        told = accuracies(deployment.finish())
        statuses = [run["status"] for run in deployment.runs()]
        assert statuses == ["finished:completed", "finished:failed"][: len(statuses)]
        check_ended(deployment, kits)

    # It learns what it learns in one process, and what the unencrypted app learns. Of the accuracies Flower takes the
    # plain mean: nodes no longer tell how many examples they have.
    np.testing.assert_allclose(told, here.told("accuracy").mean(axis=1))
    plain = Run(make_plain(copy_app(tmp_path, "plain")), node_configs(sites), rounds, monkeypatch).told("accuracy")
    np.testing.assert_allclose(told, plain.mean(axis=1), atol=0.01)

    # No key of a site is at the server, and no model; its own keys the scan finds.
    found["files"] = needles.found_below(folder / "server") | needles.found_in(deployment.log("server").encode())
    assert deployment.database.stat().st_size > 0
    assert [name for names in found.values() for name in names if not name.startswith("own ")] == []
    assert any(name.startswith("own TLS key") for name in found["flower-superlink"])
    assert any(name.startswith("own signing key") for name in found["flwr-serverapp"])
    assert not found["files"]


def check_ended(deployment: Deployment, kits: Mapping[str, Mapping[str, bytes]]) -> None:
    """After Ctrl-C nothing is half-written, nor anything but whole in the database."""
    deployment.interrupt()
    for site, files in kits.items():
        now = files_in(deployment.kits[site])
        assert set(now.pop("failures", b"")) <= set(b"-\n")
        assert now == files
        load_site_kit(deployment.kits[site])
    with closing(sqlite3.connect(deployment.database)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
