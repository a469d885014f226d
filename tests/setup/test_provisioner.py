"""What the provisioner makes: kits that fit together, for the one party and nobody else."""

from __future__ import annotations

import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from provisioned import PROJECT, Federation

import secagg as library
from secagg import setup
from secagg.errors import (
    ConfigError,
    IdentityError,
    KeyFileError,
    KeyMismatchError,
    ManifestMismatchError,
    SignatureError,
    VerificationError,
)
from secagg.setup.provisioner import Provisioner
from secagg.site import GlobalModel
from secagg.trust import Certificate, Tls
from secagg.trust.kit import load_kit, load_server_kit, load_site_kit
from secagg.trust.kit_files import SERVER_FILES, SITE_FILES, is_secret, is_server_kit
from secagg.trust.project import Project

STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def client(federation: Federation, name: str) -> library.Client:
    kit = load_site_kit(federation[name])
    return library.Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project)


def test_each_party_gets_a_kit(made: Federation) -> None:
    assert {kit.name for kit in made.kits.iterdir()} == {"server", "a", "b", "c"}
    for kit in made.kits.iterdir():
        assert {path.name for path in kit.iterdir()} == (SERVER_FILES if kit.name == "server" else SITE_FILES)
        assert is_server_kit(kit) == (kit.name == "server")
    assert {str(path.relative_to(made.provisioner.folder)) for path in made.provisioner.folder.rglob("*.*")} == {
        *("ca.crt", "ca.key", "he-client-0.key", "project.secagg", "signing.key"),
        *(f"server/{name}" for name in ("ca.crt", "tls.crt", "tls.key", "signing.key")),
    }
    folders = [path for path in made.kits.parent.rglob("*") if path.is_dir() and path != made.kits]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    secret = [path for path in made.kits.parent.rglob("*") if is_secret(path.name)]
    assert len(secret) == 2 + 3 * 3 + 2 + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_a_kit_is_of_one_piece(made: Federation) -> None:
    project = made.provisioner.project
    assert (project.name, project.serial, project.epoch, project.layout) == ("brain", 1, 0, None)
    assert project.expires - project.issued == 365 * 86_400
    server = load_server_kit(made["server"])
    assert (server.name, server.folder, server.tls) == ("server", made["server"], made["server"])
    assert server.project == project
    assert server.identity.public == project.server.public
    for member in project.sites:
        kit = load_site_kit(made[member.name])
        assert (kit.name, kit.project, kit.config) == (member.name, project, project.config)
        assert (kit.key.fingerprint, kit.old_epochs) == (project.key, ())
        assert kit.identity.public == member.public
        certificate = Certificate.load(Tls.load(kit.tls))
        assert (certificate.name, certificate.fingerprint) == (member.name, member.certificate)
        assert (certificate.for_server, certificate.for_client) == (False, True)
        assert certificate.expires >= project.expires
    certificate = Certificate.load(Tls.load(server.tls))
    assert (certificate.fingerprint, certificate.der) == (project.server.certificate, project.server_certificate)
    assert (certificate.for_server, certificate.for_client) == (True, True)
    assert certificate.hosts == ("localhost", "fl.example.org", "127.0.0.1", "::1", "10.0.0.7")


HE = {
    "FLASHE": {"preset": "smallest"},
    "BGV": {"preset": "exact"},
    "CKKS": {"preset": "clara"},
}


@pytest.mark.parametrize("he", HE.values(), ids=HE)
def test_the_servers_kit_holds_no_secret_of_a_site(tmp_path: Path, he: dict[str, Any]) -> None:
    federation = Federation.make(tmp_path, he=he)
    words = load_site_kit(federation["a"]).key.secret_material().secret.astype("<u8").tobytes()
    secrets = [words[start : start + 32] for start in range(0, len(words), 4096)]
    for name in ("a", "b", "c"):
        for file in ("tls.key", "signing.key"):
            secrets.append((federation[name] / file).read_bytes().splitlines()[1])
    for file in ("ca.key", "signing.key"):
        secrets.append((federation.provisioner.folder / file).read_bytes().splitlines()[1])
    assert any(secrets[0] in blob for blob in files_of(federation["a"]).values())  # it would be found
    for folder in (federation["server"], federation.provisioner.folder / "server"):
        for name, blob in files_of(folder).items():
            assert not [secret for secret in secrets if secret in blob], name


def test_a_kit_is_valid_from_now_on(tmp_path: Path) -> None:
    before = int(time.time())
    project = Federation.make(tmp_path).provisioner.project
    assert before <= project.issued <= time.time()


def test_a_round(made: Federation) -> None:
    kit = load_server_kit(made["server"])
    aggregator = library.Aggregator(kit.config, kit.key, 0, project=kit.project)
    for name in ("a", "b", "c"):
        aggregator.add(client(made, name).encrypt(STATE, weight=64, round=0))
    mean = client(made, "b").decrypt(aggregator.finish(), like=STATE, round=0)
    np.testing.assert_allclose(mean["w"], STATE["w"], atol=1 / 1023)  # 11 bits, three sites of full weight


def test_a_layout_lets_the_server_know_sizes(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text("{w: [50]}")
    federation = Federation.make(tmp_path, model="shapes.yaml")
    kit = load_server_kit(federation["server"])
    assert kit.project.layout is not None
    assert library.Aggregator(kit.config, kit.key, 0, project=kit.project).layout == kit.project.layout


def test_the_model_that_all_begin_from(tmp_path: Path) -> None:
    np.savez(tmp_path / "initial.npz", **STATE, steps=np.array(4))
    made = Federation.make(tmp_path, initial="initial.npz")
    project = made.provisioner.project
    assert project.base == client(made, "a").base(STATE | {"steps": np.array(9)})
    assert project.layout is not None
    changed = made.change(tmp_path / "changed", lambda made, at, kits: made.rotate(None, at, kits))
    assert changed.provisioner.project.base == project.base


def test_a_model_of_16_bit_floats_fits_its_project(tmp_path: Path) -> None:
    """Sites send it as float32, and that is what the manifest says."""
    state = {name: value.astype(np.float16) for name, value in STATE.items()}
    np.savez(tmp_path / "initial.npz", **state)
    made = Federation.make(tmp_path, initial="initial.npz")
    model = GlobalModel(client(made, "a"), state)
    assert model.layout == made.provisioner.project.layout
    assert model.base == made.provisioner.project.base


def test_more_hosts_than_a_manifest_takes(tmp_path: Path) -> None:
    hosts = [f"host-{number:03}.fl.hospital.example.org" for number in range(300)]
    with pytest.raises(ConfigError, match=r"the server's certificate has \d+ bytes, .*: name fewer hosts"):
        Federation.make(tmp_path, hosts=hosts)


def test_adding_a_site(made: Federation, tmp_path: Path) -> None:
    old = made.provisioner.project
    more = made.change(tmp_path, lambda provisioner, *folders: provisioner.add(("d", "e"), *folders))
    project = more.provisioner.project
    assert (project.serial, project.epoch, project.expires, project.key) == (2, 0, old.expires, old.key)
    assert project.sites[:3] == old.sites
    assert (project.server, project.server_certificate) == (old.server, old.server_certificate)
    assert [site.name for site in project.sites] == ["a", "b", "c", "d", "e"]
    assert {kit.name for kit in more.kits.iterdir()} == {"server", "d", "e"}
    assert load_site_kit(more["e"]).project == load_server_kit(more["server"]).project == project
    assert Certificate.load(Tls.load(more["d"])).expires >= project.expires
    # The old sites accept what the server shows them; the server's kit differs in the manifest only.
    kit = load_site_kit(made["a"])
    assert kit.project.successor((more["server"] / "project.secagg").read_bytes()) == project
    before, after = files_of(made["server"]), files_of(more["server"])
    assert {name for name in before if before[name] != after[name]} == {"project.secagg"}
    aggregator = library.Aggregator(project.config, load_server_kit(more["server"]).key, 0, project=project)
    stayed = library.Client.load(replace(kit, project=project))
    for site in (stayed, client(more, "d"), client(more, "e")):
        aggregator.add(site.encrypt(STATE, weight=1, round=0))
    assert client(more, "d").decrypt(aggregator.finish(), like=STATE)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "'a' is in the project already"),
        (("server",), "cannot be called 'server'"),
        (("d", "d"), "'d' stands twice"),
        (("A",), "'A' stands twice"),
        (("Server",), "'Server' stands twice"),
        (("-rf",), "'-rf': begin it with a letter"),
        ((".secagg-staging-x",), "'.secagg-staging-x': begin it with a letter"),
        (("d/e",), "'d/e'"),
        (("d", "e", "f"), "6 sites are more than aggregation.max_clients 5"),
    ],
)
def test_sites_that_cannot_be_added(made: Federation, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made.provisioner.add(names, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_removing_a_site(made: Federation, tmp_path: Path) -> None:
    fewer = made.change(tmp_path / "fewer", lambda provisioner, *folders: provisioner.remove(("b",), *folders))
    project = fewer.provisioner.project
    assert (project.serial, [site.name for site in project.sites if site.revoked]) == (2, ["b"])
    assert {kit.name for kit in fewer.kits.iterdir()} == {"server"}
    with pytest.raises(IdentityError, match="'b' has been revoked"):
        project.site("b")
    kit = load_server_kit(fewer["server"])
    aggregator = library.Aggregator(kit.config, kit.key, 0, project=kit.project)
    stayed = library.Client.load(replace(load_site_kit(made["a"]), project=project))
    aggregator.add(stayed.encrypt(STATE, weight=1, round=0))
    for name in ("a", "b"):  # under the manifest before
        with pytest.raises(ManifestMismatchError, match="of serial 2: join again"):
            aggregator.add(client(made, name).encrypt(STATE, weight=1, round=0))
    for names, message in ((("b",), "'b' does not take part; these do: a, c"), (("x",), "'x' does not take part")):
        with pytest.raises(ConfigError, match=message):
            fewer.provisioner.remove(names, tmp_path, tmp_path)
    # Its name is never given again.
    with pytest.raises(ConfigError, match="'b' is in the project already, or was"):
        fewer.provisioner.add(("b",), tmp_path, tmp_path)


def test_rotating(made: Federation, tmp_path: Path) -> None:
    def change(provisioner: Provisioner, changed: Path, kits: Path) -> library.Project:
        fewer = tmp_path / "fewer"
        (fewer / "kits").mkdir(parents=True)
        provisioner.remove(("c",), provisioner.folder, fewer / "kits")
        return Provisioner.load(provisioner.folder).rotate(10, changed, kits)

    new = made.change(tmp_path / "new", change)
    old, project = made.provisioner.project, new.provisioner.project
    assert (project.serial, project.epoch, project.authority) == (3, 1, old.authority)
    assert project.key != old.key
    assert project.expires - project.issued == 10 * 86_400
    assert {kit.name for kit in new.kits.iterdir()} == {"server", "a", "b"}
    for mine, theirs in zip((old.server, *old.sites), (project.server, *project.sites), strict=True):
        renewed = not theirs.revoked
        assert (mine.public != theirs.public, mine.certificate != theirs.certificate) == (renewed, renewed)
    before, after = (Certificate.load(Tls.load(federation["server"])) for federation in (made, new))
    assert set(before.hosts) == set(after.hosts)
    assert (before.der, after.der) == (old.server_certificate, project.server_certificate)
    assert {path.name for path in new.provisioner.folder.glob("he-client-*")} == {"he-client-0.key", "he-client-1.key"}

    # The old epoch is refused by the new server, and the new one by the old.
    update = client(made, "a").encrypt(STATE, weight=1, round=0)
    kit = load_server_kit(new["server"])
    with pytest.raises(KeyMismatchError, match="epoch 0 of the key, expected epoch 1"):
        library.Aggregator(kit.config, kit.key, 0, project=kit.project).add(update)
    kit = load_server_kit(made["server"])
    with pytest.raises(KeyMismatchError, match="epoch 1 of the key, expected epoch 0"):
        library.Aggregator(kit.config, kit.key, 0, project=kit.project).add(
            client(new, "a").encrypt(STATE, weight=1, round=0)
        )


def test_kits_do_not_outlive_the_authority(made: Federation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kits of 5000 days would outlive the authority of project brain"):
        made.provisioner.rotate(5000, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rotating_keeps_the_validity(made: Federation, tmp_path: Path) -> None:
    project = made.change(
        tmp_path, lambda provisioner, *folders: provisioner.rotate(None, *folders)
    ).provisioner.project
    assert project.expires - project.issued == 365 * 86_400


def test_rotating_late_keeps_the_validity(made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that was issued anew, when a site was removed, is valid for less; the project is not."""
    later = time.time() + 360 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    fewer = made.change(tmp_path / "fewer", lambda provisioner, *folders: provisioner.remove(("b",), *folders))
    assert fewer.provisioner.project.expires == made.provisioner.project.expires
    project = fewer.change(
        tmp_path / "renewed", lambda provisioner, *folders: provisioner.rotate(None, *folders)
    ).provisioner.project
    assert project.expires - project.issued == 365 * 86_400


def test_an_expired_project_is_rotated_only(made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 400 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(ConfigError, match=r"project brain has expired; `secagg rotate`"):
        made.provisioner.add(("d",), tmp_path, tmp_path)
    project = made.change(
        tmp_path, lambda provisioner, *folders: provisioner.rotate(None, *folders)
    ).provisioner.project
    project.check_time()


@pytest.mark.parametrize("file", ["project.secagg", "signing.key", "he-client-0.key"])
def test_a_provisioners_folder_that_is_damaged(federation: Federation, file: str) -> None:
    path = federation.provisioner.folder / file
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(KeyFileError):
        Provisioner.load(path.parent)
    path.unlink()
    with pytest.raises(KeyFileError, match=file):
        Provisioner.load(path.parent)


def test_a_provisioners_folder_with_the_keys_of_another(federation: Federation, tmp_path: Path) -> None:
    other = Federation.make(tmp_path / "other")
    for file in ("signing.key", "he-client-0.key"):
        path = federation.provisioner.folder / file
        own = path.read_bytes()
        path.write_bytes((other.provisioner.folder / file).read_bytes())
        with pytest.raises(KeyFileError):
            Provisioner.load(path.parent)
        path.write_bytes(own)
    Provisioner.load(path.parent)


MIXED = {
    "manifest": ("project.secagg", "is not that of project brain"),
    "signing key": ("signing.key", "which the manifest gives to none of"),
    "HE key": ("he-client.key", "is not that of project brain"),
}


@pytest.mark.parametrize(("file", "message"), MIXED.values(), ids=MIXED)
def test_a_kit_with_a_file_of_another_project(federation: Federation, tmp_path: Path, file: str, message: str) -> None:
    other = Federation.make(tmp_path / "other")
    (federation["a"] / file).write_bytes((other["a"] / file).read_bytes())
    with pytest.raises(KeyFileError, match=message):
        load_kit(federation["a"])


def test_a_kit_with_another_configuration(federation: Federation) -> None:
    path = federation["a"] / "federation.yaml"
    path.write_text(path.read_text().replace("max_weight: 64", "max_weight: 65"))
    with pytest.raises(KeyFileError, match="is not the configuration that the manifest of project brain holds"):
        load_site_kit(federation["a"])


@pytest.mark.parametrize("file", ["federation.yaml", "project.secagg", "signing.key", "he-client.key"])
def test_a_kit_that_lacks_a_file(federation: Federation, file: str) -> None:
    (federation["a"] / file).unlink()
    with pytest.raises((KeyFileError, ConfigError), match=file):
        load_site_kit(federation["a"])


def test_a_kit_of_the_other_role(made: Federation, federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"a is the kit of a site; give the server's"):
        load_server_kit(made["a"])
    with pytest.raises(KeyFileError, match=r"is the server's kit; give that of a site"):
        load_site_kit(made["server"])
    (federation["server"] / "he-server.key").write_bytes((made["a"] / "he-client.key").read_bytes())
    with pytest.raises(KeyFileError, match=r"a server key \(he-server.key\) is needed"):
        load_server_kit(federation["server"])
    with pytest.raises(KeyFileError, match="no kit"):
        is_server_kit(tmp_path / "nothing")


def test_a_site_keeps_a_later_manifest(made: Federation, federation: Federation, tmp_path: Path) -> None:
    more = made.change(tmp_path / "more", lambda provisioner, *folders: provisioner.add(("d",), *folders))
    first, second = ((kits["server"] / "project.secagg").read_bytes() for kits in (made, more))
    kit = load_site_kit(federation["a"])
    assert kit.store_manifest(first).project.serial == 1
    assert kit.store_manifest(second).project.serial == 2
    kit = load_site_kit(federation["a"])
    assert kit.project.serial == 2
    with pytest.raises(VerificationError, match="serial 1"):
        kit.store_manifest(first)
    stranger = Federation.make(tmp_path / "stranger")
    with pytest.raises(SignatureError, match="not of the authority"):
        kit.store_manifest((stranger["server"] / "project.secagg").read_bytes())
    rotated = more.change(tmp_path / "rotated", lambda provisioner, *folders: provisioner.rotate(None, *folders))
    with pytest.raises(KeyMismatchError, match="epoch 1, this kit has that of epoch 0: unpack the newest kit of a"):
        kit.store_manifest((rotated["server"] / "project.secagg").read_bytes())
    assert load_site_kit(federation["a"]).project.serial == 2
    newer = rotated["a"] / "project.secagg"  # a newer kit, unpacked while this one was in use
    shutil.copyfile(newer, federation["a"] / "project.secagg")
    with pytest.raises(VerificationError, match="serial 2, an earlier one had 3"):
        kit.store_manifest(second)
    assert (federation["a"] / "project.secagg").read_bytes() == newer.read_bytes()


def test_the_whole_way_without_the_command(tmp_path: Path) -> None:
    config = library.Config.from_dict({name: PROJECT[name] for name in ("he", "aggregation")})
    file = setup.ProjectFile("brain", config, ("b", "a", "c"))
    with pytest.raises(ConfigError, match="the passphrase has 5 characters; use 12 or more"):
        setup.provision(file, tmp_path / "kits", "short")
    assert not (tmp_path / "kits").exists()
    made = setup.provision(file, tmp_path / "kits")
    assert [path.name for path in made.files] == ["server.kit", "b.kit", "a.kit", "c.kit"]
    assert made.passphrases is not None
    passphrases = dict(line.split(" ", 1) for line in made.passphrases.read_text().splitlines())
    kit = setup.install(setup.unpack(made.files[1], passphrases["b.kit"]), tmp_path / "b")
    assert (kit.name, kit.project) == ("b", made.project)
    with pytest.raises(ConfigError, match="the passphrase has 5 characters"):
        setup.change_kits(tmp_path / "kits", "rotate", lambda it, *folders: it.rotate(None, *folders), "short")
    changed = setup.change_kits(tmp_path / "kits", "remove b", lambda it, *folders: it.remove(("b",), *folders))
    assert [path.name for path in changed.files] == ["server.kit"]
    assert (changed.project.serial, changed.authority) == (2, made.authority)
    assert not made.files[1].exists()


def test_the_face_has_what_it_names() -> None:
    for name in setup.__all__:
        assert callable(getattr(setup, name))
    with pytest.raises(AttributeError):
        _ = setup.nothing


def test_a_task_is_in_all_kits(tmp_path: Path) -> None:
    """And stays there, when sites come and keys are renewed."""
    task = {"patch": [96, 96, 64], "labels": ["background", "spleen"]}
    made = Federation.make(tmp_path, task=task)
    assert Project.load(made["a"] / "project.secagg").task == task
    later = made.change(tmp_path / "later", lambda provisioner, *folders: provisioner.add(("d",), *folders))
    newest = later.change(tmp_path / "newest", lambda provisioner, *folders: provisioner.rotate(None, *folders))
    assert {str(Project.load(kit / "project.secagg").task) for kit in newest.kits.iterdir()} == {
        str(dict(sorted(task.items())))
    }
