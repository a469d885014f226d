"""Paths mean the place that they meant when they were given, wherever the process has gone since."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import federate, random_states
from served import Kits
from served import federation as configuration
from signed import Parts

import secagg
from secagg.errors import DecryptionError, EpochError, KeyFileError
from secagg.server import Federation as ServerFederation
from secagg.setup.provisioner import Provisioner
from secagg.storage.files import replace_file
from secagg.trust import Authority, Tls, load_server_kit, load_site_kit
from secagg.trust.failures import Failures

STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place to go to; the test begins in another, and nothing may appear in this one."""
    (tmp_path / "here").mkdir()
    place = tmp_path / "far" / "elsewhere"  # on another floor: "../kit" is another place there
    place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    yield place
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("kits"), configuration())


def relative(path: Path) -> str:
    return os.path.relpath(path)


def test_the_count_of_failures(elsewhere: Path) -> None:
    federation = federate("flashe")
    aggregate = federation.sum(random_states(2, {"w": (50,)}))
    parts = Parts.of(aggregate)
    parts.payloads[0] = bytes(len(parts.payloads[0]))
    bad = parts.build()
    site = secagg.Client(federation.config, federation.keys.client, "site-1", failures="failures")
    os.chdir(elsewhere)
    for _ in range(8):
        with pytest.raises(DecryptionError):
            site.decrypt(bad)
    os.chdir(elsewhere.parents[1] / "here")
    with pytest.raises(EpochError):
        secagg.Client(federation.config, federation.keys.client, "site-1", failures="failures").decrypt(aggregate)


def test_a_count_of_failures_at_no_place() -> None:
    with pytest.raises(KeyFileError, match="cannot use 'a.*b', the count of failures"):
        Failures(federate("flashe").keys.server, "a\0b")


def test_a_sites_kit(kits: Kits, elsewhere: Path) -> None:
    kit = load_site_kit(relative(kits["site-1"]))
    client = secagg.Client.load(relative(kits["site-1"]))
    assert kit.folder.is_absolute()
    os.chdir(elsewhere)
    assert Tls.load(kit.tls).read()
    assert kit.store_manifest(kit.project.signed) == kit
    assert secagg.Client.load(kit).encrypt(STATE).site == client.name


def test_the_servers_kit_and_run_folder(kits: Kits, elsewhere: Path) -> None:
    kit = load_server_kit(relative(kits["server"]))
    server = ServerFederation(kit.config, kit.key, "run", project=kit.project, identity=kit.identity)
    run = Path("run").absolute()
    os.chdir(elsewhere)
    try:
        assert kit.folder.is_absolute()
        assert Tls.load(kit.tls).read()
        server.start()
        server.status()
    finally:
        server.release()
        server.close()
    assert (run / "lock").exists()


def test_certificates_and_their_authority(elsewhere: Path) -> None:
    authority = Authority.create("authority")
    tls = authority.issue_site("site-1")
    loaded = Tls(Path("authority/site-1/ca.crt"), Path("authority/site-1/tls.crt"), Path("authority/site-1/tls.key"))
    os.chdir(elsewhere)
    assert tls.read() == loaded.read()
    authority.issue_site("site-2")


def test_the_provisioners_folder(kits: Kits, elsewhere: Path, tmp_path: Path) -> None:
    provisioner = Provisioner.load(Path(relative(kits.provisioner.folder)))
    changed, new = tmp_path / "changed", tmp_path / "new"
    changed.mkdir()
    new.mkdir()
    os.chdir(elsewhere)
    provisioner.add(("site-9",), changed, new)
    assert load_site_kit(new / "site-9").name == "site-9"


def test_a_file_on_its_way(elsewhere: Path) -> None:
    with replace_file("file") as file:
        os.chdir(elsewhere)
        file.write(b"whole")
    assert (elsewhere.parents[1] / "here" / "file").read_bytes() == b"whole"
