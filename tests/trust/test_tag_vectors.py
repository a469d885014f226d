"""Tags, held against tags.json, which is computed without secagg."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pinned_headers import header_of

import secagg_ext
from secagg import ClientKey
from secagg.trust.key import KeyMaterial
from secagg.trust.tags import Authenticator

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
CASES = json.loads((FOLDER / "tags.json").read_text())["cases"]
PRIME = 2**127 - 1

cases = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))


def authenticator_of(case):
    none = np.empty(0, np.uint64)
    header = header_of(case)
    key = ClientKey(header.params, KeyMaterial((), none, none), bytes.fromhex(case["key"]), header.epoch)
    assert key.fingerprint == header.key
    return Authenticator(key, header)


def tag_of(authenticator, case):
    (tag,) = authenticator.tags([bytes.fromhex(body) for body in case["bodies"]])
    return tag


def words_of(case):
    """Encrypted words and clear ones, as two's complement."""
    for name in ("encrypted", "clear"):
        numbers = [first + step * index for first, step, count in case[name] for index in range(count)]
        yield np.array([number % 2**64 for number in numbers], np.uint64)


@pytest.mark.usefixtures("kernels")
@cases
def test_words_have_this_tag(case):
    authenticator = authenticator_of(case)
    encrypted, clear = words_of(case)
    authenticator.add_integers(encrypted, signed=False)
    authenticator.add_integers(clear, signed=True)
    assert tag_of(authenticator, case) == int(case["tag"], 16)


@pytest.mark.usefixtures("kernels")
@cases
def test_a_word_at_a_time(case):
    """Wherever a stream of words is cut; a part of it may be empty."""
    authenticator = authenticator_of(case)
    encrypted, clear = words_of(case)
    for words, signed in ((encrypted, False), (clear, True)):
        for start in (*range(0, min(words.size, 3)), 3):
            end = start + 1 if start < 3 else None
            authenticator.add_integers(words[start:end], signed=signed)
    assert tag_of(authenticator, case) == int(case["tag"], 16)


@pytest.mark.usefixtures("kernels")
@cases
def test_the_point_and_the_pads(case):
    """No words have the sum of the pads, and one word more the point times it."""
    authenticator = authenticator_of(case)
    pads = sum(int(pad, 16) for pad in case["pads"])
    assert tag_of(authenticator, case) == pads % PRIME
    authenticator.add_integers(np.array([1], np.uint64), signed=False)
    assert tag_of(authenticator, case) == (int(case["alpha"], 16) + pads) % PRIME
    state = np.zeros(2, np.uint64)
    secagg_ext.poly_mac(np.array([1, 0], np.uint64), int(case["alpha"], 16), state)
    authenticator.add_integers(np.array([0], np.uint64), signed=False)
    assert tag_of(authenticator, case) == ((int(state[1]) << 64 | int(state[0])) + pads) % PRIME


def test_what_changes_what():
    """Key and common digest change α; these, site, nonce and body change r; the sites of a sum share α."""
    first, same, *_ = CASES
    assert (same["alpha"], same["pads"]) == (first["alpha"], first["pads"])
    by_place = {}
    for case in CASES:
        place = (case["key"], json.dumps(case["header"]))
        assert by_place.setdefault(place, case["alpha"]) == case["alpha"]
    assert len(set(by_place.values())) == len(by_place) > 14
    pads = {
        (case["key"], case["common"], *contribution, body): pad
        for case in CASES
        for contribution, body, pad in zip(case["contributions"], case["bodies"], case["pads"], strict=True)
    }
    assert len(set(pads.values())) == len(pads) > 8
    assert len({place[:-1] for place in pads}) < len(pads)  # two differ in the body alone
    numbers = {int(text, 16) for text in (*by_place.values(), *pads.values())}
    assert all(0 < number < PRIME for number in numbers)
    assert len(numbers) == len(by_place) + len(pads)
