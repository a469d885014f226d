"""The import rule: the contracts in pyproject.toml are kept and see what is wrong; here stands what they cannot say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import grimp
import pytest

import secagg

ROOT = Path(__file__).resolve().parent.parent
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
ABOVE_THE_ROLES = ("setup", "server", "site", "integrations", "ui", "demo", "cli")

# A file, an import that must not stand in it, and what the linter says.
FAULTS = {
    "up": ("secagg/wire/container.py", "from .. import server", "secagg.wire is not allowed to import secagg.server"),
    "up, by the face": ("secagg/trust/key.py", "import secagg", "secagg.trust is not allowed to import secagg.client"),
    "up, for types": (
        "secagg/protocol/__init__.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..server import Limits",
        "secagg.protocol is not allowed to import secagg.server",
    ),
    "up, in a function": (
        "secagg/setup/__init__.py",
        "def later():\n    from ..ui import words",
        "secagg.setup is not allowed to import secagg.ui",
    ),
    "beside": (
        "secagg/site/__init__.py",
        "from .. import server",
        "secagg.site is not allowed to import secagg.server",
    ),
    "from the kernels": ("secagg_ext/checks.py", "import secagg", "secagg_ext is not allowed to import secagg"),
    "kernels": ("secagg/wire/container.py", "import secagg_ext", "- secagg.wire.container -> secagg_ext (l."),
    "backend, of the aggregator": (
        "secagg/trust/agreement.py",  # which the aggregator imports
        "from ..backends import base",
        "secagg.aggregator is not allowed to import secagg.backends",
    ),
    "behind a face": (
        "integrations/monai/__init__.py",
        "from secagg.trust.key import KeyMaterial",
        "secagg.integrations is not allowed to import secagg.trust.key",
    ),
    "no face": (
        "integrations/monai/__init__.py",
        "import secagg.wire",
        "secagg.integrations is not allowed to import secagg.wire",
    ),
    "other integration": (
        "integrations/monai/__init__.py",
        "import secagg.integrations.grpc",
        "secagg.integrations.monai is not allowed to import secagg.integrations.grpc",
    ),
    "other backend's library": (
        "secagg/backends/seal_backend.py",
        "import tenseal.sealapi",
        "secagg is not allowed to import tenseal",
    ),
    "gRPC": ("secagg/server/__init__.py", "import grpc.aio", "- secagg.server -> grpc (l."),
    "PyTorch": ("secagg/wire/state_dict.py", "import torch", "- secagg.wire.state_dict -> torch (l."),
    "new room": ("secagg/attic.py", "", "- secagg.attic"),
}


def lint(checkout: Path) -> tuple[int, str]:
    """The exit code of `lint-imports` in a checkout, and what it prints."""
    command = Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources once more, to be spoiled."""
    copy = tmp_path_factory.mktemp("imports") / "checkout"
    for name in ("secagg", "secagg_ext", "integrations"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.c")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def graph(**options: Any) -> grimp.ImportGraph:
    return grimp.build_graph("secagg", "secagg_ext", cache_dir=None, **options)


def test_contracts_are_kept() -> None:
    code, output = lint(ROOT)
    assert code == 0, output


@pytest.mark.parametrize("fault", FAULTS)
def test_contracts_see(checkout: Path, fault: str) -> None:
    name, line, complaint = FAULTS[fault]
    path = checkout / name
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        code, output = lint(checkout)
    finally:
        path.unlink()
        if before is not None:
            path.write_text(before, encoding="utf-8")
    assert code == 1
    assert complaint in output


def test_no_circle() -> None:
    """Not even through the `__init__` of a room, which `acyclic_siblings` does not look at."""
    imports = graph()
    try:
        TopologicalSorter({name: imports.find_modules_directly_imported_by(name) for name in imports.modules}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_face_is_small() -> None:
    assert len(secagg.__all__) <= 15
    assert all(hasattr(secagg, name) for name in secagg.__all__)


def test_face_has_the_roles_and_what_is_below() -> None:
    """The face is the package of all rooms, so that no contract can have it as a layer."""
    reached = graph().find_upstream_modules("secagg")
    assert "secagg.aggregator" in reached
    assert not [name for name in reached if name.split(".")[1:2] and name.split(".")[1] in ABOVE_THE_ROLES]


def test_every_library_has_a_contract() -> None:
    names = ("protected_modules", "forbidden_modules")
    held = {module for contract in LINTER["contracts"] for name in names for module in contract.get(name, ())}
    imports = graph(include_external_packages=True)
    libraries = {name for name in imports.modules if imports.is_module_squashed(name)} - sys.stdlib_module_names
    assert {"cryptography", "torch"} <= libraries
    assert libraries <= held | {"numpy"}
