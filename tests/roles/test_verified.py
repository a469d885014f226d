"""The contract of verification, which every backend keeps: signed rounds, chained bases, tags and receipts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from container import AGGREGATE, Container, tag_moduli
from federation import TINY, TINY_AGGREGATION, federate, libs_of, random_states
from signed import ROUND, Parts, sign_federation

from secagg import Receipt, Update
from secagg.encryption import Encryption
from secagg.errors import DecryptionError, ManifestMismatchError, SignatureError, VerificationError
from secagg.trust.key import ClientKey
from secagg.trust.tags import Authenticator

SHAPES = {"w": (1500,), "c": (5000,), "b": (2, 3)}
ENCRYPT = {"exclude": ["c"]}
WEIGHTS = [0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def signed(mode):
    return sign_federation(federate(mode, encrypt=ENCRYPT))


@pytest.fixture(scope="module")
def states():
    return random_states(3, SHAPES)


@pytest.mark.usefixtures("kernels")
def test_a_round_of_a_project(signed, states, tmp_path):
    """From files, with all that a site can hold against an aggregate; and the next round, which begins from it."""
    base = signed.site().base(states[0])
    for round in (ROUND, ROUND + 1):
        aggregator, scales = signed.aggregator(round, base=base), signed.scales(states, WEIGHTS, round, base)
        receipts = []
        for name, state, weight in zip(signed.names, states, WEIGHTS, strict=True):
            path, site = tmp_path / f"{name}.secagg", signed.site(name)
            site.restore_carry(b"")
            site.encrypt_to(path, state, weight, round, base=base, calibration=scales)
            with Update.open(path) as update:
                aggregator.add(update)
                receipts.append(Receipt.of(update, signed.server))
                receipts[-1].check(update, signed.project)
        aggregator.finish().save(tmp_path / "aggregate.secagg")
        for name, receipt in zip(signed.names, receipts, strict=True):
            with Update.open(tmp_path / "aggregate.secagg") as aggregate:
                known = {"round": round, "base": base, "receipt": Receipt.from_bytes(receipt.to_bytes())}
                mean = signed.site(name).decrypt(aggregate, like=states[0], **known)
                following = aggregate.next_base
            signed.federation.assert_mean(mean, states, WEIGHTS)
        base = following
    assert signed.site().verified


def test_a_tail_is_as_the_format_says(signed, states):
    """Tags add up, each modulo its number, proofs are copied, and the body digest is that of the specification."""
    updates = signed.encrypt(states, WEIGHTS)
    aggregate = Container.read(signed.add(updates).to_bytes())
    parts = [Container.read(update.to_bytes()) for update in updates]  # holds body digests against the specification
    assert aggregate.kind == AGGREGATE
    moduli = tag_moduli(signed.federation.keys.server._header())
    columns = zip(moduli, *(part.tags for part in parts), strict=True)
    assert aggregate.tags == [sum(tags) % modulus for modulus, *tags in columns]
    assert aggregate.proofs == [part.proofs[0] for part in parts]
    tail = 16 + 8 * (len(moduli) - 1) + 96 + 32
    for update, part in zip(updates, parts, strict=True):
        assert part.tags == list(update.tail.tags)
        assert part.tags[0]
        assert [(proof.body, proof.signature) for proof in update.tail.proofs] == part.proofs
        assert update.nbytes == len(part.head) + sum(len(payload) + 32 for payload in part.payloads) + tail


@pytest.mark.usefixtures("kernels")
def test_another_tag(signed, states):
    """Whichever of them it is, it does not fit the words; the error says no more than ever."""
    container = Container.read(signed.add(signed.encrypt(states)).to_bytes())
    assert signed.site().decrypt(Update.from_bytes(container.to_bytes()))
    for index, modulus in enumerate(tag_moduli(signed.federation.keys.server._header())):
        tag = container.tags[index]
        for other in ((tag + 1) % modulus, tag ^ 1, modulus - 1, tag // 2, tag + (0 if index == 0 else modulus)):
            changed = container.copy()
            changed.tags[index] = other
            if other != tag:
                with pytest.raises(DecryptionError) as caught:
                    signed.site().decrypt(Update.from_bytes(changed.to_bytes()))
                assert caught.value.args == DecryptionError().args


def test_nothing_looks_at_values_that_tags_refuse(signed, states, monkeypatch):
    """To find one out of range takes a time that tells where it is."""
    aggregate, site, looked = signed.add(signed.encrypt(states, WEIGHTS)), signed.site(), []
    monkeypatch.setattr(Encryption, "_fault", lambda self, vectors, *_: looked.extend(vectors))
    with pytest.raises(DecryptionError):
        site.decrypt(replace(Parts.of(aggregate), tags=tuple(tag ^ 1 for tag in aggregate.tail.tags)).build())
    assert not looked
    site.decrypt(aggregate)
    assert looked == list(SHAPES)


def test_sums_are_held_against_tags_without_a_project(lib, states):
    """Nobody signs, no base, no receipt: the tags need none of them."""
    federation = federate(lib, encrypt=ENCRYPT)
    container = Container.read(federation.sum(states).to_bytes())
    words = np.frombuffer(container.payloads[-1], "<u8").copy()
    words[0] += np.uint64(1)  # a clear value, one step more
    container.payloads[-1] = words.tobytes()
    changed = Update.from_bytes(container.to_bytes())
    with pytest.raises(DecryptionError):
        federation.site().decrypt(changed)


def unsigned_update(signed, states, base):
    """That of a site without a project, among others without one."""
    sites = signed.federation.sites(3)
    scales = signed.scales(states, [1.0] * 3, base=base)
    if signed.federation.precision == "auto":
        calibrations = [site.calibrate(state, 1.0, ROUND, base=base) for site, state in zip(sites, states, strict=True)]
        scales = signed.federation.add(calibrations)
    sites[2].restore_carry(b"")
    return sites[2].encrypt(states[2], round=ROUND, base=base, calibration=scales)


def test_who_is_listed_and_from_where(signed, states):
    """What every scheme shows: signatures, the base and the receipt."""
    base = signed.site().base(states[0])
    updates = signed.encrypt(states, base=base)
    aggregate = signed.add(updates[:2])
    receipt = Receipt.of(updates[2], signed.server)
    with pytest.raises(VerificationError, match="left it out"):
        signed.site("site-3").decrypt(aggregate, receipt=receipt)
    with pytest.raises(VerificationError, match="another global model"):
        signed.site().decrypt(aggregate, base=bytes(32))
    container = Container.read(aggregate.to_bytes())
    container.proofs.reverse()
    with pytest.raises(SignatureError, match="site-1"):
        signed.site().decrypt(Update.from_bytes(container.to_bytes()))
    strange = Container.read(aggregate.to_bytes())
    strange.header["manifest"] = "ab" * 32
    with pytest.raises(ManifestMismatchError, match="abababababababab…, which is neither"):
        signed.site().decrypt(Update.from_bytes(strange.to_bytes()))
    unsigned = unsigned_update(signed, states, base)
    aggregator = signed.aggregator()
    with pytest.raises(ManifestMismatchError, match=r"no project manifest, .* under one: give every Client"):
        aggregator.add(unsigned)
    with_one = signed.federation.aggregator(ROUND)
    with_one.add(unsigned)
    with pytest.raises(ManifestMismatchError, match=r"under a project manifest, .* under none: "):
        with_one.add(updates[0])
    container = Container.read(unsigned.to_bytes())
    container.header["manifest"] = signed.project.digest.hex()
    unsigned = Update.from_bytes(container.to_bytes())
    with pytest.raises(SignatureError, match="is missing"):
        aggregator.add(unsigned)
    assert aggregator.sites == ()


@pytest.mark.parametrize("lib", libs_of("CKKS") + [f"{lib}-BGV" for lib in libs_of("BGV")])
def test_libraries_verify_alike(lib, states):
    """Tags are of words: whoever encrypts, any library of the scheme verifies."""
    params = {"CKKS": TINY | {"seeded": False}, "BGV": {"value_bits": 8, "seeded": False}}  # pyfhel knows no seeds
    federation = federate(lib, params, encrypt=ENCRYPT, **TINY_AGGREGATION)
    libs = libs_of(federation.config.params.scheme)
    sites = [federation.using(other).site(f"site-{number}") for number, other in enumerate(libs)]
    aggregate = federation.add(site.encrypt(state) for site, state in zip(sites, states, strict=False))
    for site in sites:
        federation.assert_mean(site.decrypt(aggregate), states[: len(sites)])


def test_tags_hang_on_the_epoch(signed, states):
    """The same secrets in another epoch have other hash keys and pads: no tag of one is one of the other."""
    keys = signed.federation.keys
    later = ClientKey(keys.client.params, keys.client.secret_material(), keys.client._root, keys.server.epoch + 1)
    header = signed.encrypt(states)[0].header
    tags = []
    for key in (keys.client, later):
        authenticator = Authenticator(key, header)
        authenticator.add_integers(np.arange(9, dtype=np.uint64), signed=False)
        if header.tag_count > 1:
            params = signed.config.params
            words = np.arange(params.poly_modulus_degree * len(params.data_bit_sizes), dtype=np.uint64)
            authenticator.add_ciphertext(words)
        tags.append(authenticator.tags([bytes(32)]))
    assert all(one != other for one, other in zip(*tags, strict=True))
