"""`secagg unpack`: what it asks for, prints and returns."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from provisioned import Federation, Secagg

from secagg.setup.packing import pack
from secagg.trust.kit import load_site_kit

PASSPHRASE = "correct horse battery staple"


def test_the_command(secagg: Secagg, made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(made["a"], tmp_path / "a.kit", PASSPHRASE)
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
    shutil.copy(tmp_path / "a.kit", tmp_path / "a.kit.part")
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
