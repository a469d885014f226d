"""What fuzzing has found worth keeping, once more: without atheris, on whatever kernels are there.

`make fuzz` looks for more; docs and the scripts beside this file say how.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_handlers import CALLERS, OPERATIONS, Script, read_script
from fuzz_mutator import Mutator
from fuzz_parsers import Reader
from fuzz_script_mutator import ScriptMutator
from fuzz_worlds import CORPUS

FOLDER = Path(__file__).parent


def inputs(folder: str) -> list[Path]:
    return sorted((CORPUS / folder).iterdir())


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(str(tmp_path_factory.mktemp("reader")))


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return Script(str(tmp_path_factory.mktemp("script")))


@pytest.mark.parametrize("path", inputs("parsers"), ids=lambda path: path.name)
def test_parsers(reader, path):
    reader(path.read_bytes())


@pytest.mark.parametrize("path", inputs("handlers"), ids=lambda path: path.name)
def test_handlers(script, path):
    script(path.read_bytes())


def change_bytes(data: bytes, max_size: int) -> bytes:
    """In the place of libFuzzer's mutation: a byte changed, put in or taken out."""
    place, rng = random.randrange(len(data) + 1), random.Random(len(data))
    return (data[:place] + rng.randbytes(rng.randrange(3)) + data[place + rng.randrange(3) :])[:max_size]


@pytest.mark.parametrize("seed", range(200))
def test_a_few_mutations(reader, script, seed):
    """The mutators themselves: what they make is read like anything else."""
    random.seed(seed)
    for mutator, target, folder in ((Mutator, reader, "parsers"), (ScriptMutator, script, "handlers")):
        path = random.choice(inputs(folder))
        target(mutator(change_bytes)(path.read_bytes(), 300_000, seed))


def test_the_corpus_is_small():
    files = [path for folder in ("parsers", "handlers") for path in inputs(folder)]
    assert all(path.is_file() for path in files)
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert {path.parent.name for path in files} == {path.name for path in CORPUS.iterdir()}


def test_scripts_of_any_bytes():
    """Every operation and every caller can be named; what is cut is shorter."""
    every = b"".join(bytes([number, number, 1, 0, 255]) for number in range(max(OPERATIONS, len(CALLERS))))
    assert {record.operation for record in read_script(every)} == set(range(OPERATIONS))
    assert read_script(b"\0\0\xff\xff\1")[0].payload == b"\1"
    assert read_script(b"\0\0\0") == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["fuzz_update.py", "fuzz_server.py"])
def test_fuzzing_runs(name, tmp_path):
    """A moment of it; needs atheris."""
    corpus = CORPUS / {"fuzz_update.py": "parsers", "fuzz_server.py": "handlers"}[name]
    command = [sys.executable, FOLDER / name, "-runs=300", f"-artifact_prefix={tmp_path}/", tmp_path, corpus]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 3" in done.stderr
