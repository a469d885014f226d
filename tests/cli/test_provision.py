"""provision, add-site, remove-site, rotate: what they print, write and return."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from provisioned import PROJECT, Federation, Secagg

from secagg.cli import main
from secagg.cli.provision import EXAMPLE
from secagg.setup.packing import unpack
from secagg.setup.project_file import ProjectFile
from secagg.trust.kit_files import SERVER_FILES, SITE_FILES
from secagg.trust.project import Project

PASSPHRASE = "correct horse battery staple"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def noted(folder: Path) -> dict[str, str]:
    """Passphrases by kit."""
    lines = (folder / "passphrases.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project.yaml"
    aggregation = PROJECT["aggregation"] | {"min_clients": 2}
    path.write_text(yaml.safe_dump(PROJECT | {"sites": ["a", "b"], "aggregation": aggregation}), encoding="utf-8")
    return path


@pytest.fixture
def kits(federation: Federation) -> Path:
    """What `secagg provision` leaves, the kits aside, which the later commands do not read."""
    out = federation.provisioner.folder.parent / "out"
    out.mkdir(0o700)
    federation.provisioner.folder.rename(out / "authority")
    for name in ("server", "a", "b", "c"):
        (out / f"{name}.kit").write_text(f"old kit of {name}")
    (out / "passphrases.txt").write_text("".join(f"{name}.kit old-{name}\n" for name in ("server", "a", "b", "c")))
    (out / "notes.txt").write_text("mine")
    return out


def test_the_example_of_the_help_has_no_number_to_guess(tmp_path: Path) -> None:
    """It is a project.yaml that can be provisioned, but for the model, which is the user's."""
    text = textwrap.dedent(EXAMPLE.partition("project.yaml:\n")[2])
    path = tmp_path / "project.yaml"
    path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("initial")))
    file = ProjectFile.load(path)
    assert file.config.aggregation.precision == "auto"
    assert "max_abs" not in text
    assert "max_weight" not in text


def test_provision(secagg: Secagg, project: Path, tmp_path: Path) -> None:
    result = secagg("provision", project, "--out", "kits")
    assert result.returncode == 0, result.stderr
    kits = tmp_path / "kits"
    assert {path.name for path in kits.iterdir()} == {"server.kit", "a.kit", "b.kit", "passphrases.txt", "authority"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kits.iterdir() if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (kits, kits / "authority")} == {0o700}
    passphrases = noted(kits)
    assert passphrases.keys() == {"server.kit", "a.kit", "b.kit"}
    assert len(set(passphrases.values())) == 3
    assert min(map(len, passphrases.values())) == 35
    for kit, passphrase in passphrases.items():
        assert passphrase not in result.stdout + result.stderr
        files = unpack(kits / kit, passphrase)
        assert files.keys() == (SERVER_FILES if kit == "server.kit" else SITE_FILES)
    assert "secagg: warning: aggregation.min_clients is 2: of two sites each can compute" in result.stderr
    for words in (
        "kits/server.kit  (no HE secret)",
        "kits/a.kit  (holds the HE key",
        "kits/passphrases.txt",
        "offline",
    ):
        assert words in result.stdout
    again = secagg("provision", project, "--out", "kits")
    assert again.returncode == 2
    assert "kits exists; name a new folder, nothing is overwritten" in again.stderr


def test_one_passphrase_for_all(secagg: Secagg, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    monkeypatch.setenv("SECAGG_PASSPHRASE", "of the environment")
    result = secagg("provision", project, "--out", "kits", "--passphrase-file", "passphrase")
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "kits" / "passphrases.txt").exists()
    assert unpack(tmp_path / "kits" / "a.kit", PASSPHRASE)
    assert "passphrases: the one that was given" in result.stdout
    monkeypatch.setenv("SECAGG_PASSPHRASE", "short")
    short = secagg("provision", project, "--out", "other")
    assert short.returncode == 2
    assert "the passphrase of the variable SECAGG_PASSPHRASE has 5 characters; use 12 or more" in short.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"sites": ["a", "server"]}, 2, "a site cannot be called 'server'"),
        ({"hosts": ["hôte"]}, 2, "host 'hôte': give the name of a host, in ASCII"),
        ({"he": {"lib": "tenseel"}}, 2, "the registered backends are flashe, pyfhel, seal, tenseal"),
        ({"model": "missing.npz"}, 7, "missing.npz"),
    ],
)
def test_nothing_is_left_half_made(
    secagg: Secagg, project: Path, tmp_path: Path, change: dict[str, object], code: int, message: str
) -> None:
    project.write_text(yaml.safe_dump(yaml.safe_load(project.read_text()) | change), encoding="utf-8")
    result = secagg("provision", project, "--out", "kits")
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [project.name]


def test_changes_of_the_members(secagg: Secagg, kits: Path) -> None:
    added = secagg("add-site", kits, "d")
    assert added.returncode == 0, added.stderr
    assert "project brain, serial 2, epoch 0" in added.stdout
    passphrases = noted(kits)
    assert {name: old for name, old in passphrases.items() if old.startswith("old-")} == {
        f"{name}.kit": f"old-{name}" for name in "abc"
    }
    assert unpack(kits / "d.kit", passphrases["d.kit"]).keys() == SITE_FILES
    server = unpack(kits / "server.kit", passphrases["server.kit"])
    assert [site.name for site in Project.from_bytes(server["project.secagg"]).sites] == ["a", "b", "c", "d"]
    assert (kits / "a.kit").read_text() == "old kit of a"
    assert (kits / "notes.txt").read_text() == "mine"

    removed = secagg("remove-site", kits, "b", "c")
    assert removed.returncode == 0, removed.stderr
    assert "from then on it refuses b, c" in removed.stdout
    assert "warning: 2 sites take part, aggregation.min_clients is 3: no round can succeed" in removed.stdout
    assert {path.name for path in kits.glob("*.kit")} == {"server.kit", "a.kit", "d.kit"}
    assert noted(kits).keys() == {"server.kit", "a.kit", "d.kit"}
    server = unpack(kits / "server.kit", noted(kits)["server.kit"])
    revoked = [site.name for site in Project.from_bytes(server["project.secagg"]).sites if site.revoked]
    assert revoked == ["b", "c"]

    rotated = secagg("rotate", kits, "--days", 30)
    assert rotated.returncode == 0, rotated.stderr
    assert "project brain, serial 4, epoch 1" in rotated.stdout
    site = unpack(kits / "a.kit", noted(kits)["a.kit"])
    assert Project.from_bytes(site["project.secagg"]).epoch == 1
    assert {path.name for path in (kits / "authority").glob("he-client-*")} == {"he-client-0.key", "he-client-1.key"}
    for result in (added, removed, rotated):
        assert not [passphrase for passphrase in noted(kits).values() if passphrase in result.stdout + result.stderr]


def test_a_list_without_passphrases_is_no_list(kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which passphrase a kit is encrypted under is all that matters of it here."""
    given = []

    def pack(folder: Path, path: Path, passphrase: str) -> None:
        given.append(passphrase)
        path.write_bytes(b"kit")

    monkeypatch.setattr("secagg.setup.kits.pack", pack)
    monkeypatch.setenv("SECAGG_PASSPHRASE", PASSPHRASE)
    assert main(["add-site", str(kits), "d"]) == 0
    assert noted(kits).keys() == {"a.kit", "b.kit", "c.kit"}
    assert main(["rotate", str(kits)]) == 0
    assert not (kits / "passphrases.txt").exists()
    assert given == [PASSPHRASE] * 7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add-site", "a"), 2, "site 'a' is in the project already"),
        (("add-site", "../d"), 2, "'../d'"),
        (("remove-site", "d"), 2, "site 'd' does not take part; these do: a, b, c"),
        (("rotate", "--days", "0"), 2, "days is 0"),
        (("rotate", "--passphrase-file", "missing"), 3, "cannot read 'missing'"),
    ],
)
def test_what_cannot_be_changed(
    secagg: Secagg, kits: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = files_of(kits)
    result = secagg(arguments[0], kits, *arguments[1:])
    assert result.returncode == code
    assert message in result.stderr
    assert files_of(kits) == before


def test_a_folder_that_is_none(secagg: Secagg, tmp_path: Path) -> None:
    (tmp_path / ".secagg-staging-x").mkdir()
    for folder in (tmp_path, tmp_path / "missing", "/dev/null"):
        result = secagg("rotate", folder)
        assert result.returncode == 3
        assert "name the folder that `secagg provision` made" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".secagg-staging-x"]


def test_an_error_in_the_middle_changes_nothing(kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, packed = files_of(kits), []

    def pack(folder: Path, path: Path, passphrase: str) -> None:
        packed.append(folder.name)
        if len(packed) == 3:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"kit")

    monkeypatch.setattr("secagg.setup.kits.pack", pack)
    assert main(["rotate", str(kits)]) == 1
    assert len(packed) == 3
    assert files_of(kits) == before
    monkeypatch.undo()
    monkeypatch.setattr("secagg.setup.kits.pack", lambda folder, path, passphrase: path.write_bytes(b"kit"))
    assert main(["rotate", str(kits)]) == 0
    assert not list(kits.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", [("provision", "project.yaml", "--out", "new"), ("rotate", "out")])
def test_what_is_stopped_changes_nothing(
    project: Path, kits: Path, tmp_path: Path, command: tuple[str, ...], number: signal.Signals
) -> None:
    before = files_of(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "secagg.cli", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("encrypt "):
                break
        process.send_signal(number)
        assert process.wait(240) == 128 + number
        assert process.stderr.read() == "secagg: stopped\n"
    assert files_of(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
