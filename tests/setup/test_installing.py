"""Kits that are put into a folder, also in the place of older ones."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from provisioned import Federation, files_of

import secagg as library
from secagg.errors import ConfigError, IdentityError, KeyFileError, VerificationError
from secagg.setup.installing import install
from secagg.setup.provisioner import Provisioner
from secagg.storage.staging import change_folder
from secagg.trust.kit import load_server_kit, load_site_kit
from secagg.trust.kit_files import PROJECT_FILE, SERVER_FILES, SITE_FILES, is_secret, locked

STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_modes(made: Federation, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        install(files_of(made["a"]), tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    for path in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if is_secret(path.name) else 0o644 & ~umask)
    assert load_site_kit(tmp_path / "a").name == "a"


def test_an_empty_folder_will_do(made: Federation, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    install(files_of(made["a"]), tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == SITE_FILES


def test_a_kit_that_does_not_fit_together_is_not_written(made: Federation, tmp_path: Path) -> None:
    files = files_of(made["a"]) | {"signing.key": (made["b"] / "signing.key").read_bytes()}
    install(files, tmp_path / "b")  # of b, whose certificate `secagg doctor` looks at
    for name, data in (("he-client.key", b"x"), ("project.secagg", b"x"), ("federation.yaml", b"he: {preset: exact}")):
        with pytest.raises(KeyFileError):
            install(files_of(made["a"]) | {name: data}, tmp_path / "a")
        assert not (tmp_path / "a").exists()


def test_over_an_older_kit(made: Federation, tmp_path: Path) -> None:
    """Rotated twice: each old epoch stays readable, what the site keeps in the folder stays, and no way leads back."""
    kits = [made]
    for number in (1, 2):
        kits.append(
            kits[-1].change(tmp_path / f"{number}", lambda provisioner, *folders: provisioner.rotate(None, *folders))
        )
    out = tmp_path / "out"
    models = []
    for epoch, federation in enumerate(kits):
        install(files_of(federation["a"]), out)
        kit = load_site_kit(out)
        assert (kit.project.epoch, kit.old_epochs) == (epoch, tuple(range(epoch)))
        site = library.Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project)
        site.encrypt_model(tmp_path / f"model-{epoch}", STATE, round=epoch, base=site.base(STATE))
        models.append(tmp_path / f"model-{epoch}")
        (out / "state.json").write_text("mine")
    install(files_of(kits[2]["a"]), out)  # twice is as good as once
    assert (out / "state.json").read_text() == "mine"
    kept = {
        f"{stem}-{epoch}.{end}"
        for stem, end in (("he-client", "key"), ("signing", "key"), ("project", "secagg"))
        for epoch in (0, 1)
    }
    assert {path.name for path in out.iterdir()} == SITE_FILES | kept | {"state.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.glob("*-0.key")} == {0o600}
    for epoch in (0, 1):
        old = load_site_kit(out).old_epoch(epoch)
        assert (old.name, old.project.epoch) == ("a", epoch)
        reader = library.Client(old.config, old.key, old.name, identity=old.identity, project=old.project)
        with library.Update.open(models[epoch]) as model:
            np.testing.assert_array_equal(reader.decrypt_model(model)["w"], STATE["w"])
    with pytest.raises(KeyFileError, match=r"no key of epoch 7 \(earlier epochs: 0, 1\)"):
        load_site_kit(out).old_epoch(7)
    before = files_of(out)
    for federation in kits[:2]:
        with pytest.raises(KeyFileError, match="holds a newer kit, of serial 3, than this one, of serial"):
            install(files_of(federation["a"]), out)
    assert files_of(out) == before


def test_a_kit_of_another_course(made: Federation, tmp_path: Path) -> None:
    """The provisioner's folder was restored from a backup, and has issued serial 2 again, and then 3."""
    first, again = (
        made.change(tmp_path / name, lambda provisioner, *folders, name=name: provisioner.add((name,), *folders))
        for name in ("d", "e")
    )
    later = again.change(tmp_path / "later", lambda provisioner, *folders: provisioner.rotate(None, *folders))
    install(files_of(first["server"]), tmp_path / "server")
    before = files_of(tmp_path / "server")
    for kits in (again, later):
        with pytest.raises(KeyFileError, match=r"cannot replace: .* does not follow the one of serial 2 .* backup"):
            install(files_of(kits["server"]), tmp_path / "server")
    assert files_of(tmp_path / "server") == before
    (again.provisioner.folder / "project.secagg").write_bytes(before["project.secagg"])  # the remedy
    mended = Federation(Provisioner.load(again.provisioner.folder), again.kits)
    follows = mended.change(tmp_path / "mended", lambda provisioner, *folders: provisioner.remove(("b",), *folders))
    install(files_of(follows["server"]), tmp_path / "server")
    assert load_server_kit(tmp_path / "server").project.serial == 3


def test_a_manifest_and_a_newer_kit_at_once(made: Federation, tmp_path: Path) -> None:
    """A site's process keeps what the server shows while `secagg unpack` puts a later manifest there, which stays."""
    older = made.change(tmp_path / "2", lambda provisioner, *folders: provisioner.add(("d",), *folders))
    newer = older.change(tmp_path / "3", lambda provisioner, *folders: provisioner.add(("e",), *folders))
    shown, unpacked = ((kits["server"] / PROJECT_FILE).read_bytes() for kits in (older, newer))
    folder = tmp_path / "a"
    install(files_of(made["a"]), folder)
    kit = load_site_kit(folder)
    with ThreadPoolExecutor(1) as pool:
        with change_folder(folder) as stage:
            (stage.folder / PROJECT_FILE).write_bytes(unpacked)
            stored = pool.submit(kit.store_manifest, shown)
            with pytest.raises(TimeoutError):
                stored.result(0.3)
        with pytest.raises(VerificationError, match="serial 2, an earlier one had 3"):
            stored.result()
    assert (folder / PROJECT_FILE).read_bytes() == unpacked


def test_a_manifest_after_a_kit_that_was_half_unpacked(made: Federation, tmp_path: Path) -> None:
    """What was interrupted is carried out first, not over the later manifest."""
    older = made.change(tmp_path / "2", lambda provisioner, *folders: provisioner.add(("d",), *folders))
    newer = older.change(tmp_path / "3", lambda provisioner, *folders: provisioner.add(("e",), *folders))
    unpacked, shown = ((kits["server"] / PROJECT_FILE).read_bytes() for kits in (older, newer))
    folder = tmp_path / "a"
    install(files_of(made["a"]), folder)
    kit = load_site_kit(folder)
    left = folder / ".secagg-staged" / "files"
    left.mkdir(parents=True)
    (left / PROJECT_FILE).write_bytes(unpacked)
    kit.store_manifest(shown)
    assert not left.parent.exists()
    install(files_of(made["a"]) | {PROJECT_FILE: shown}, folder)
    assert (folder / PROJECT_FILE).read_bytes() == shown


def test_a_site_at_work_is_left_alone(made: Federation, federation: Federation) -> None:
    files = {path.name: path.read_bytes() for path in made["a"].iterdir()}
    with locked(federation["a"]), pytest.raises(ConfigError, match="another `secagg site` is at work"):
        install(files, federation["a"])
    install(files, federation["a"])


def test_the_servers_old_key_is_not_kept(made: Federation, tmp_path: Path) -> None:
    rotated = made.change(tmp_path / "new", lambda provisioner, *folders: provisioner.rotate(None, *folders))
    for federation in (made, rotated):
        install(files_of(federation["server"]), tmp_path / "server")
    assert {path.name for path in (tmp_path / "server").iterdir()} == SERVER_FILES
    assert load_server_kit(tmp_path / "server").project.epoch == 1


def test_what_may_not_be_replaced(made: Federation, federation: Federation, tmp_path: Path) -> None:
    stranger = Federation.make(tmp_path / "stranger")
    for folder, message in (
        (federation["b"], "holds a kit of b, this one is of a; name another folder"),
        (federation["server"], "holds a kit of server, this one is of a"),
        (stranger["a"], "holds a kit of project brain of another provisioner"),
        (tmp_path, "exists, and is not a kit's folder"),
        (federation["a"] / "ca.crt", "exists, and is not a kit's folder"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(KeyFileError, match=message):
            install(files_of(made["a"]), folder)
        assert sorted(tmp_path.rglob("*")) == before
    # An old HE key that is damaged is not thrown away.
    rotated = made.change(tmp_path / "new", lambda provisioner, *folders: provisioner.rotate(None, *folders))
    (federation["a"] / "he-client.key").write_bytes(b"")
    with pytest.raises(KeyFileError, match=r"client\.key"):
        install(files_of(rotated["a"]), federation["a"])
    # A kit of the same epoch mends it.
    install(files_of(made["a"]), federation["a"])
    assert load_site_kit(federation["a"]).key.fingerprint == made.provisioner.project.key


def test_a_revoked_site(made: Federation, tmp_path: Path) -> None:
    fewer = made.change(tmp_path / "fewer", lambda provisioner, *folders: provisioner.remove(("a",), *folders))
    files = files_of(made["a"]) | {"project.secagg": (fewer["server"] / "project.secagg").read_bytes()}
    with pytest.raises(IdentityError, match="'a' has been revoked"):
        install(files, tmp_path / "a")
