"""The global model as sites keep it on the server: bit for bit, for sites alone, and from a site that has signed."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import federate, make_keys, other_keys, random_states
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signed import ROUND, Parts, Signed, sign_federation

import secagg
from secagg import Identity, Update
from secagg.errors import (
    ConfigError,
    DecryptionError,
    DigestError,
    FormatError,
    IdentityError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    SecAggError,
    SignatureError,
    StorageError,
)
from secagg.wire.header import MODEL_BLOCK_NBYTES, MODEL_BLOCK_PLAIN_NBYTES, Contribution
from secagg.wire.layout import Layout
from secagg.wire.tail import UNSIGNED, Proof

BASE = bytes(range(32))
STATE = {
    "w": np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8),
    "b": np.arange(7, dtype=np.float64),
    "h": np.float16([1, 2, 3]),
    "n": np.int64([5]),
}


@pytest.fixture(scope="module")
def signed() -> Signed:
    return sign_federation(federate("flashe"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.secagg"


@pytest.fixture(scope="module")
def blob(signed, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.secagg"
    signed.site().encrypt_model(path, STATE, round=ROUND, base=BASE)
    return path.read_bytes()


def same(found, expected):
    """Bit for bit, NaN and signs of zeros included."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert np.asarray(found[name]).tobytes() == np.asarray(value).tobytes()


def test_any_site_reads_it(lib, path):
    """Whatever the scheme of sums is."""
    signed = sign_federation(federate(lib, encrypt={"include": ["w"]}))
    signed.site("site-1").encrypt_model(path, STATE, round=ROUND, base=BASE)
    for name in signed.names:
        with Update.open(path) as model:
            same(signed.site(name).decrypt_model(model, like=STATE), STATE)
            header = model.header
            assert (header.kind, header.round, header.base, header.site) == ("model", ROUND, BASE, "site-1")
            assert model.nbytes == path.stat().st_size
            assert model.tail.tags == ()


def test_it_is_for_sites_alone(signed, path):
    """No tensor, encrypted or clear in updates, is in the file; two files of one model share nothing but the header."""
    state = {"w": np.full(20_000, 1.5, np.float32)}
    blobs = []
    for _ in range(2):
        signed.site().encrypt_model(path, state, round=ROUND)
        blobs.append(path.read_bytes())
        assert state["w"][:4].tobytes() not in blobs[-1]
    payloads = [Parts.of(Update.from_bytes(blob)).payloads[0] for blob in blobs]
    assert payloads[0][:16] not in payloads[1]
    assert len({payloads[0][at : at + 16] for at in range(0, 60_000, 16)}) == 3750  # no block of AES comes twice


def test_without_like(signed, blob):
    found = signed.site().decrypt_model(Update.from_bytes(blob))
    same(found, {name: value for name, value in STATE.items() if name != "n"})


def test_torch(signed, path):
    state = {
        "w": torch.randn(3, 4, dtype=torch.bfloat16),
        "v": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "p": torch.nn.Parameter(torch.randn(2, 0, 3)),
        "s": torch.tensor(2.5, dtype=torch.float64),
        "t": torch.randn(4, 5, dtype=torch.float16).t(),
        "n": torch.tensor([True]),
    }
    signed.site().encrypt_model(path, state, round=0)
    with Update.open(path) as model:
        found = signed.site().decrypt_model(model, like=state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        mine, theirs = (tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (found[name], value))
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("blocks", [0, 1, 2, 16, 17, 33])
@pytest.mark.parametrize("more", [-4, 0, 4])
def test_sizes(signed, path, blocks, more):
    """Around the ends of blocks and frames; the first tensor ends in the middle of a value of the block."""
    nbytes = blocks * MODEL_BLOCK_PLAIN_NBYTES + more
    if nbytes < 0:
        return
    rng = np.random.default_rng(0)
    halves = min(3, nbytes // 2)
    state = {
        "h": rng.integers(0, 2**16, halves, np.uint16).view(np.float16),
        "w": rng.integers(0, 2**32, (nbytes - 2 * halves) // 4, np.uint32).view(np.float32),
    }
    signed.site().encrypt_model(path, state, round=0)
    with Update.open(path) as model:
        frames = list(model.header.frames)
        assert sum(frame.blocks for frame in frames) == -(-sum(v.nbytes for v in state.values()) // 65_520)
        assert all(frame.nbytes == frame.blocks * MODEL_BLOCK_NBYTES <= 1 << 20 for frame in frames)
        same(signed.site().decrypt_model(model, like=state), state)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        st.tuples(st.sampled_from(["f2", "f4", "f8", "i4", "?"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    ),
    st.randoms(),
)
def test_any_model(signed, path, model, random):
    state = {
        name: np.frombuffer(random.randbytes(8 * int(np.prod(shape))), np.uint8)
        .view(np.uint64)
        .astype(np.uint64)
        .view("u1")[: np.dtype(dtype).itemsize * int(np.prod(shape))]
        .view("u1" if dtype == "?" else dtype)
        .reshape(shape)
        for name, (dtype, shape) in model.items()
    }
    if not any(value.dtype.kind == "f" for value in state.values()):
        with pytest.raises(LayoutError, match="no float tensor to average"):
            signed.site().encrypt_model(path, state, round=0)
        return
    signed.site().encrypt_model(path, state, round=0)
    with Update.open(path) as opened:
        same(signed.site().decrypt_model(opened, like=state), state)


def test_the_file_appears_whole_or_not_at_all(signed, path):
    with pytest.raises(LayoutError):
        signed.site().encrypt_model(path, {"w": "text"}, round=0)
    with pytest.raises(ConfigError):
        signed.site().encrypt_model(path, STATE, round=-1)
    with pytest.raises(StorageError):
        signed.site().encrypt_model(path.parent / "nowhere" / "model.secagg", STATE, round=0)
    assert not os.listdir(path.parent)


def test_a_site_whose_epoch_is_over(path, tmp_path):
    """Eight sums did not decrypt: the stored model says nothing about the HE key, and is read all the same."""
    federation = federate("flashe")
    federation.site().encrypt_model(path, STATE, round=ROUND)
    counts = tmp_path / "failures"
    counts.write_text(f"{federation.keys.server.fingerprint}\n" * 8)
    second = secagg.Client(federation.config, federation.keys.client, "site-2", failures=counts)
    with Update.open(path) as model:
        same(second.decrypt_model(model, like=STATE), STATE)


# What it is not.


def test_it_is_no_update(signed, blob):
    model = Update.from_bytes(blob)
    with pytest.raises(MismatchError, match="kind 'update' is needed here"):
        signed.aggregator().add(model)
    with pytest.raises(MismatchError):
        signed.aggregator().admit(model.header)
    with pytest.raises(MismatchError, match="kind 'aggregate' is needed here"):
        signed.site().decrypt(model)


@pytest.mark.parametrize("kind", ["update", "aggregate"])
def test_something_else_is_no_model(signed, kind):
    updates = signed.encrypt(random_states(2, {"w": (3,)}))
    other = updates[0] if kind == "update" else signed.add(updates)
    with pytest.raises(MismatchError, match=f"is of kind '{kind}'"):
        signed.site().decrypt_model(other)


@pytest.mark.parametrize("kind", ["update", "aggregate"])
def test_another_kind_has_other_frames(blob, kind):
    parts = Parts.of(Update.from_bytes(blob))
    with pytest.raises((FormatError, ValueError)):
        parts.but(kind=kind).build()


def test_two_sites(blob):
    parts = Parts.of(Update.from_bytes(blob))
    both = (*parts.header.contributions, Contribution("site-2", bytes(32)))
    with pytest.raises(FormatError, match="a model has one contribution, this one lists 2"):
        replace(parts.but(contributions=both), proofs=parts.proofs * 2).build()


OTHERS = {
    "another key": (lambda s: other_keys(s.federation), KeyMismatchError),
    "another epoch": (
        lambda s: replace(s.federation, keys=rotated(s.federation.keys.client)),
        KeyMismatchError,
    ),
    "another max_abs": (lambda s: s.federation.but(max_abs=0.5), MismatchError),
    "another encrypted set": (lambda s: s.federation.but(encrypt={"include": ["w"]}), LayoutError),
}


def rotated(key):
    client = secagg.ClientKey(key.params, key.secret_material(), key._root, epoch=1)
    return secagg.keygen.KeyPair(client, client.server)


@pytest.mark.parametrize(("federation", "error"), OTHERS.values(), ids=OTHERS)
def test_a_model_of_others(signed, blob, federation, error):
    with pytest.raises(error):
        federation(signed).site().decrypt_model(Update.from_bytes(blob))


@pytest.mark.parametrize(
    "like",
    [
        {"w": STATE["w"]},
        {**STATE, "w": STATE["w"].reshape(-1)},
        {**STATE, "w": STATE["w"].astype(np.float64)},
        {**STATE, "more": np.zeros(1)},
    ],
    ids=["less", "shape", "dtype", "more"],
)
def test_another_like(signed, blob, like):
    with pytest.raises(LayoutError, match="another model than `like`"):
        signed.site().decrypt_model(Update.from_bytes(blob), like=like)


def test_a_like_in_another_order(signed, blob):
    """Tensors are known by their names; the result has the order that is asked for."""
    turned = dict(reversed(STATE.items()))
    found = signed.site().decrypt_model(Update.from_bytes(blob), like=turned)
    assert list(found) == list(turned)
    same(dict(reversed(found.items())), STATE)


# Who stored it.


def test_an_unsigned_model(signed, path):
    signed.federation.site().encrypt_model(path, STATE, round=ROUND)
    with Update.open(path) as model:
        assert model.tail.proofs[0].signature == UNSIGNED
        with pytest.raises(SignatureError, match="is missing"):
            signed.site().decrypt_model(model)
        same(signed.federation.site().decrypt_model(model, like=STATE), STATE)


def test_a_model_of_somebody_else(signed, path):
    """One who has the HE key, and no place in the project; or a place that was revoked; or another's name."""
    federation = signed.federation
    for name, identity, error in (
        ("site-9", Identity.generate(), IdentityError),
        ("server", signed.server, IdentityError),
        ("site-1", signed.identities["site-2"], SignatureError),
        ("site-1", signed.server, SignatureError),
    ):
        site = secagg.Client(federation.config, federation.keys.client, name, identity=identity)
        site.encrypt_model(path, STATE, round=ROUND)
        with Update.open(path) as model, pytest.raises(error):
            signed.site().decrypt_model(model)
    signed.site("site-2").encrypt_model(path, STATE, round=ROUND)
    with Update.open(path) as model, pytest.raises(IdentityError, match="'site-2' has been revoked"):
        signed.site(project=signed.without("site-2")).decrypt_model(model)


# A server that changes it.


@pytest.mark.parametrize("place", range(0, 100_000, 997))
def test_a_flipped_bit(signed, blob, place):
    damaged = bytearray(blob)
    damaged[place % len(blob)] ^= 1 << place % 8
    with pytest.raises(SecAggError):
        signed.federation.site().decrypt_model(Update.from_bytes(damaged))


CHANGES = {
    "a bit": lambda parts: put(parts, bytes([parts.payloads[0][0] ^ 1]) + parts.payloads[0][1:]),
    "the last bit of padding": lambda parts: put(parts, parts.payloads[0][:-17] + b"!" + parts.payloads[0][-16:]),
    "zeros": lambda parts: put(parts, bytes(len(parts.payloads[0]))),
    "the blocks' order": lambda parts: put(
        parts,
        parts.payloads[0][MODEL_BLOCK_NBYTES : 2 * MODEL_BLOCK_NBYTES]
        + parts.payloads[0][:MODEL_BLOCK_NBYTES]
        + parts.payloads[0][2 * MODEL_BLOCK_NBYTES :],
    ),
    "the frames": lambda parts: replace(parts, payloads=[parts.payloads[1], parts.payloads[0]]),
    "the round": lambda parts: parts.but(round=ROUND + 1),
    "the base": lambda parts: parts.but(base=bytes(32)),
    "no base": lambda parts: parts.but(base=None),
    "the site": lambda parts: parts.but(contributions=(replace(parts.header.contributions[0], site="site-2"),)),
    "the nonce": lambda parts: parts.but(contributions=(replace(parts.header.contributions[0], nonce=bytes(32)),)),
    "two tensors' names": lambda parts: parts.but(layout=Layout(swapped(parts.header.layout.tensors))),
}


def put(parts, payload):
    return replace(parts, payloads=[payload, *parts.payloads[1:]])


def swapped(tensors):
    first, second = tensors
    return replace(first, names=second.names), replace(second, names=first.names)


@pytest.fixture(scope="module")
def large(signed, tmp_path_factory):
    """Of two whole frames, unsigned: what tells is the encryption alone."""
    path = tmp_path_factory.mktemp("large") / "model.secagg"
    half = 16 * MODEL_BLOCK_PLAIN_NBYTES // 4
    signed.federation.site().encrypt_model(
        path, random_states(1, {"v": (half,), "w": (half,)})[0], round=ROUND, base=BASE
    )
    return path.read_bytes()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model(signed, large, change):
    """Every digest right, and no signature asked for."""
    parts = Parts.of(Update.from_bytes(large))
    changed = change(parts)
    body = changed.sealed()
    assert body.to_bytes() != large
    with pytest.raises(DecryptionError):
        signed.federation.site().decrypt_model(body)
    with pytest.raises(SignatureError):
        signed.site().decrypt_model(body)


def test_a_block_of_another_model(signed, large, path):
    """Each file has a key of its own."""
    parts = Parts.of(Update.from_bytes(large))
    signed.federation.site().encrypt_model(
        path, signed.federation.site().decrypt_model(parts.build()), round=ROUND, base=BASE
    )
    with Update.open(path) as other:
        parts.payloads[1] = Parts.of(other).payloads[1]
    with pytest.raises(DecryptionError):
        signed.federation.site().decrypt_model(parts.sealed())


def test_another_body_digest(signed, blob):
    parts = Parts.of(Update.from_bytes(blob))
    bad = replace(parts, proofs=(Proof(bytes(32), parts.proofs[0].signature),)).build()
    with pytest.raises(DigestError, match="the body is damaged"):
        signed.federation.site().decrypt_model(bad)


def test_a_model_has_no_tag(blob):
    """Nor room for one: a place where a bit would not count."""
    for tags in ((0,), (1,), (0, 0)):
        with pytest.raises(FormatError, match="trailing bytes"):
            replace(Parts.of(Update.from_bytes(blob)), tags=tags).sealed()


def test_an_old_model_says_how_old_it_is(signed, blob):
    """The server may play one back: round and base are signed, and the site compares them."""
    model = Update.from_bytes(blob)
    same(signed.site().decrypt_model(model, like=STATE), STATE)
    assert (model.header.round, model.header.base) == (ROUND, BASE)
    assert model.next_base != model.header.base


# Its digest, as what training begins from.


def test_base(signed):
    site = signed.site()
    base = site.base(STATE)
    assert len(base) == 32
    assert signed.site("site-2").base(dict(STATE)) == base
    assert site.base({**STATE, "n": np.int64([6])}) == base  # each site's own
    others = [
        {**STATE, "w": -STATE["w"]},
        {**STATE, "w": np.nextafter(STATE["w"], 2)},
        {**STATE, "w": STATE["w"].reshape(8, 5)},
        {**STATE, "w": STATE["w"].astype(np.float64)},
        {**STATE, "b": STATE["b"].astype(np.float32)},
        {("v" if name == "w" else name): value for name, value in STATE.items()},
        dict(reversed(STATE.items())),
        {name: value for name, value in STATE.items() if name != "h"},
        {**STATE, "n": np.int64([5, 5])},
    ]
    assert len({base, *map(site.base, others)}) == 1 + len(others)


def test_base_of_torch_and_numpy(signed):
    tensors = {name: torch.from_numpy(value) for name, value in STATE.items()}
    assert signed.site().base(tensors) == signed.site().base(STATE)
    turned = {**tensors, "w": tensors["w"].t().contiguous().t()}  # another order in memory
    assert signed.site().base(turned) == signed.site().base(STATE)


def test_base_of_nothing_that_can_be_sent(signed):
    with pytest.raises(LayoutError, match=re.escape("'w' is a str")):
        signed.site().base({"w": "text"})
    strict = signed.federation.but(encrypt={"include": ["w"]}).site()
    with pytest.raises(ConfigError, match="matches no tensor"):
        strict.base({"v": np.zeros(3)})


def test_base_says_what_is_encrypted(signed):
    """Sites that disagree on that do not train together."""
    federation = signed.federation
    bases = {federation.but(encrypt=encrypt).site().base(STATE) for encrypt in ("all", {"include": ["w"]})}
    assert len(bases) == 2


def test_base_hangs_on_no_key(signed):
    keys = make_keys("flashe", signed.config.params, number=1)
    assert replace(signed.federation, keys=keys).site().base(STATE) == signed.site().base(STATE)
