"""One durable write, one translation of what the operating system refuses, one lock."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import federate
from power import Recorder, fail
from served import Kits, federation

from secagg import Receipt, Update
from secagg.errors import ConfigError, FormatError, KeyFileError, QuotaError, SecAggError, StorageError
from secagg.storage import files
from secagg.storage.files import open_regular, os_errors, replace_file, synchronise
from secagg.storage.locks import locked_folder, open_locked
from secagg.trust.kit import load_site_kit
from secagg.trust.kit_files import PROJECT_FILE

KEPT = (0.0, 0.5)


def write(path: Path, data: Any) -> None:
    with replace_file(path) as file:
        file.write(b"half")
        file.write(data)


def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Note what is synchronised in `folder` from now on."""
    shadow = folder.with_name("shadow")
    shadow.mkdir()
    recorder, fsync = Recorder(folder, shadow), os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        recorder.synchronised(handle)

    monkeypatch.setattr(os, "fsync", noted)
    return recorder


def fails(folder: Path, recorder: Recorder, kept: float) -> None:
    recorder.save()
    fail(folder, folder.with_name("shadow"), random.Random(7), kept)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("before", [None, b"old"])
def test_what_was_replaced_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None, kept: float
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if before is not None:
        (folder / "file").write_bytes(before)
    recorder = recorded(folder, monkeypatch)
    with replace_file(folder / "file") as file:
        file.write(b"new" * 5000)
    fails(folder, recorder, kept)
    assert (folder / "file").read_bytes() == b"new" * 5000


def test_without_the_folder_it_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    recorder = recorded(folder, monkeypatch)
    monkeypatch.setattr(files, "synchronise", lambda path: None)
    with replace_file(folder / "file") as file:
        file.write(b"new")
    fails(folder, recorder, 0.0)
    assert (folder / "file").read_bytes() == b"old"


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("kits"), federation())


@pytest.mark.parametrize("kept", KEPT)
def test_the_newest_manifest_of_a_site_survives(
    kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    """Else a server could play back an earlier one, with a site that has been removed since."""
    folder = tmp_path / "kit"
    folder.mkdir()
    for path in kits["site-1"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    project = kits.provisioner.project
    later = project.successor_of().sign(kits.provisioner.identity)
    recorder = recorded(folder, monkeypatch)
    load_site_kit(folder).store_manifest(later)
    fails(folder, recorder, kept)
    assert (folder / PROJECT_FILE).read_bytes() == later


@pytest.mark.parametrize("kept", KEPT)
def test_receipts_and_signing_keys_survive(
    kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    folder = tmp_path / "kit"
    folder.mkdir()
    kit = load_site_kit(kits["site-1"])
    recorder = recorded(folder, monkeypatch)
    receipt = Receipt(bytes(32), bytes(32), bytes(64)).to_bytes()
    with replace_file(folder / "receipt.secagg") as file:
        file.write(receipt)
    kit.identity.save(folder / "signing.key")
    fails(folder, recorder, kept)
    assert (folder / "receipt.secagg").read_bytes() == receipt
    assert (folder / "signing.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY")


def test_a_folder_that_cannot_be_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "synchronise", refused)
    with (
        pytest.raises(StorageError, match=r"cannot write '.*file': Input/output error"),
        replace_file(tmp_path / "file"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("of_folders", [True, False])
def test_a_file_system_that_does_not_synchronise_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of_folders: bool
) -> None:
    """That is tolerated: what it says of a file, or of a disk that fails, is not."""
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    written = nullcontext() if of_folders and number != errno.EIO else pytest.raises(StorageError)
    with written, replace_file(tmp_path / "file") as file:
        file.write(b"new")
    (tmp_path / "other").touch()
    with nullcontext() if of_folders else pytest.raises(OSError, match=os.strerror(number)):
        synchronise(tmp_path / "other")


@pytest.mark.parametrize("path", [3, None, ["file"], b"file"], ids=repr)
def test_what_is_no_path(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are contents wherever they are given."""
    monkeypatch.chdir(tmp_path)
    update = federate("flashe").site().encrypt({"w": np.ones(3, np.float32)})
    for save in (update.save, federate("flashe").keys.server.save):
        with pytest.raises(StorageError, match=rf"cannot write to {type(path).__name__}; pass a path"):
            save(path)


def test_names_that_the_system_cannot_have(tmp_path: Path) -> None:
    """No locale has a lone surrogate; that of C has no umlaut either."""
    update = federate("flashe").site().encrypt({"w": np.ones(3, np.float32)})
    with pytest.raises(StorageError, match=r"cannot write .*\\ud800"):
        update.save(tmp_path / "\ud800")
    with pytest.raises(StorageError, match=r"cannot write .*\\ud800"):
        federate("flashe").site().encrypt_to(tmp_path / "\ud800", {"w": np.ones(3, np.float32)})
    with pytest.raises(FormatError, match=r"cannot read .*\\ud800"):
        Update.open(tmp_path / "\ud800")
    code = """
        import sys
        from secagg.errors import StorageError
        from secagg.storage.files import replace_file
        assert sys.getfilesystemencoding() == "ascii", sys.getfilesystemencoding()
        try:
            with replace_file("m\\u00fcde"):
                pass
        except StorageError as error:
            print(ascii(str(error)))
        """
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **locale},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=tmp_path,
    )
    assert "cannot write" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(TypeError):
        write(tmp_path / "file", "not bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_permissions(tmp_path: Path, mode: int) -> None:
    with replace_file(tmp_path / "file", mode) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("number", "kind", "raised"),
    [
        (errno.EACCES, StorageError, StorageError),
        (errno.ENOSPC, StorageError, QuotaError),
        (errno.EDQUOT, StorageError, QuotaError),
        (errno.ENOSPC, KeyFileError, KeyFileError),
        (errno.ENOENT, ConfigError, ConfigError),
    ],
)
def test_errors_of_the_system(number: int, kind: type[SecAggError], raised: type[SecAggError]) -> None:
    with pytest.raises(kind) as caught, os_errors(kind, "cannot do it", "try this"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is raised
    assert str(caught.value) == f"cannot do it: {os.strerror(number)}; try this"
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_without_a_number() -> None:
    with pytest.raises(StorageError, match=r"cannot do it: in words$"), os_errors(StorageError, "cannot do it"):
        raise OSError("in words")


@pytest.mark.parametrize("what", ["folder", "pipe", "link to nowhere", "name with a zero"])
def test_only_regular_files_are_read(tmp_path: Path, what: str) -> None:
    path: Path | str = tmp_path / "it"
    if what == "folder":
        Path(path).mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to nowhere":
        Path(path).symlink_to(tmp_path / "nowhere")
    else:
        path = f"{path}\0"
    with pytest.raises(OSError, match="regular|argument|No such|directory"):
        open_regular(path).close()


def test_one_holder_of_a_lock(tmp_path: Path) -> None:
    path, busy = tmp_path / "lock", ConfigError("somebody works here")
    with open_locked(path, os.O_WRONLY | os.O_CREAT, busy):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigError, match="somebody works here"), open_locked(path, os.O_WRONLY, busy):
            pass
    with open_locked(path, os.O_WRONLY, busy):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from secagg.storage.locks import open_locked\n"
        "lock = open_locked(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "with lock: print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError), open_locked(tmp_path / "lock", os.O_WRONLY, ConfigError("busy")):
            pass
        process.kill()
        with open_locked(tmp_path / "lock", os.O_WRONLY):  # waits for it
            pass


def test_locked_folders(tmp_path: Path) -> None:
    busy = StorageError("busy")
    with locked_folder(tmp_path, busy), pytest.raises(StorageError, match="busy"), locked_folder(tmp_path, busy):
        pass
    with locked_folder(tmp_path, StorageError("busy")):
        pass
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory|symbolic"), locked_folder(tmp_path / "link", StorageError("no")):
        pass
