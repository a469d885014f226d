"""The layers: imports go down only. A new module must be given its level here."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import secagg

ROOT = Path(__file__).resolve().parent.parent

# Modules of a level may import each other without going round in a circle.
# A trailing ".*" stands for a package and all that is in it.
LEVELS: dict[int, tuple[str, ...]] = {
    0: ("secagg_ext.*",),
    1: (
        "secagg.scheme.aggregation",
        "secagg.errors",
        "secagg.config",
        "secagg.storage.files",
        "secagg.scheme.lanes",
        "secagg.scheme.noise",
        "secagg.scheme.params",
        "secagg.scheme.presets",
        "secagg.scheme.plugins",
        "secagg.scheme.tensors",
        "secagg.wire.container",
        "secagg.storage.yaml_file",
    ),
    2: (
        "secagg.trust.agreement",
        "secagg.scheme.clear_codec",
        "secagg.scheme.codec",
        "secagg.scheme.keystream",
        "secagg.trust.failures",
        "secagg.scheme.feedback",
        "secagg.scheme.flat_vector",
        "secagg.wire.header",
        "secagg.trust.identity",
        "secagg.scheme.integer_codec",
        "secagg.trust.key",
        "secagg.wire.layout",
        "secagg.trust.tags",
        "secagg.trust.contributions",
        "secagg.trust.sealed_model",
        "secagg.trust.project",
        "secagg.scheme.real_codec",
        "secagg.trust.receipt",
        "secagg.scheme.ring",
        "secagg.wire.state_dict",
        "secagg.wire.tail",
        "secagg.wire.update",
    ),
    3: ("secagg.backends.*",),
    4: ("secagg.aggregator", "secagg.client", "secagg.encryption", "secagg.keygen"),
    5: ("secagg",),
    6: ("secagg.integrations.*",),
    7: ("secagg.cli.*", "secagg.__main__"),
}
KERNELS, KERNEL_USERS, BACKENDS, FACE, INTEGRATIONS = 0, 2, 3, 5, 6

# What a level may import from outside, besides the standard library.
CORE = {"numpy", "yaml", "blake3"}
THIRD_PARTY: dict[int, set[str]] = {
    0: {"numpy"},
    1: CORE,
    2: CORE | {"cryptography"},
    3: CORE | {"cryptography", "tenseal", "Pyfhel", "seal", "zstandard"},
    4: CORE,
    5: CORE,
    6: {"numpy", "torch", "monai", "ignite", "nilearn", "grpc", "grpc_health", "google", "cryptography"}
    | {"prometheus_client"},
    7: {"numpy", "yaml", "torch", "monai", "ignite", "grpc", "matplotlib", "rich", "pyrage"}
    | {"pythonjsonlogger", "prometheus_client"},
}


def level(module: str) -> int | None:
    for number, names in LEVELS.items():
        for name in names:
            package = name.removesuffix(".*")
            if module == package or (name != package and module.startswith(package + ".")):
                return number
    return None


def find_modules() -> dict[str, Path]:
    """Every Python and Cython module of the checkout, by its dotted name."""
    modules = {}
    for folder in ("secagg", "secagg/integrations", "secagg_ext"):  # rglob does not enter the symbolic link by itself
        for path in (ROOT / folder).rglob("*.py*"):
            if path.suffix in (".py", ".pyx"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                modules[name.removesuffix(".__init__")] = path
    return modules


MODULES = find_modules()


def imports(module: str) -> Iterator[tuple[str, int]]:
    """The modules that `module` imports anywhere in its text, and the lines. Cython's own `cimport` is no import."""
    path = MODULES[module]
    if path.suffix == ".pyx":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *base.split(".")] if base else parents)
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield (inside if inside in MODULES else base), node.lineno


def own(module: str) -> Iterator[tuple[str, str]]:
    """What a module imports from this project, each with the place where it does."""
    for name, line in imports(module):
        if name.partition(".")[0] in ("secagg", "secagg_ext"):
            yield name, f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"


def test_every_module_has_a_level() -> None:
    new = [module for module in MODULES if level(module) is None]
    assert not new, "give these a level in LEVELS of tests/test_imports.py"


def test_imports_go_down() -> None:
    imported = [(module, name, where) for module in MODULES for name, where in own(module)]
    assert not [where for _, name, where in imported if level(name) is None]
    assert not [where for module, name, where in imported if (level(name) or 0) > (level(module) or 0)]


def test_no_circle_inside_a_level() -> None:
    graph = {module: {name for name, _ in own(module) if name != module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_only_level_2_imports_the_kernels() -> None:
    others = [module for module in MODULES if level(module) not in (KERNELS, KERNEL_USERS)]
    assert not [where for module in others for name, where in own(module) if level(name) == KERNELS]


def test_aggregator_reaches_no_backend() -> None:
    reached, todo = set(), ["secagg.aggregator"]
    while todo:
        for name, where in own(todo.pop()):
            assert level(name) != BACKENDS, where
            if name not in reached:
                reached.add(name)
                todo.append(name)
    assert "secagg.wire.update" in reached


def test_integrations_import_only_the_public_face() -> None:
    for module in MODULES:
        if level(module) == INTEGRATIONS:
            itself = ".".join(module.split(".")[:3])  # secagg.integrations.<name>
            for name, where in own(module):
                assert name in ("secagg", "secagg.errors") or f"{name}.".startswith(f"{itself}."), where


def test_integrations_and_cli_take_public_names_only() -> None:
    taken = [
        f"{MODULES[module].relative_to(ROOT)}:{node.lineno} takes secagg.{alias.name}"
        for module in MODULES
        if (level(module) or 0) > FACE
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "secagg" and not node.level
        for alias in node.names
        if alias.name not in secagg.__all__ and f"secagg.{alias.name}" not in MODULES
    ]
    assert not taken


def test_public_face_is_small() -> None:
    assert len(secagg.__all__) <= 15
    assert all(hasattr(secagg, name) for name in secagg.__all__)


def test_third_party_imports() -> None:
    for module in MODULES:
        allowed = THIRD_PARTY[level(module) or 0] | {"secagg", "secagg_ext"} | sys.stdlib_module_names
        foreign = {name for name, _ in imports(module) if name.partition(".")[0] not in allowed}
        assert not foreign, f"{module} imports {foreign}"


def test_a_backend_imports_its_own_library_only() -> None:
    libraries = {
        "tenseal": "secagg.backends.tenseal_backend",
        "Pyfhel": "secagg.backends.pyfhel_backend",
        "seal": "secagg.backends.seal_backend",
    }
    for module in MODULES:
        users = {libraries.get(name.partition(".")[0], module) for name, _ in imports(module)}
        assert users <= {module}, f"{module} imports the library of {users - {module}}"
