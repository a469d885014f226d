"""`nvflare provision` with our builder, and what its kits are good for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import verify_content
from nvflare_job import AGGREGATION, FLASHE, SITES, Server, Site, adds, first_model
from provisioned import Secagg, secagg  # noqa: F401

from secagg.errors import ConfigError
from secagg.integrations.nvflare import SecAggBuilder
from secagg.setup import install, unpack
from secagg.trust import load_server_kit, load_site_kit

IMPL = "nvflare.lighter.impl"
CERT = {"path": f"{IMPL}.cert.CertBuilder"}
OURS = {
    "path": "secagg.integrations.nvflare.SecAggBuilder",
    "args": {"he": FLASHE, "aggregation": AGGREGATION},
}

Provision = Callable[..., Any]


@pytest.fixture
def provision(tmp_path: Path) -> Provision:
    """Provision three sites as `nvflare provision -p project.yml` does; returns the folder of kits, or raises."""

    def run(*own: dict[str, Any]) -> Path:
        project = {
            "api_version": 3,
            "name": "example_project",
            "description": "",
            "participants": [
                {"name": "server1", "type": "server", "org": "nvidia", "fed_learn_port": 8002, "admin_port": 8003},
                *({"name": name, "type": "client", "org": "nvidia"} for name in SITES),
                {"name": "admin@nvidia.com", "type": "admin", "org": "nvidia", "role": "project_admin"},
            ],
            "builders": [
                {"path": f"{IMPL}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
                {"path": f"{IMPL}.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
                *own,
                {"path": f"{IMPL}.signature.SignatureBuilder"},
            ],
        }
        project = yaml.safe_load(yaml.safe_dump(project))
        made = Provisioner(str(tmp_path), prepare_builders(project)).provision(prepare_project(project))
        if made.get("__build_error__"):
            raise RuntimeError("provisioning failed")
        return Path(made.get_result_location())

    return run


def test_kits_are_in_the_startup_folders(provision: Provision) -> None:
    made = provision(CERT, OURS)
    kits = {name: made / name / "startup" / "secagg" for name in ("server1", *SITES)}
    server = load_server_kit(kits["server1"])
    assert server.project.name == "example_project"
    for name in SITES:
        site = load_site_kit(kits[name])
        assert site.name == name
        assert site.project == server.project
        assert (made / name / "startup" / "client.key").is_file()  # of TLS, as ever
    assert not (made / "admin@nvidia.com" / "startup" / "secagg").exists()
    assert not list(kits["server1"].glob("he-client*"))
    assert not list(made.rglob("authority"))


def test_only_the_owner_reads_them(provision: Provision) -> None:
    made = provision(CERT, OURS)
    for name in ("server1", *SITES):
        kit = made / name / "startup" / "secagg"
        assert kit.stat().st_mode & 0o777 == 0o700
        for file in kit.iterdir():
            assert not file.stat().st_mode & 0o022
    secrets = [path for path in made.rglob("startup/secagg/*.key") if path.name != "he-server.key"]
    assert len(secrets) == 4 * 2 + 3  # of signatures and TLS, and the HE key of the sites
    for secret in secrets:
        assert secret.stat().st_mode & 0o777 == 0o600


def test_files_are_signed(provision: Provision) -> None:
    made = provision(CERT, OURS)
    for name in ("server1", *SITES):
        kit = made / name / "startup" / "secagg"
        root = x509.load_pem_x509_certificate((made / name / "startup" / "rootCA.pem").read_bytes()).public_key()
        signatures = json.loads((kit / "signature.json").read_text())
        assert signatures.keys() == {path.name for path in kit.iterdir()} - {"signature.json"}
        for file, signature in signatures.items():
            verify_content((kit / file).read_bytes(), signature, root)
            with pytest.raises(InvalidSignature):
                verify_content((kit / file).read_bytes() + b" ", signature, root)


def test_provisioner_keeps_what_issues_kits(provision: Provision, tmp_path: Path, secagg: Secagg) -> None:  # noqa: F811
    made = provision(CERT, OURS)
    state = tmp_path / "example_project" / "state" / "secagg"
    assert state.stat().st_mode & 0o777 == 0o700
    done = secagg("add-site", state, "site-4")
    assert done.returncode == 0, done.stderr
    assert (state / "site-4.kit").is_file()
    passphrases = dict(line.split() for line in (state / "passphrases.txt").read_text().splitlines())
    (made / "site-4" / "startup").mkdir(parents=True)
    for kit, party in (("server.kit", "server1"), ("site-4.kit", "site-4")):  # the former over the one that was signed
        installed = install(unpack(state / kit, passphrases[kit]), made / party / "startup" / "secagg")
        assert "site-4" in [site.name for site in installed.project.sites]


def test_a_second_time_is_refused(provision: Provision, capsys: pytest.CaptureFixture[str]) -> None:
    provision(CERT, OURS)
    with pytest.raises(RuntimeError):
        provision(CERT, OURS)
    assert "has a federation" in capsys.readouterr().err


def test_it_needs_the_key_of_the_certificates(provision: Provision, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        provision(OURS, CERT)
    assert "CertBuilder" in capsys.readouterr().err


def test_configuration_is_checked_at_once() -> None:
    with pytest.raises(ConfigError, match="'he'|he "):
        SecAggBuilder(aggregation=AGGREGATION)
    with pytest.raises(ConfigError, match="polynomial"):
        SecAggBuilder(he={"lib": "flashe", "config": {"polynomial": 8192}})


def test_rounds_with_provisioned_kits(provision: Provision, tmp_path: Path) -> None:
    """The short form of test_poc: the parties' own startup folders."""
    made = provision(CERT, OURS)
    server = Server(made / "server1", None, first_model(), SITES)
    sites = [Site(made / name, name, None) for name in SITES]
    for _ in range(2):
        for site in sites:
            server.accept(site.name, site.train(server.task(), adds({"layer.bias": 0.1})))
        server.finish()
    sites[0].run(server.task(), lambda data: data, name="secagg_final")
    with np.load(sites[0].folder / "global_model.npz") as model:
        assert model["layer.bias"] == pytest.approx(0.2, abs=1e-3)
