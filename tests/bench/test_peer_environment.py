"""The environment of the peers is made once, whole or not at all, and never in the place of something else."""

from __future__ import annotations

import pytest

from secagg.bench.peers import environment as module
from secagg.bench.peers.environment import environment
from secagg.errors import BackendUnavailableError, ConfigError, StorageError


class Steps:
    """Stands for what takes long: makes an empty environment's folders, installs nothing."""

    def __init__(self, folder):
        self.folder, self.commands, self.fails = folder, [], None

    def __call__(self, command):
        self.commands.append(command)
        if "venv" in command:
            (self.folder / "bin").mkdir()
            (self.folder / "lib" / "python3" / "site-packages").mkdir(parents=True)
        elif self.fails:
            raise self.fails


def made_in(folder=None):
    with environment(folder) as python:
        return python


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "env"


@pytest.fixture
def steps(folder, monkeypatch):
    made = Steps(folder)
    monkeypatch.setattr(module, "_run", made)
    return made


def test_made_once(folder, steps):
    assert made_in(folder) == folder / "bin" / "python"
    made = len(steps.commands)
    assert made >= 2
    assert all(pin in steps.commands[1] for pin in module.PINS)
    linked = {path.name for path in (folder / "lib" / "python3" / "site-packages").iterdir()}
    assert linked >= {"secagg", "secagg_ext"}
    assert any(name.startswith("secagg-") and name.endswith(".dist-info") for name in linked)
    made_in(folder)
    assert len(steps.commands) == made


def test_for_one_command(folder, steps):
    """Else the code under one that measures would change."""
    with (
        environment(folder),
        pytest.raises(ConfigError, match=r"another command measures in .*: wait for it"),
    ):
        made_in(folder)
    made_in(folder)


def test_links_are_renewed(folder, steps):
    """Another checkout or version may run the command."""
    made_in(folder)
    packages = folder / "lib" / "python3" / "site-packages"
    (packages / "secagg").unlink()
    (packages / "secagg").symlink_to("/nowhere")
    (packages / "secagg-0.0.1.dist-info").symlink_to("/nowhere")
    made_in(folder)
    assert (packages / "secagg" / "bench").is_dir()
    assert not (packages / "secagg-0.0.1.dist-info").is_symlink()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendUnavailableError("no network"), OSError(28, "full")])
def test_nothing_half_made_stays(folder, steps, error):
    steps.fails = error
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        made_in(folder)
    assert not folder.exists()


def test_half_made_by_a_killed_command(folder, steps):
    folder.mkdir()
    (folder / module._MARK).touch()
    (folder / "bin").mkdir()
    made_in(folder)
    assert len(steps.commands) >= 2


def test_other_pins(folder, steps, monkeypatch):
    made_in(folder)
    made = len(steps.commands)
    monkeypatch.setattr(module, "PINS", ("nvflare[HE]==2.9.1",))
    made_in(folder)
    assert "nvflare[HE]==2.9.1" in steps.commands[made + 1]


def test_a_folder_of_something_else(folder, steps):
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="was not made by this command: name a new folder with --env"):
        made_in(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert not steps.commands


def test_a_file_in_its_place(folder, steps):
    folder.touch()
    with pytest.raises(StorageError, match="cannot make"):
        made_in(folder)
    assert folder.is_file()


def test_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_make", lambda *args: None)
    monkeypatch.setattr(module, "_link", lambda *args: None)
    python = made_in()
    assert python.parts[len(tmp_path.parts)] == "secagg"
    assert python.relative_to(tmp_path / "secagg").parts[0].startswith("bench-peers-")


def test_without_an_index(folder, monkeypatch):
    """A real pip, which finds nothing."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(BackendUnavailableError) as caught:
        made_in(folder)
    assert "a package index that it can reach" in str(caught.value)
    assert "--env FOLDER" in str(caught.value)
    assert str(caught.value).splitlines()[-1].startswith("ERROR: No matching distribution found for ")
    assert not folder.exists()
