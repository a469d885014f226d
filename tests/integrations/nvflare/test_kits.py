"""Where a party finds its kit, and whose it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nvflare.fuel.utils.class_utils import instantiate_class
from nvflare_job import SITES, Server, Site, adds, first_model
from provisioned import Federation

import secagg.integrations.nvflare
from secagg.errors import ConfigError, DuplicateError, KeyFileError, SecAggError

Job = Callable[..., tuple[Server, list[Site]]]


def refused(site: Site, task: bytes, caplog: pytest.LogCaptureFixture) -> str:
    """Return why a site does not train."""
    caplog.clear()
    reply = site.run(task, lambda data: pytest.fail("it has trained"))
    assert reply.get_return_code() == "TASK_DATA_FILTER_ERROR"
    return caplog.text


def test_no_kit(job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, _ = job()
    assert "startup/secagg" in refused(Site(tmp_path / "bare", "site-1", None), server.task(), caplog)
    with pytest.raises(SecAggError, match="startup/secagg"):
        Server(tmp_path / "bare-server", tmp_path / "nowhere", first_model(), SITES)


def test_kit_of_another_site(job: Job, kits: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, _ = job()
    site = Site(tmp_path / "other", "site-1", kits["site-2"])
    assert "is the kit of 'site-2', not of 'site-1'" in refused(site, server.task(), caplog)


def test_two_sites_with_one_kit(job: Job, kits: Federation, tmp_path: Path) -> None:
    """Also if the second has the first one's name."""
    server, sites = job()
    server.accept("site-1", sites[0].train(server.task(), adds({})))
    twin = Site(tmp_path / "twin", "site-1", kits["site-1"])
    with pytest.raises(DuplicateError):
        server.accept("site-1", twin.train(server.task(), adds({})))


def test_kits_of_the_other_side(job: Job, kits: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, _ = job()
    assert "server's kit" in refused(Site(tmp_path / "other", "site-1", kits["server"]), server.task(), caplog)
    with pytest.raises(KeyFileError, match="give the server's"):
        Server(tmp_path / "other-server", kits["site-1"], first_model(), SITES)


def test_damaged_kit(job: Job, kits: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server, _ = job()
    kit = tmp_path / "kit"
    shutil.copytree(kits["site-1"], kit)
    (kit / "he-client.key").write_bytes((kit / "he-client.key").read_bytes()[:-1])
    assert "he-client.key" in refused(Site(tmp_path / "damaged", "site-1", kit), server.task(), caplog)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("SecAggDecryptor", {"kit": "/kits/site-1"}),
        ("SecAggEncryptor", {"kit": "/kits/site-1"}),
        ("SecAggEncryptor", {"key": "/custom/he-client.key"}),
        ("SecAggPersistor", {"model": "first.npz", "kit": "/kits/server"}),
        ("SecAggAggregator", {"kit": "/kits/server"}),
    ],
)
def test_a_job_cannot_name_keys(name: str, args: dict[str, str]) -> None:
    """Whoever submits it would choose them."""
    path = f"{getattr(secagg.integrations.nvflare, name).__module__}.{name}"
    with pytest.raises(ValueError, match="unexpected keyword|takes no arguments"):
        instantiate_class(path, args)


def test_a_job_cannot_bring_keys(job: Job, kits: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kit in what the job has brought is not looked for."""
    server, _ = job()
    site = Site(tmp_path / "bare", "site-1", None)
    for folder in ("config", "custom"):
        shutil.copytree(kits["site-1"], site.folder / "app_site-1" / folder / "secagg")
    assert "startup/secagg" in refused(site, server.task(), caplog)


def test_environment_names_the_kits_of_a_simulation(
    job: Job, kits: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECAGG_SIMULATION", "1")
    monkeypatch.setenv("SECAGG_KIT", f"{kits.kits}/{{site}}")
    server = Server(tmp_path / "server", tmp_path / "nowhere", first_model(), SITES)
    site = Site(tmp_path / "site-1", "site-1", None)
    server.accept("site-1", site.train(server.task(), adds({})))


def test_environment_counts_in_a_declared_simulation_only(
    job: Job, kits: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = job()
    monkeypatch.setenv("SECAGG_KIT", f"{kits.kits}/{{site}}")
    for declared in ("", "0", "yes"):
        monkeypatch.setenv("SECAGG_SIMULATION", declared)
        assert "startup/secagg" in refused(Site(tmp_path / "bare", "site-1", None), server.task(), caplog)


@pytest.mark.parametrize("place", ["", "/kits/site-1"])
def test_one_kit_for_all_of_a_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("SECAGG_SIMULATION", "1")
    monkeypatch.setenv("SECAGG_KIT", place)
    with pytest.raises(ConfigError, match=r"\{site\}"):
        Server(tmp_path / "server", tmp_path / "nowhere", first_model(), SITES)
