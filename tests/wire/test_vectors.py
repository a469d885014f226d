"""The checked-in vectors: good ones pin decoding, bad ones have one fault each and the error that it raises."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from container import fraction_bits
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import secagg
from secagg import errors
from secagg.scheme.codec import codec_for
from secagg.trust.key import KeyPair

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
INDEX = json.loads((FOLDER / "index.json").read_text())
GOOD = INDEX["good"]
CONFIGS = list(INDEX["configs"])
READERS = [(which, lib) for which in CONFIGS for lib in GOOD[which]["libs"]]
EXACT = [(which, lib) for which, lib in READERS if "sums" in GOOD[which]]
#: Sums that are wrong, and could be those of other updates.
TAG_ALONE = [
    *(vector["file"] for vector in INDEX["bad"] if re.search("-sum-(word-)?(tag|bod)", vector["file"])),
    *(
        f"bad-{name}.secagg"
        for name in (
            "seeded-sum-shifted",
            "bgv-whole-sum-doubled",
            "bgv-whole-sum-multiple",
            "flashe-sum-value",
            "flashe-sum-weight",
            "partly-sum-clear",
            "bgv-partly-sum-clear",
            "bgv-partly-sum-clear-unsigned",
            "bgv-partly-sum-clear-padding",
        )
    ),
]
#: Half a unit of the last place, relative; float16 is rounded to float32 on the way.
ROUNDING = {"float16": 2.0**-11 + 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}


@cache
def config_of(which, lib=None):
    block = INDEX["configs"][which]
    return secagg.Config.from_dict(block | {"he": block["he"] | ({"lib": lib} if lib else {})})


@cache
def keys_of(which):
    return KeyPair(*(secagg.load_key(FOLDER / name) for name in GOOD[which]["keys"]))


@cache
def project_of(which):
    return secagg.Project.load(FOLDER / GOOD[which]["project"]) if "project" in GOOD[which] else None


def identity_of(name):
    return secagg.Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(INDEX["identities"][name])))


def site_of(which, lib=None, project=None):
    project = project or project_of(which)
    signs = {"identity": identity_of("site-1"), "project": project} if project else {}
    return secagg.Client(config_of(which, lib), keys_of(which).client, "site-1", **signs)


def aggregator_of(which):
    config, key = config_of(which), keys_of(which).server
    return secagg.Aggregator(config, key, INDEX["round"], base=base_of(which), project=project_of(which))


def base_of(which):
    return bytes.fromhex(GOOD[which]["base"]) if "base" in GOOD[which] else None


def read(name):
    return secagg.Update.from_bytes((FOLDER / name).read_bytes())


def decrypt(which, name, lib=None):
    """All that a site knows is held against the aggregate."""
    receipt = GOOD[which].get("receipt")
    return site_of(which, lib).decrypt(
        read(name),
        round=INDEX["round"] if receipt else None,
        base=base_of(which),
        receipt=secagg.Receipt.from_bytes((FOLDER / receipt).read_bytes()) if receipt else None,
    )


def open_project(path, which):
    """What a site does that is given another manifest than the one that it has."""
    project = project_of(which).successor(path.read_bytes())
    project.check_time()
    return site_of(which, project=project)


def check_receipt(path, which):
    receipt = secagg.Receipt.from_bytes(path.read_bytes())
    receipt.check(read(GOOD[which]["updates"][0]), project_of(which))


#: What reads a file, other than what adds it.
READS = {
    "load_key": lambda path, which: secagg.load_key(path),
    "decrypt": lambda path, which, lib=None: decrypt(which, path.name, lib),
    "decrypt_model": lambda path, which, lib=None: site_of(which, lib).decrypt_model(read(path.name)),
    "project": open_project,
    "receipt": check_receipt,
}


def test_the_configs_are_written_in_full():
    """What a configuration may leave out stands in the vectors, so that another reader plans nothing."""
    for which, config in INDEX["configs"].items():
        assert config_of(which).to_dict() == config


@pytest.mark.parametrize("which", CONFIGS)
def test_keys(which):
    client, server = keys_of(which)
    assert client.fingerprint == server.fingerprint == GOOD[which]["fingerprint"]
    assert client.server == server
    assert server.epoch == INDEX["epoch"]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", CONFIGS)
def test_the_sum_of_the_updates_is_the_aggregate(which):
    """Addition is exact: to the byte."""
    aggregator = aggregator_of(which)
    for name in reversed(GOOD[which]["updates"]):
        with secagg.Update.open(FOLDER / name) as update:
            aggregator.add(update)
    assert aggregator.finish().to_bytes() == (FOLDER / GOOD[which]["aggregate"]).read_bytes()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("which", "lib"), READERS)
def test_the_aggregate_decrypts_to_the_mean(which, lib):
    """Within what noise, or rounding to integers, and the dtype explain."""
    good, aggregation = GOOD[which], config_of(which).aggregation
    mean = decrypt(which, good["aggregate"], lib)
    for name, first in good["tied"].items():
        assert mean.pop(name) is mean[first]
    assert {name: str(value.dtype) for name, value in mean.items()} == good["dtypes"]
    sites, weight_sum = len(good["weights"]), sum(good["weights"]) / aggregation.max_weight
    allowed = codec_for(config_of(which).params, aggregation).mean_error(sites, weight_sum)
    allowed += sites * 2.0 ** -(fraction_bits(aggregation.to_dict()) + 1) / weight_sum  # of clear tensors
    for name, value in mean.items():
        if name == "ramp":
            places, numbers = zip(*good["ramp"], strict=True)
            value, expected = value[list(places)], np.array(numbers)
        else:
            expected = np.array(good["mean"][name])
        assert value.shape == expected.shape
        rounding = ROUNDING[good["dtypes"][name]] * (np.abs(expected) + allowed)
        assert (np.abs(value.astype(np.float64) - expected) <= allowed + rounding).all(), name


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("which", "lib"), [item for item in READERS if "decoded" in GOOD[item[0]]])
def test_ckks_decodes_as_by_hand(which, lib):
    """The noise is in the file: what is left is the rounding of the transforms, and of the index to nine places."""
    ramp = decrypt(which, GOOD[which]["aggregate"], lib)["ramp"]
    for place, value in GOOD[which]["decoded"]:
        assert abs(ramp[place] - value) < 1e-8


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("which", "lib"), EXACT)
def test_an_exact_scheme_decodes_to_these_integers(which, lib):
    """Sums of q and of the weight are those of the index; only the last division rounds."""
    good, params = GOOD[which], config_of(which).params
    ramp = decrypt(which, good["aggregate"], lib)["ramp"]
    weight_sum = Fraction(*good["weight_sum"])
    for place, total in good["sums"]:
        expected = Fraction(total, params.limit) / weight_sum  # max_abs is 1
        assert abs(Fraction(float(ramp[place])) - expected) <= abs(expected) * Fraction(1, 2**50)


@pytest.mark.parametrize("which", CONFIGS)
def test_tails(which):
    """Tags are those of the index, which were computed by hand; nobody has signed but in a project, whose sum it is."""
    good = GOOD[which]
    updates = [read(name) for name in (*good["updates"], good["aggregate"])]
    assert [[f"{tag:x}" for tag in update.tail.tags] for update in updates] == good["tags"]
    assert {update.header.tag_count for update in updates} == {len(good["tags"][0])}
    manifest = project_of(which).digest if "project" in good else None
    assert all(update.header.manifest == manifest for update in updates)
    proofs = {update.header.contributions[0]: update.tail.proofs[0] for update in updates[:2]}
    assert updates[2].tail.proofs == tuple(proofs[item] for item in updates[2].header.contributions)
    assert all(any(proof.signature) == ("project" in good) for proof in proofs.values())


@pytest.mark.parametrize("which", [which for which in CONFIGS if "base" in GOOD[which]])
def test_bases(which):
    """Of the first model, which is the state of the first site, and of the round after the aggregate."""
    good = GOOD[which]
    state = {name: np.array(value, good["dtypes"][name]) for name, value in good["first_model"].items()}
    state |= {name: state[first] for name, first in good["tied"].items()}
    assert site_of(which).base(state) == base_of(which)
    for update in (*map(read, good["updates"]), read(good["aggregate"])):
        assert update.header.base == base_of(which)
    assert read(good["aggregate"]).next_base.hex() == good["next_base"]
    with secagg.Update.open(FOLDER / good["aggregate"]) as aggregate:
        assert aggregate.next_base.hex() == good["next_base"]


@pytest.mark.parametrize("which", [which for which in CONFIGS if "project" in GOOD[which]])
def test_a_project(which):
    """Manifest, receipt and models, each read by whom it is meant for."""
    good, project = GOOD[which], project_of(which)
    assert project.authority == identity_of("authority").public
    assert project.server.public == identity_of("server").public
    assert [member.public for member in project.sites] == [identity_of(member.name).public for member in project.sites]
    assert [member.name for member in project.sites if member.revoked] == ["site-3"]
    assert project.sign(identity_of("authority")) == (FOLDER / good["project"]).read_bytes()
    assert project.successor((FOLDER / good["project"]).read_bytes()) == project
    project.check_time()
    assert project.server_certificate == project.pinned()
    assert [item.revoked for item in project.earlier] == [0, 0, 1]
    assert project.digest == (FOLDER / good["project"]).read_bytes()[-96:-64]
    before = read(good["earlier"])
    assert before.header.manifest == project.earlier[-1].digest
    mean, same = (site_of(which).decrypt(aggregate) for aggregate in (read(good["aggregate"]), before))
    assert all((mean[name] == same[name]).all() for name in good["mean"])
    update = read(good["updates"][0])
    receipt = secagg.Receipt.of(update, identity_of("server"))
    assert receipt.to_bytes() == (FOLDER / good["receipt"]).read_bytes()
    receipt.check(update, project)
    model, empty = map(read, good["models"])
    assert model.header.base.hex() == empty.header.base.hex() == good["next_base"]
    assert model.header.round == empty.header.round == INDEX["round"] + 1
    values = site_of(which).decrypt_model(model)
    assert {name: value.tolist() for name, value in values.items()} == good["first_model"]
    assert {name: value.dtype for name, value in values.items()} == good["dtypes"]
    assert {name: value.shape for name, value in site_of(which).decrypt_model(empty).items()} == {"empty": (0,)}


def test_values_are_rounded_to_the_nearest_integer():
    """As `rounding: nearest` says, what sites add to an exact sum follows from their values."""
    for which, _ in EXACT:
        if config_of(which).params.rounding == "nearest":
            limit = config_of(which).params.limit
            for place, total in GOOD[which]["sums"]:
                value = ((37 * place) % 257 - 128) / 128
                assert total == round(0.1 * limit * value) + round(0.3 * limit * -0.5 * value)


@pytest.mark.parametrize("vector", INDEX["bad"], ids=lambda vector: vector["file"].removesuffix(".secagg"))
def test_a_fault(vector):
    """The error of the index, from a file and from memory, and the sum without it."""
    which, path = vector["config"], FOLDER / vector["file"]
    error = getattr(errors, vector["error"])
    if vector["reads"] != "add":
        with pytest.raises(error) as caught:
            READS[vector["reads"]](path, which)
    else:
        names = GOOD[which]
        aggregator = aggregator_of(which)
        aggregator.add(read(names["updates"][1]))
        with pytest.raises(error), secagg.Update.open(path) as update:
            aggregator.add(update)
        with pytest.raises(error) as caught:
            aggregator.add(read(path))
        aggregator.add(read(names["updates"][0]))
        assert aggregator.finish().to_bytes() == (FOLDER / names["aggregate"]).read_bytes()
    assert caught.type is error


@pytest.mark.parametrize(
    "vector",
    [vector for vector in INDEX["bad"] if vector["error"] == "DecryptionError"],
    ids=lambda vector: vector["file"].removesuffix(".secagg"),
)
def test_a_failed_decryption_says_nothing(vector):
    """With every library the same words, and no cause that would tell more."""
    for lib in GOOD[vector["config"]]["libs"]:
        with pytest.raises(errors.DecryptionError) as caught:
            READS[vector["reads"]](FOLDER / vector["file"], vector["config"], lib)
        assert caught.value.args == errors.DecryptionError().args
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", TAG_ALONE)
def test_where_only_the_tag_tells(name, monkeypatch):
    """These sums are plausible: a reader that computes no tags takes them for good."""
    (which,) = {vector["config"] for vector in INDEX["bad"] if vector["file"] == name}
    monkeypatch.setattr("secagg.trust.tags.Authenticator.fits", lambda self, tags: True)
    decrypt(which, name)


def test_the_index_lists_every_file():
    listed = {vector["file"] for vector in INDEX["bad"]}
    for good in GOOD.values():
        listed |= {*good["keys"], *good["updates"], good["aggregate"], *good.get("models", ())}
        listed |= {good[name] for name in ("project", "earlier", "receipt") if name in good}
    assert listed == {path.name for path in FOLDER.glob("*.secagg")}
    assert len({(vector["file"], vector["fault"]) for vector in INDEX["bad"]}) == len(INDEX["bad"])


def test_the_generator_makes_these_files(tmp_path):
    runpy.run_path(str(FOLDER / "make.py"))["write"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.name in made}
    assert len(made) == len(INDEX["bad"]) + 4


def test_fresh_good_files_would_do(tmp_path):
    """What `--fresh` writes is read like the files that are checked in."""
    copy, ignored = tmp_path / "tests" / "vectors", shutil.ignore_patterns("__pycache__")
    shutil.copytree(FOLDER, copy, ignore=ignored)
    shutil.copytree(FOLDER.parent / "support", tmp_path / "tests" / "support", ignore=ignored)
    make = runpy.run_path(str(copy / "make.py"))
    make["make_good"]()
    make["write"](copy)
    fresh = json.loads((copy / "index.json").read_text())
    assert fresh["bad"] == INDEX["bad"]
    for which, good in fresh["good"].items():
        key = secagg.load_key(copy / good["keys"][0])
        assert key.fingerprint == good["fingerprint"] != GOOD[which]["fingerprint"]
        aggregate = secagg.Update.from_bytes((copy / good["aggregate"]).read_bytes())
        mean = secagg.Client(config_of(which), key, "site").decrypt(aggregate)
        assert [f"{tag:x}" for tag in aggregate.tail.tags] == good["tags"][2]
        assert abs(float(mean["scale"]) - good["mean"]["scale"]) < 0.01
