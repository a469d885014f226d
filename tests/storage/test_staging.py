"""Changes of a folder: whole or not at all, also when they are interrupted anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secagg.errors import ConfigError, StorageError
from secagg.storage.staging import change_folder, is_committed, is_empty, new_folder

OLD = {"a": "old a", "sub/b": "old b", "gone": "old gone"}
NEW = {"a": "new a", "sub/b": "new b", "sub/c": "new c"}


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


def change(folder: Path) -> None:
    with change_folder(folder) as stage:
        (stage.folder / "sub").mkdir()
        for name, text in NEW.items():
            (stage.folder / name).write_text(text)
        stage.remove("gone")
        stage.remove("never was")
        assert contents(folder).items() >= OLD.items()


def test_a_change(folder: Path) -> None:
    change(folder)
    assert contents(folder) == NEW
    assert sorted(path.name for path in folder.iterdir()) == ["a", "sub"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_fails_changes_nothing(folder: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with change_folder(folder) as stage:
            (stage.folder / "a").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(folder) == OLD
    assert not is_committed(folder)


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let nothing on the disk change after `step` moves and removals, as if the machine had stopped."""
    left = [step]

    def dying(real):  # type: ignore[no-untyped-def]
        def call(*arguments, **keywords):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] < 0:
                raise SystemExit("power loss")
            return real(*arguments, **keywords)

        return call

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    for name in ("rmdir", "unlink"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("step", range(13))
def test_a_crash_leaves_all_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, step)
        try:
            change(folder)
        except SystemExit:
            ended = False
        else:
            ended = True
    committed = is_committed(folder)
    with change_folder(folder) as stage:  # the next command, which changes something else
        (stage.folder / "d").write_text("d")
    nothing = step <= 1  # first goes what the change was made from
    expected = OLD if nothing else NEW
    assert ended or committed or nothing or contents(folder) == NEW | {"d": "d"}
    assert contents(folder) == expected | {"d": "d"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_one_at_a_time(folder: Path) -> None:
    with (
        change_folder(folder),
        pytest.raises(StorageError, match="another command is changing"),
        change_folder(folder),
    ):
        pytest.fail("two changes at a time")


def test_a_signal_waits_until_all_is_in_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        change(folder)
    assert len(seen) == len(NEW)
    assert contents(folder) == NEW


def test_a_new_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "x" / "new") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "x" / "new").exists()
    assert contents(tmp_path) == {"x/new/a": "a"}
    assert (tmp_path / "x" / "new").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="nothing is overwritten"), new_folder(tmp_path / "x" / "new"):
        pytest.fail("a folder was made twice")


KILLED = """
import os, sys
from pathlib import Path
from secagg.storage.staging import change_folder, new_folder
folder = Path(sys.argv[1])
context = {making}
context.__enter__()
os._exit(0)
"""


def die_in(making: str, folder: Path) -> None:
    """Enter the context in another process, and end that at once."""
    subprocess.run([sys.executable, "-c", KILLED.format(making=making), str(folder)], check=True, timeout=240)


def make_old(folder: Path) -> None:
    for path in folder.glob(".secagg-staging-*"):
        os.utime(path, (0, 0))


def test_what_is_not_swept(folder: Path, tmp_path: Path) -> None:
    """What is not this user's, not a folder, or has just been made and is not locked yet."""
    (tmp_path / "elsewhere").mkdir()
    (folder / ".secagg-staging-link").symlink_to(tmp_path / "elsewhere")
    (folder / ".secagg-staging-young").mkdir()
    others = folder / ".secagg-staging-others"
    others.mkdir()
    os.utime(others, (0, 0))
    if os.geteuid() == 0:
        os.chown(others, 12345, 12345)
    with new_folder(folder / "new"):
        pass
    left = {"link", "young", "others"} if os.geteuid() == 0 else {"link", "young"}
    assert {path.name for path in folder.glob(".secagg-staging-*")} == {f".secagg-staging-{name}" for name in left}
    assert (tmp_path / "elsewhere").is_dir()


def test_what_a_killed_command_leaves_is_removed_by_the_next(folder: Path) -> None:
    (folder / ".secagg-staging-mine").write_text("a file is not theirs")
    for making in ("new_folder(folder / 'killed')", "change_folder(folder)"):  # the second removes what the first left
        die_in(making, folder)
        make_old(folder)
        assert len(list(folder.glob(".secagg-staging-*"))) == 2
    with new_folder(folder / "new") as new:
        assert list(folder.glob(".secagg-staging-*/new")) == [new]
        make_old(folder)
        change(folder)  # leaves alone what is at work
        assert new.is_dir()
    assert sorted(path.name for path in folder.iterdir()) == [".secagg-staging-mine", "a", "new", "sub"]


def test_a_new_folder_that_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert is_empty(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make"), new_folder(tmp_path / "file" / "new"):
        pytest.fail("a folder was made in a file")
