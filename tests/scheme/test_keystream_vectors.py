"""What nonces stand for, held against expansion.json and pads.json, which are computed without secagg."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from secagg import ClientKey
from secagg.backends.flashe_backend import FLASHEBackend
from secagg.scheme.keystream import Keystream, Masks, slack
from secagg.scheme.params import FLASHE_BLOCK_WORDS, FLASHEParams
from secagg.trust.key import KeyMaterial
from secagg.wire.header import Contribution

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
EXPANSIONS = json.loads((FOLDER / "expansion.json").read_text())["cases"]
PADS = json.loads((FOLDER / "pads.json").read_text())["cases"]
PARAMS = FLASHEParams(value_bits=11)

expansions = pytest.mark.parametrize("case", EXPANSIONS, ids=range(len(EXPANSIONS)))
pads = pytest.mark.parametrize("case", PADS, ids=range(len(PADS)))


def masks_of(case):
    return Masks(tuple(case["primes"]), case["degree"])


def streams_of(case):
    return [Keystream(bytes.fromhex(nonce)) for nonce in case["nonces"]]


def words_of(case, blocks):
    return np.zeros((blocks, len(case["primes"]), case["degree"]), np.uint64)


def assert_words(words, expected):
    """Hold words against their first ones, their last ones and their digest."""
    first, last = ([int(word, 16) for word in expected[end]] for end in ("first", "last"))
    assert words[: len(first)].tolist() == first
    assert words[-len(last) :].tolist() == last
    assert blake3(words.astype("<u8").tobytes()).hexdigest() == expected["blake3"]


@expansions
def test_sizes_of_regions(case):
    assert [slack(prime, case["degree"]) for prime in case["primes"]] == case["slack"]
    assert masks_of(case).block_nbytes == case["block_nbytes"]


@pytest.mark.usefixtures("kernels")
@expansions
def test_nonces_give_these_words(case):
    words = words_of(case, case["blocks"])
    assert masks_of(case).add(streams_of(case), case["first_block"], words.reshape(-1))
    rows = words.reshape(-1, case["degree"])
    assert len(rows) == len(case["rows"])
    for row, expected in zip(rows, case["rows"], strict=True):
        assert (row < expected["prime"]).all()
        assert_words(row, expected)


@pytest.mark.usefixtures("kernels")
@expansions
def test_blocks_one_by_one_backwards(case):
    """In any order, and on words that are there already."""
    masks, streams, start = (
        masks_of(case),
        streams_of(case),
        np.array(case["primes"], np.uint64)[:, None] - np.uint64(1),
    )
    for offset in reversed(range(case["blocks"])):
        words = words_of(case, 1)
        words[:] = start
        assert masks.add(streams, case["first_block"] + offset, words.reshape(-1))
        for row, (place, prime) in enumerate(enumerate(case["primes"], offset * len(case["primes"]))):
            assert_words((words[0, row] + np.uint64(1)) % np.uint64(prime), case["rows"][place])


def test_the_cases_reach_what_is_hard():
    """Widths, rejected candidates, several blocks and rows, a sum, and a counter beyond 32 bits are among them."""
    primes = [prime for case in EXPANSIONS for prime in case["primes"]]
    assert {prime.bit_length() for prime in primes} == {26, 36, 40, 53, 60}
    assert {prime.bit_length() for prime in primes if prime < 0.51 * 2 ** prime.bit_length()} == {26, 36, 53, 60}
    assert max(case["blocks"] for case in EXPANSIONS) > 1 < max(len(case["nonces"]) for case in EXPANSIONS)
    assert max(case["first_block"] * case["block_nbytes"] for case in EXPANSIONS) > 16 << 32


def cipher_of(case, *contributions):
    none = np.empty(0, np.uint64)
    key = ClientKey(PARAMS, KeyMaterial((), none, none), bytes.fromhex(case["key"]), case["epoch"])
    assert key.fingerprint == case["fingerprint"]
    own = Contribution(case["site"], bytes.fromhex(case["nonce"]))
    return FLASHEBackend(PARAMS, key).cipher(case["round"], contributions or [own])


@pads
def test_a_pad(case):
    """What encryption adds to zeros, and decryption takes from them."""
    cipher = cipher_of(case)
    for expected in case["blocks"]:
        pad = cipher.encrypt(expected["block"], np.zeros(FLASHE_BLOCK_WORDS, np.uint64))
        assert_words(pad, expected)
        taken = cipher.decrypt(expected["block"], np.zeros(FLASHE_BLOCK_WORDS, np.uint64))
        np.testing.assert_array_equal(taken + pad, 0)


@pads
def test_a_pad_is_the_keystream_of_its_key(case):
    stream = Keystream(bytes.fromhex(case["pad_key"]))
    for expected in case["blocks"]:
        pad = np.empty(8 * FLASHE_BLOCK_WORDS, np.uint8)
        stream.read(expected["block"] * pad.size, pad)
        assert_words(pad.view("<u8"), expected)


def test_whole_blocks_at_a_time():
    """A frame of blocks is padded as its blocks are one by one."""
    case = PADS[0]
    together = cipher_of(case).encrypt(0, np.zeros(6 * FLASHE_BLOCK_WORDS, np.uint64)).reshape(6, -1)
    for expected in case["blocks"][:3]:
        assert_words(together[expected["block"]], expected)


def test_pads_of_several_sites_are_taken_off_together():
    one, other = (case for case in PADS[:2])
    both = [Contribution(case["site"], bytes.fromhex(case["nonce"])) for case in (one, other)]
    total = cipher_of(one, *both).decrypt(5, np.zeros(FLASHE_BLOCK_WORDS, np.uint64))
    for case in (one, other):
        total += cipher_of(case).encrypt(5, np.zeros(FLASHE_BLOCK_WORDS, np.uint64))
    assert not total.any()


def test_every_field_changes_the_pad():
    """Cases differ in key, epoch, round, site or nonce, and share no pad; what HKDF is given says which field it is."""
    assert len({case["pad_key"] for case in PADS}) == len({case["info"] for case in PADS}) == len(PADS)
    for case in PADS:
        assert bytes.fromhex(case["info"]).startswith(b"\x14\0\0\0secagg flashe pad v1\x20\0\0\0")
