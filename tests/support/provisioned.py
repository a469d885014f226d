"""A federation as a provisioner leaves it, and the command line to try on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from secagg.setup.project_file import ProjectFile
from secagg.setup.provisioner import Provisioner
from secagg.trust.project import Project

Secagg = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = (
    "plan",
    "provision",
    "add-site",
    "remove-site",
    "rotate",
    "unpack",
    "doctor",
    "serve",
    "site",
    "status",
    "aggregate",
    "demo",
    "bench",
    "leak",
    "inspect",
    "backends",
)

CLARA = {
    "he": {
        "lib": "tenseal",
        "config": {
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [60, 40, 40],
            "scale_bits": 40,
            "scheme": "CKKS",
        },
    },
    "aggregation": {"min_clients": 2, "max_clients": 30, "max_abs": 1.0, "max_weight": 64},
}


@pytest.fixture
def secagg(tmp_path: Path) -> Secagg:
    """Run the command line in a process of its own, in a folder of its own."""

    def run(*arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "secagg.cli", *map(str, arguments)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


#: A project whose keys need no HE library, and nearly no time.
PROJECT = {
    "project": "brain",
    "hosts": ["fl.example.org", "10.0.0.7"],
    "sites": ["a", "b", "c"],
    "he": {"preset": "smallest"},
    "aggregation": {"min_clients": 3, "max_clients": 5, "max_abs": 1.0, "max_weight": 64},
}


@dataclass(frozen=True)
class Federation:
    """An unencrypted federation: the provisioner's folder, and a folder with the kits."""

    provisioner: Provisioner
    kits: Path

    @classmethod
    def make(cls, folder: Path, **changes: Any) -> Federation:
        (folder / "kits").mkdir(parents=True)
        (folder / "project.yaml").write_text(yaml.safe_dump(PROJECT | changes), encoding="utf-8")
        file = ProjectFile.load(folder / "project.yaml")
        return cls(Provisioner.create(file, folder / "authority", folder / "kits"), folder / "kits")

    def __getitem__(self, name: str) -> Path:
        return self.kits / name

    def change(self, folder: Path, change: Callable[[Provisioner, Path, Path], Project]) -> Federation:
        """Return what is made by a change of the provisioner's folder, which is copied first."""
        shutil.copytree(self.provisioner.folder, folder / "authority")
        changed, kits = folder / "changed", folder / "kits"
        changed.mkdir()
        kits.mkdir()
        change(Provisioner.load(folder / "authority"), changed, kits)
        shutil.copytree(changed, folder / "authority", dirs_exist_ok=True)
        return Federation(Provisioner.load(folder / "authority"), kits)


def files_of(kit: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in kit.iterdir()}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation that all tests share; they read it only."""
    return Federation.make(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def federation(made: Federation, tmp_path: Path) -> Federation:
    """The same, in a folder of the test's own."""
    shutil.copytree(made.kits.parent, tmp_path, dirs_exist_ok=True)
    return Federation(Provisioner.load(tmp_path / "authority"), tmp_path / "kits")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(CLARA), encoding="utf-8")
    return path
