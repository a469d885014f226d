"""The checked-in vectors: good ones pin decoding, bad ones have one fault each and the error that it raises."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import exact_by_hand
import numpy as np
import pytest
from configs import WEIGHTS, arrays_of, state_of
from container import Container, fraction_bits
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
EXACT = [(which, lib) for which, lib in READERS if "exact" in GOOD[which]]
CALIBRATED = [which for which in CONFIGS if "scales" in GOOD[which]]
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
            "flashe-sum-digit",
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


def aggregator_of(which, kind="update"):
    config, key = config_of(which), keys_of(which).server
    return secagg.Aggregator(config, key, INDEX["round"], base=base_of(which), project=project_of(which), kind=kind)


def taken_apart(name):
    return Container.read((FOLDER / name).read_bytes())


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


def begin_round(path, which, lib=None):
    """What a site does first that is given the scales of its round, or what they follow from."""
    site = site_of(which, lib)
    site.restore_carry(b"")
    return site.encrypt(
        arrays_of(which, "site-1"), 1.0, INDEX["round"], base=base_of(which), calibration=read(path.name)
    )


#: What adds a file: to which kind of sum, of which files, and what makes which.
ADDS = {"add": ("update", "updates", "aggregate"), "add_calibration": ("calibration", "calibrations", "scales")}

#: What reads a file, other than what adds it.
READS = {
    "load_key": lambda path, which: secagg.load_key(path),
    "decrypt": lambda path, which, lib=None: decrypt(which, path.name, lib),
    "decrypt_model": lambda path, which, lib=None: site_of(which, lib).decrypt_model(read(path.name)),
    "scales": begin_round,
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
    good = GOOD[which]
    mean = decrypt(which, good["aggregate"], lib)
    for name, first in good["tied"].items():
        assert mean.pop(name) is mean[first]
    assert {name: str(value.dtype) for name, value in mean.items()} == good["dtypes"]
    for name, value in mean.items():
        allowed = error_of(which, name)
        if name == "ramp":
            places, numbers = zip(*good["ramp"], strict=True)
            value, expected = value[list(places)], np.array(numbers)
        else:
            expected = np.array(good["mean"][name])
        assert value.shape == expected.shape
        rounding = ROUNDING[good["dtypes"][name]] * (np.abs(expected) + allowed)
        assert (np.abs(value.astype(np.float64) - expected) <= allowed + rounding).all(), name


def error_of(which, name):
    """What the mean of a tensor may be off, but for its dtype."""
    good, config = GOOD[which], config_of(which)
    sites, weight_sum = len(good["weights"]), sum(good["weights"])
    if "exact" not in good:
        most = config.aggregation.max_weight
        clear = sites * 2.0 ** -(fraction_bits(config.aggregation.to_dict()) + 1) * most / weight_sum
        return codec_for(config.params, config.aggregation).mean_error(sites, weight_sum / most) + clear
    exact = good["exact"]
    each = 1 / exact["levels"][name] if name in exact["levels"] else 2.0 ** -exact["fraction_bits"]
    clipped = [weight - exact["bounds"][name] for weight in good["weights"]]  # values are at most 1
    lost = sum(excess for excess in clipped if excess > 0) if name in exact["levels"] else 0
    weights = sites * 2.0**-41 * (config.aggregation.max_weight or 1.0)  # they are rounded, too
    return (sites * each * exact["bounds"][name] + weights + lost) / weight_sum


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
    """Sums of numbers, of words and of the weight are those of the index; only products of the last steps round."""
    good, exact = GOOD[which], GOOD[which]["exact"]
    mean, weight_sum = decrypt(which, good["aggregate"], lib), Fraction(*exact["weight_sum"])
    parts = {name: (sums, Fraction(1, exact["levels"][name])) for name, sums in exact["sums"].items()}
    parts |= {
        name: (enumerate(words), Fraction(1, 2 ** exact["fraction_bits"])) for name, words in exact["words"].items()
    }
    assert parts.keys() == good["dtypes"].keys()
    for name, (sums, unit) in parts.items():
        rounding = Fraction(ROUNDING[good["dtypes"][name]]) + Fraction(1, 2**50)
        for place, total in sums:
            expected = total * unit * Fraction(exact["bounds"][name]) / weight_sum
            assert abs(Fraction(float(mean[name].reshape(-1)[place])) - expected) <= abs(expected) * rounding


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", CALIBRATED)
def test_the_sum_of_the_calibrations_is_the_scales(which):
    good, aggregator = GOOD[which], aggregator_of(which, "calibration")
    for name in reversed(good["calibrations"]):
        aggregator.add(read(name))
    scales = aggregator.finish()
    assert scales.to_bytes() == (FOLDER / good["scales"]).read_bytes()
    assert scales.digest().hex() == good["name"]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", CALIBRATED)
def test_a_site_calibrates_as_by_hand(which):
    """The encryption is fresh, its plaintext is not: what two sites send anew has the counts of the index."""
    good, aggregator, key = GOOD[which], aggregator_of(which, "calibration"), taken_apart(GOOD[which]["keys"][0])
    for site, name in zip(WEIGHTS, good["calibrations"], strict=True):
        client = secagg.Client(config_of(which), keys_of(which).client, site)
        made = client.calibrate(arrays_of(which, site), WEIGHTS[site], INDEX["round"], base=base_of(which))
        assert made.header == replace(read(name).header, contributions=made.header.contributions)
        counts, expected = (
            exact_by_hand.counts_of(container, key)
            for container in (Container.read(made.to_bytes()), taken_apart(name))
        )
        assert counts == expected
        aggregator.add(made)
    rows = exact_by_hand.counts_of(Container.read(aggregator.finish().to_bytes()), key)
    assert exact_by_hand.shown(rows) == good["counts"]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("which", [*CALIBRATED, "previous"])
def test_a_site_sends_under_the_scales_what_is_sent_by_hand(which):
    """By the scales of the round, or the aggregate before it: bins, their name, and each number of an update."""
    good = GOOD[which]
    given = read(good["scales"] if which in CALIBRATED else good["chain"]["before"]["file"])
    for site, weight in WEIGHTS.items():
        client = secagg.Client(config_of(which), keys_of(which).client, site)
        client.restore_carry(b"")
        state = arrays_of(which, site)
        made = client.encrypt(state, weight, INDEX["round"], base=base_of(which), calibration=given)
        container = Container.read(made.to_bytes())
        exact = exact_by_hand.decode(container, taken_apart(good["keys"][0]))
        assert exact.bins == good["exact"]["bins"]
        assert container.header["calibration"] == read(good["updates"][0]).header.calibration.hex()
        exact_by_hand.check_update(container, exact, state_of(which, site), weight)


@pytest.mark.parametrize("name", ["first", "before", "aggregate"])
def test_scales_follow_from_the_round_before(name):
    """Also where nothing had been measured, and where bounds are held up."""
    entry, which = GOOD["previous"]["chain"][name], "previous"
    site, aggregate = site_of(which), read(entry["file"])
    mean = site.decrypt(aggregate, round=entry["round"], base=bytes.fromhex(entry["base"]))
    assert name != "first" or not any(value.any() for value in mean.values())
    assert list(site.scales_after(aggregate).bins) == entry["next"]


def test_a_model_has_the_bins_of_its_round():
    good, site = GOOD["previous"], site_of("previous")
    model = read(good["models"][0])
    values = site.decrypt_model(model)
    assert {name: value.tolist() for name, value in values.items()} == good["first_model"]
    assert list(site.scales_after(model).bins) == good["chain"]["aggregate"]["next"]
    assert model.header.base.hex() == good["next_base"]


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
    """Of the first model, which is the state of the first site, and of the round after an aggregate."""
    good = GOOD[which]
    chain = good.get("chain")
    state = {name: np.array(value, good["dtypes"][name]) for name, value in good["first_model"].items()}
    state |= {name: state[first] for name, first in good["tied"].items()}
    first = bytes.fromhex(good["first_base"])
    assert site_of(which).base(state) == first
    if chain:
        first = read(chain["before"]["file"]).next_base
        assert read(chain["first"]["file"]).next_base.hex() == chain["before"]["base"]
        assert read(chain["first"]["file"]).header.base.hex() == good["first_base"]
    assert first == base_of(which)
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


@pytest.mark.parametrize("vector", INDEX["bad"], ids=lambda vector: vector["file"].removesuffix(".secagg"))
def test_a_fault(vector):
    """The error of the index, from a file and from memory, and the sum without it."""
    which, path = vector["config"], FOLDER / vector["file"]
    error = getattr(errors, vector["error"])
    if vector["reads"] not in ADDS:
        with pytest.raises(error) as caught:
            READS[vector["reads"]](path, which)
    else:
        kind, parts, total = ADDS[vector["reads"]]
        names = GOOD[which]
        aggregator = aggregator_of(which, kind)
        aggregator.add(read(names[parts][1]))
        with pytest.raises(error), secagg.Update.open(path) as update:
            aggregator.add(update)
        with pytest.raises(error) as caught:
            aggregator.add(read(path))
        aggregator.add(read(names[parts][0]))
        assert aggregator.finish().to_bytes() == (FOLDER / names[total]).read_bytes()
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
            READS[vector["reads"]](FOLDER / vector["file"], vector["config"], lib=lib)
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
        listed |= {*good.get("calibrations", ()), *(entry["file"] for entry in good.get("chain", {}).values())}
        listed |= {good[name] for name in ("project", "earlier", "receipt", "scales") if name in good}
    assert listed == {path.name for path in FOLDER.glob("*.secagg")}
    assert len({(vector["file"], vector["fault"]) for vector in INDEX["bad"]}) == len(INDEX["bad"])


def test_the_generator_makes_these_files(tmp_path):
    runpy.run_path(str(FOLDER / "make.py"))["write"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.name in made}
    assert len(made) == len(INDEX["bad"]) + 5


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
