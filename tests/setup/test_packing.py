"""Kits as files: what is packed is unpacked, and nothing else."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
from provisioned import Federation, files_of

from secagg.errors import KeyFileError
from secagg.setup.packing import pack, read_archive, unpack
from secagg.trust.kit_files import SITE_FILES

PASSPHRASE = "correct horse battery staple"


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
    "inside": (hostile("sub/he-client.key"), "'sub/he-client.key', which no kit has"),
    "dotted": (hostile("./he-client.key"), "'./he-client.key', which no kit has"),
    "another name": (hostile("he-client-0.key"), "'he-client-0.key', which no kit has"),
    "symbolic link": (hostile("he-client.key", tarfile.SYMTYPE, "/etc/passwd"), "'he-client.key', which no kit has"),
    "hard link": (hostile("he-client.key", tarfile.LNKTYPE, "tls.key"), "'he-client.key', which no kit has"),
    "folder": (hostile("he-client.key", tarfile.DIRTYPE), "'he-client.key', which no kit has"),
    "pipe": (hostile("he-client.key", tarfile.FIFOTYPE), "'he-client.key', which no kit has"),
    "twice": (hostile("ca.crt"), "ca.crt twice"),
    "of both roles": (hostile("he-server.key"), "it holds both he-server.key and he-client.key"),
}


@pytest.mark.parametrize(("member", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_archives(made: Federation, member: tarfile.TarInfo, message: str) -> None:
    files = files_of(made["a"])
    replaced = member.name == "he-client.key"
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
        (whole[: len(whole) // 4], ""),  # a good part of its end is padding
        (gzip.compress(whole), ""),
    ):
        with pytest.raises(KeyFileError, match=f"opens, but is not a kit: .*{message}"):
            read_archive(archive, path)
