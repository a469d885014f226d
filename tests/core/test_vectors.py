"""The checked-in vectors: good ones pin decoding, bad ones have one fault each and the error that it raises."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from federation import Federation

import secagg
from secagg import errors

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
INDEX = json.loads((FOLDER / "index.json").read_text())
GOOD = INDEX["good"]
KEYS = secagg.KeyPair(*(secagg.load_key(FOLDER / name) for name in GOOD["keys"]))
CONFIGS = list(INDEX["configs"])


def federation(which, lib="tenseal"):
    return Federation(secagg.Config.from_dict(INDEX["configs"][which]), KEYS).using(lib)


def read(name):
    return secagg.Update.from_bytes((FOLDER / name).read_bytes())


def test_keys():
    assert KEYS.client.fingerprint == KEYS.server.fingerprint == INDEX["fingerprint"]
    assert KEYS.client.server == KEYS.server


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", CONFIGS)
def test_the_sum_of_the_updates_is_the_aggregate(which):
    """Addition is exact: to the byte."""
    aggregator = federation(which).aggregator(INDEX["round"])
    for name in reversed(GOOD[which]["updates"]):
        with secagg.Update.open(FOLDER / name) as update:
            aggregator.add(update)
    assert aggregator.finish().to_bytes() == (FOLDER / GOOD[which]["aggregate"]).read_bytes()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", CONFIGS)
def test_the_aggregate_decrypts_to_the_mean(lib, which):
    group, weights = federation(which, lib), GOOD["weights"]
    mean = group.site().decrypt(read(GOOD[which]["aggregate"]))
    assert {name: str(value.dtype) for name, value in mean.items()} == GOOD["dtypes"]
    for name, value in mean.items():
        expected = np.array(GOOD["mean"][name])
        assert value.shape == expected.shape
        assert (np.abs(value - expected) <= group.tolerance(weights, expected, str(value.dtype))).all()


@pytest.mark.parametrize("vector", INDEX["bad"], ids=lambda vector: vector["file"].removesuffix(".secagg"))
def test_a_fault(vector):
    """The error of the index, from a file and from memory, and the sum without it."""
    group, path = federation(vector["config"]), FOLDER / vector["file"]
    error = getattr(errors, vector["error"])
    if vector["reads"] == "load_key":
        with pytest.raises(error) as caught:
            secagg.load_key(path)
    elif vector["reads"] == "decrypt":
        with pytest.raises(error) as caught:
            group.site().decrypt(read(path))
    else:
        names = GOOD[vector["config"]]
        aggregator = group.aggregator(INDEX["round"])
        aggregator.add(read(names["updates"][1]))
        with pytest.raises(error), secagg.Update.open(path) as update:
            aggregator.add(update)
        with pytest.raises(error) as caught:
            aggregator.add(read(path))
        aggregator.add(read(names["updates"][0]))
        assert aggregator.finish().to_bytes() == (FOLDER / names["aggregate"]).read_bytes()
    assert caught.type is error


def test_the_index_lists_every_file():
    listed = {vector["file"] for vector in INDEX["bad"]} | set(GOOD["keys"])
    for which in CONFIGS:
        listed |= {*GOOD[which]["updates"], GOOD[which]["aggregate"]}
    assert listed == {path.name for path in FOLDER.glob("*.secagg")}
    assert len({(vector["file"], vector["fault"]) for vector in INDEX["bad"]}) == len(INDEX["bad"])


def test_the_generator_makes_these_files(tmp_path):
    runpy.run_path(str(FOLDER / "make.py"))["write"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.name in made}
    assert len(made) == len(INDEX["bad"]) + 1


def test_fresh_good_files_would_do(tmp_path):
    """What `--fresh` writes is read like the files that are checked in."""
    copy = tmp_path / "tests" / "vectors"
    shutil.copytree(FOLDER, copy)
    shutil.copytree(
        FOLDER.parent / "support", tmp_path / "tests" / "support", ignore=shutil.ignore_patterns("__pycache__")
    )
    make = runpy.run_path(str(copy / "make.py"))
    make["make_good"]()
    make["write"](copy)
    key = secagg.load_key(copy / "good-client-key.secagg")
    assert key.fingerprint != INDEX["fingerprint"]
    site = secagg.Client(federation("all").config, key, "site")
    mean = site.decrypt(secagg.Update.from_bytes((copy / "good-aggregate.secagg").read_bytes()))
    assert abs(float(mean["scale"]) - GOOD["mean"]["scale"]) < 0.01
