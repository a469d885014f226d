"""Which implementation runs, and that the two look the same from outside."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import secagg_ext

PACKAGE = Path(secagg_ext.__file__).parent
COMPILED = ["lanes", "macs", "seeds", "tensors", "word_macs", "words"]
REPORT = "import secagg_ext; print(secagg_ext.IMPLEMENTATION, secagg_ext.add_words.__module__)"


def run(asked, root=PACKAGE.parent):
    """A fresh Python that imports the package under `root`, with SECAGG_EXT set as asked."""
    environment = {name: value for name, value in os.environ.items() if name != "SECAGG_EXT"}
    if asked is not None:
        environment["SECAGG_EXT"] = asked
    environment["PYTHONPATH"] = str(root)
    command = [sys.executable, "-W", "error", "-c", REPORT]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def unbuilt(tmp_path):
    """A copy of the package without its compiled modules."""
    shutil.copytree(PACKAGE, tmp_path / "secagg_ext", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    return tmp_path


@pytest.mark.parametrize(("asked", "given"), [("numpy", "numpy"), ("cython", "cython"), (None, "cython")])
def test_the_choice_is_obeyed(asked, given):
    result = run(asked)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [given, f"secagg_ext._{given}.words"]


@pytest.mark.parametrize("asked", ["Cython", "c", ""])
def test_another_word_is_an_error_that_names_the_two(asked):
    result = run(asked)
    assert result.returncode != 0
    assert f"ImportError: SECAGG_EXT={asked!r}: choose 'cython' or 'numpy'" in result.stderr


def test_without_a_build_numpy_runs(unbuilt):
    result = run(None, unbuilt)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["numpy", "secagg_ext._numpy.words"]


def test_without_a_build_cython_is_refused_with_the_remedy(unbuilt):
    result = run("cython", unbuilt)
    assert result.returncode != 0
    assert "ImportError: SECAGG_EXT=cython" in result.stderr
    assert "python setup.py build_ext --inplace" in result.stderr


@pytest.mark.parametrize("asked", [None, "cython"])
def test_a_broken_build_is_not_replaced_in_silence(unbuilt, asked):
    for name in COMPILED:
        (unbuilt / "secagg_ext" / "_cython" / (name + sysconfig.get_config_var("EXT_SUFFIX"))).write_bytes(b"")
    result = run(asked, unbuilt)
    assert result.returncode != 0
    assert "ImportError" in result.stderr


def test_exports(ext):
    kernels = set(secagg_ext.__all__) - {"IMPLEMENTATION"}
    assert set(ext.__all__) == kernels
    assert all(callable(getattr(ext, name)) for name in kernels)


@pytest.mark.parametrize("module", COMPILED)
def test_both_implementations_and_the_stub_have_one_signature(module):
    import secagg_ext._cython as compiled
    import secagg_ext._numpy as plain

    stub = ast.parse((PACKAGE / "_cython" / f"{module}.pyi").read_text())
    functions = [node for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        arguments = [argument.arg for argument in function.args.args]
        defaults = [ast.literal_eval(default) for default in function.args.defaults]
        for implementation in (compiled, plain):
            parameters = inspect.signature(getattr(implementation, function.name)).parameters.values()
            assert [each.name for each in parameters] == arguments
            assert [each.default for each in parameters if each.default is not each.empty] == defaults
