"""The contract of verification, which every backend keeps: signed rounds, chained bases, tags and receipts."""

from __future__ import annotations

import numpy as np
import pytest
from container import AGGREGATE, PRIME, Container
from federation import federate, libs_of, random_states
from signed import ROUND, sign_federation

from secagg import Receipt, Update
from secagg.errors import DecryptionError, FormatError, SignatureError, VerificationError
from secagg.trust.key import ClientKey
from secagg.trust.tags import Authenticator

SHAPES = {"w": (1500,), "c": (5000,), "b": (2, 3)}
ENCRYPT = {"exclude": ["c"]}
WEIGHTS = [0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def signed(lib):
    return sign_federation(federate(lib, encrypt=ENCRYPT))


@pytest.fixture(scope="module")
def states():
    return random_states(3, SHAPES)


@pytest.mark.usefixtures("kernels")
def test_a_round_of_a_project(signed, states, tmp_path):
    """From files, with all that a site can hold against an aggregate; and the next round, which begins from it."""
    base = signed.site().base(states[0])
    for round in (ROUND, ROUND + 1):
        aggregator = signed.aggregator(round, base=base)
        receipts = []
        for name, state, weight in zip(signed.names, states, WEIGHTS, strict=True):
            path = tmp_path / f"{name}.secagg"
            signed.site(name).encrypt_to(path, state, weight, round, base=base)
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
    assert signed.site().verified == (signed.config.params.scheme != "CKKS")


def test_a_tail_is_as_the_format_says(signed, states):
    """Tags add up modulo p, proofs are copied, and the body digest is that of the specification."""
    updates = signed.encrypt(states, WEIGHTS)
    aggregate = Container.read(signed.add(updates).to_bytes())
    parts = [Container.read(update.to_bytes()) for update in updates]  # holds body digests against the specification
    assert aggregate.kind == AGGREGATE
    assert aggregate.tag == sum(part.tag for part in parts) % PRIME
    assert aggregate.proofs == [part.proofs[0] for part in parts]
    for update, part in zip(updates, parts, strict=True):
        assert (part.tag != 0) == signed.site().verified
        assert [(proof.body, proof.signature) for proof in update.tail.proofs] == part.proofs
        assert update.nbytes == len(part.head) + sum(len(payload) + 32 for payload in part.payloads) + 144


@pytest.mark.usefixtures("kernels")
def test_another_tag(signed, states):
    """Of exact schemes it does not fit the words; of CKKS there is none."""
    container = Container.read(signed.add(signed.encrypt(states)).to_bytes())
    assert signed.site().decrypt(Update.from_bytes(container.to_bytes()))
    for tag in (container.tag + 1, container.tag ^ 1 << 100, 0, PRIME - 1, container.tag // 2):
        other = container.copy()
        other.tag = tag
        if signed.site().verified:
            with pytest.raises(DecryptionError) as caught:
                signed.site().decrypt(Update.from_bytes(other.to_bytes()))
            assert caught.value.args == DecryptionError().args
        elif tag:
            with pytest.raises(FormatError, match="only sums of exact schemes have one"):
                signed.site().decrypt(Update.from_bytes(other.to_bytes()))


def test_sums_are_held_against_tags_without_a_project(lib, states):
    """Nobody signs, no base, no receipt: the tag needs none of them."""
    federation = federate(lib, encrypt=ENCRYPT)
    container = Container.read(federation.sum(states).to_bytes())
    words = np.frombuffer(container.payloads[-1], "<u8").copy()
    words[0] += np.uint64(1)  # a clear value, one step more
    container.payloads[-1] = words.tobytes()
    changed = Update.from_bytes(container.to_bytes())
    if federation.site().verified:
        with pytest.raises(DecryptionError):
            federation.site().decrypt(changed)
    else:
        federation.site().decrypt(changed)  # as `verified` says


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
    unsigned = signed.federation.site("site-3").encrypt(states[2], round=ROUND, base=base)
    aggregator = signed.aggregator()
    with pytest.raises(SignatureError, match="is missing"):
        aggregator.add(unsigned)
    assert aggregator.sites == ()


@pytest.mark.parametrize("lib", libs_of("BGV"))
def test_libraries_tag_alike(lib, monkeypatch):
    """Tags are of plaintext words, which are those of the scheme: whoever encrypts, whoever decrypts."""
    params = {"value_bits": 8, "rounding": "nearest", "seeded": False}
    federation = federate(f"{lib}-BGV", params, encrypt=ENCRYPT, max_abs=1.0)
    monkeypatch.setattr(Authenticator, "_pad", lambda *_: 0)
    state = random_states(1, SHAPES)[0]
    tags = {
        other: federation.using(other).site().encrypt(state, 0.5, ROUND).tail.tag for other in libs_of("BGV")
    }  # the key, and so α, is one
    assert len(set(tags.values())) == 1
    update = federation.site().encrypt(state, 0.5, ROUND + 1)
    assert update.tail.tag not in tags.values()


def test_a_tag_hangs_on_the_epoch(signed, states):
    """The same secret in another epoch has another α and other pads: no tag of one is one of the other."""
    keys = signed.federation.keys
    later = ClientKey(keys.client.params, keys.client.secret_material(), keys.client._root, keys.server.epoch + 1)
    header = signed.site().encrypt(states[0]).header
    words = np.arange(9, dtype=np.uint64)
    tags = set()
    for key in (keys.client, later):
        authenticator = Authenticator(key, header)
        authenticator.add(words)
        tags.add(authenticator.tag())
    assert len(tags) == 2
