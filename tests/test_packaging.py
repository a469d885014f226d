"""What is built and published: the sdist, the wheel, and the wheel imported away from the checkout."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
FOLDERS = ("secagg", "secagg_ext", "integrations", "docs", "tools")


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Distribution:
    """The files that `python -m build` makes, and where the wheel is installed, alone."""

    sdist: Path
    wheel: Path
    target: Path

    @property
    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive if member.isfile()}

    @property
    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def python(self, code: str) -> str:
        """What `code` prints in a Python that sees the target and third-party packages, but not the checkout.

        Without ``site`` (-S) no .pth file is read, so an editable install does not count.
        """
        packages = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        path = os.pathsep.join([str(self.target), *packages])
        return run(
            sys.executable, "-S", "-c", code, cwd=self.target.parent, PYTHONPATH=path, SECAGG_EXT="cython"
        ).strip()


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """Build the sdist, and the wheel from the sdist, from a copy: a build folder in the checkout could hide a fault."""
    room = tmp_path_factory.mktemp("packaging")
    checkout = room / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, checkout)
    leftovers = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=leftovers)
    assert (checkout / "secagg" / "integrations").is_symlink()

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(room / "dist"), cwd=checkout)
    (sdist,) = (room / "dist").glob("*.tar.gz")
    (wheel,) = (room / "dist").glob("*.whl")
    target = room / "installed"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", str(target), str(wheel), cwd=room)
    return Distribution(sdist, wheel, target)


def test_wheel_claims_two_names(distribution: Distribution) -> None:
    top = {name.partition("/")[0] for name in distribution.wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"secagg", "secagg_ext"}


def test_wheel_holds_every_module(distribution: Distribution) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in ("secagg", "secagg/integrations", "secagg_ext")
        for pattern in ("*.py", "*.pyi", "*.proto", "py.typed")
        for path in (ROOT / folder).rglob(pattern)
    }
    assert modules <= distribution.wheel_names
    assert {"secagg/py.typed", "secagg_ext/py.typed", "secagg/integrations/grpc/secagg.proto"} <= modules


def test_wheel_holds_no_sources_of_kernels(distribution: Distribution) -> None:
    assert not [name for name in distribution.wheel_names if name.endswith((".pyx", ".pxd", ".c", ".h"))]
    assert [name for name in distribution.wheel_names if name.startswith("secagg_ext/") and name.endswith(".so")]


def test_entry_points(distribution: Distribution) -> None:
    with zipfile.ZipFile(distribution.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(name).decode())
    assert dict(parser["secagg.backends"]) == {
        "tenseal": "secagg.backends.tenseal_backend:TenSEALBackend",
        "pyfhel": "secagg.backends.pyfhel_backend:PyfhelBackend",
        "seal": "secagg.backends.seal_backend:SEALBackend",
        "flashe": "secagg.backends.flashe_backend:FLASHEBackend",
    }
    assert dict(parser["console_scripts"]) == {"secagg": "secagg.cli.__main__:entry"}


def test_sdist_is_complete(distribution: Distribution) -> None:
    kernels = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "*.pyx", "*.pxd", "*.h", "py.typed")
        for path in (ROOT / "secagg_ext").rglob(pattern)
    }
    assert kernels <= distribution.sdist_names
    assert {*SOURCES, "tools/pyfhel.cmake", "secagg/integrations/grpc/secagg.proto"} - {"MANIFEST.in"} <= (
        distribution.sdist_names
    )
    assert not [name for name in distribution.sdist_names if name.endswith((".so", ".c", ".pyc"))]
    assert not [
        name for name in distribution.sdist_names if name.startswith(("tests/", "benchmarks/", "integrations/"))
    ]


@pytest.mark.parametrize(
    "module",
    [
        "secagg",
        "secagg_ext",
        "secagg.cli",
        "secagg.integrations",
        "secagg.integrations.grpc",
        "secagg.integrations.monai",
    ],
)
def test_imports_away_from_the_checkout(distribution: Distribution, module: str) -> None:
    file = distribution.python(f"import {module}; print({module}.__file__)")
    assert Path(file).is_relative_to(distribution.target)


def test_kernels_are_compiled(distribution: Distribution) -> None:
    assert distribution.python("import secagg_ext; print(secagg_ext.IMPLEMENTATION)") == "cython"


def test_backends_are_found(distribution: Distribution) -> None:
    found = distribution.python("import secagg; print(*sorted(secagg.available_backends()))")
    assert found == "flashe pyfhel seal tenseal"


def test_import_is_light(distribution: Distribution) -> None:
    """`import secagg` loads the standard library and NumPy only."""
    code = "import sys, secagg; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(distribution.python(code).split())
    foreign = loaded - sys.stdlib_module_names - {"secagg", "secagg_ext", "numpy", "__main__"}
    # Compiled Cython code registers helper modules of its own.
    assert not {name for name in foreign if not name.startswith(("_cython_", "cython_runtime"))}


def test_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    """The committed gRPC stubs are what `make proto` generates."""
    outputs = (f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python"))
    run(sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "secagg/integrations/grpc/secagg.proto", cwd=ROOT)
    generated = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(generated) == 3
    for path in generated:
        assert path.read_text() == (ROOT / path.relative_to(tmp_path)).read_text(), f"{path.name}: run `make proto`"
