"""Kits as files: encrypted, opened, and put in the place of older ones."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyrage
import pytest
from provisioned import Federation, Secagg

import secagg as library
from secagg.errors import ConfigError, IdentityError, KeyFileError
from secagg.setup.installing import install
from secagg.setup.packing import pack, read_archive, unpack
from secagg.trust.kit import SERVER_FILES, SITE_FILES, is_secret, load_server_kit, load_site_kit, locked

PASSPHRASE = "correct horse battery staple"
STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}

Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def packed(made: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "a.kit"
    pack(made["a"], path, PASSPHRASE)
    return path


def archive_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def test_what_is_packed_is_unpacked(made: Federation, packed: Path) -> None:
    assert stat.S_IMODE(packed.stat().st_mode) == 0o600
    assert unpack(packed, PASSPHRASE) == files_of(made["a"])
    blob = packed.read_bytes()
    assert not [name for name in SITE_FILES if name.encode() in blob]


def test_another_passphrase(packed: Path) -> None:
    with pytest.raises(KeyFileError, match="does not open: the passphrase is that of another kit, or the file was cut"):
        unpack(packed, PASSPHRASE + ".")


def cut(blob: bytes) -> bytes:
    return blob[:-1]


def cut_header(blob: bytes) -> bytes:
    return blob[:60]


def change(blob: bytes) -> bytes:
    return blob[:-100] + bytes([blob[-100] ^ 1]) + blob[-99:]


def longer(blob: bytes) -> bytes:
    return blob + b"\0"


@pytest.mark.parametrize("damage", [cut, cut_header, change, longer])
def test_a_damaged_kit(packed: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.kit").write_bytes(damage(packed.read_bytes()))
    with pytest.raises(KeyFileError, match="does not open"):
        unpack(tmp_path / "a.kit", PASSPHRASE)


def test_what_is_no_kit(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"age-encryption.org/v2\n"):
        (tmp_path / "a.kit").write_bytes(content)
        with pytest.raises(KeyFileError, match="is not a kit; kits are the files"):
            unpack(tmp_path / "a.kit", PASSPHRASE)
    with pytest.raises(KeyFileError, match="cannot read"):
        unpack(tmp_path, PASSPHRASE)
    with pytest.raises(KeyFileError, match="cannot read"):
        unpack(tmp_path / "missing.kit", PASSPHRASE)


def hostile(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


HOSTILE = {
    "above": (hostile("../evil"), "it holds '../evil', which no kit has"),
    "absolute": (hostile("/tmp/evil"), "'/tmp/evil', which no kit has"),
    "inside": (hostile("sub/client.key"), "'sub/client.key', which no kit has"),
    "dotted": (hostile("./client.key"), "'./client.key', which no kit has"),
    "another name": (hostile("client-0.key"), "'client-0.key', which no kit has"),
    "symbolic link": (hostile("client.key", tarfile.SYMTYPE, "/etc/passwd"), "'client.key', which no kit has"),
    "hard link": (hostile("client.key", tarfile.LNKTYPE, "tls.key"), "'client.key', which no kit has"),
    "folder": (hostile("client.key", tarfile.DIRTYPE), "'client.key', which no kit has"),
    "pipe": (hostile("client.key", tarfile.FIFOTYPE), "'client.key', which no kit has"),
    "twice": (hostile("ca.crt"), "ca.crt twice"),
    "of both roles": (hostile("server.key"), "it holds both server.key and client.key"),
}


@pytest.mark.parametrize(("member", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives(made: Federation, member: tarfile.TarInfo, message: str) -> None:
    files = files_of(made["a"])
    replaced = member.name == "client.key"
    members = [(tarfile.TarInfo(name), data) for name, data in files.items() if not (replaced and name == member.name)]
    archive = archive_of([*members, (member, b"evil" if member.isreg() else b"")])
    with pytest.raises(KeyFileError, match=rf"a\.kit opens, but is not a kit: .*{message}"):
        read_archive(archive, Path("a.kit"))


def test_archives_that_are_none_or_lack_something(made: Federation, tmp_path: Path) -> None:
    path = tmp_path / "a.kit"
    path.write_bytes(pyrage.passphrase.encrypt(b"no archive" * 100, PASSPHRASE))
    with pytest.raises(KeyFileError, match="opens, but is not a kit"):
        unpack(path, PASSPHRASE)
    whole = archive_of([(tarfile.TarInfo(name), data) for name, data in files_of(made["a"]).items()])
    lacking = archive_of(
        [(tarfile.TarInfo(name), data) for name, data in files_of(made["a"]).items() if name != "tls.key"]
    )
    assert read_archive(whole, path) == files_of(made["a"])
    for archive, message in (
        (lacking, r"it lacks tls\.key"),
        (archive_of([]), "it lacks ca.crt"),
        (b"", ""),
        (whole[:1000], ""),
        (whole[: len(whole) // 2], ""),
        (gzip.compress(whole), ""),
    ):
        with pytest.raises(KeyFileError, match=f"opens, but is not a kit: .*{message}"):
            read_archive(archive, path)


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
    for name, data in (("client.key", b"x"), ("project.secagg", b"x"), ("federation.yaml", b"he: {preset: exact}")):
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
        for stem, end in (("client", "key"), ("signing", "key"), ("project", "secagg"))
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
    (federation["a"] / "client.key").write_bytes(b"")
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


def test_the_command(secagg: Secagg, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(packed, tmp_path)
    nobody = secagg("unpack", "a.kit")
    assert nobody.returncode == 2
    assert "set SECAGG_PASSPHRASE or use --passphrase-file" in nobody.stderr
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    result = secagg("unpack", "a.kit", "--passphrase-file", "passphrase")
    assert result.returncode == 0, result.stderr
    assert "a: kit of a in project brain, serial 1, epoch 0, valid until" in result.stdout
    assert PASSPHRASE not in result.stdout + result.stderr
    assert load_site_kit(tmp_path / "a").name == "a"

    monkeypatch.setenv("SECAGG_PASSPHRASE", "another passphrase")
    wrong = secagg("unpack", "a.kit", "--out", "b")
    assert wrong.returncode == 3
    assert "does not open" in wrong.stderr
    assert "another passphrase" not in wrong.stderr
    assert not (tmp_path / "b").exists()
    shutil.copy(packed, tmp_path / "a.kit.part")
    unnamed = secagg("unpack", "a.kit.part")
    assert unnamed.returncode == 3
    assert "name the folder with --out" in unnamed.stderr


@pytest.mark.parametrize(("content", "message"), [(b"one\ntwo\n", "2 lines"), (b"", "0 lines"), (b"\xff\xfe", "UTF-8")])
def test_passphrase_files(secagg: Secagg, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.kit").touch()
    (tmp_path / "passphrase").write_bytes(content)
    result = secagg("unpack", "a.kit", "--passphrase-file", "passphrase")
    assert result.returncode == 3
    assert message in result.stderr
    assert secagg("unpack", "a.kit", "--passphrase-file", "missing").returncode == 3
