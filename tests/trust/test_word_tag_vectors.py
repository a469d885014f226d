"""Tags of ciphertext words, held against tags.json, which is computed without secagg."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from pinned_headers import header_of

import secagg_ext
from secagg import ClientKey
from secagg.trust.key import KeyMaterial
from secagg.trust.tags import Authenticator, tag_moduli

FOLDER = Path(__file__).resolve().parent.parent / "vectors"
CASES = json.loads((FOLDER / "tags.json").read_text())["word_cases"]

cases = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))


def authenticator_of(case):
    header, primes = header_of(case), tuple(case["primes"])
    secret, public = (
        np.zeros((*more, len(primes), header.params.poly_modulus_degree), np.uint64) for more in ((), (2,))
    )
    key = ClientKey(header.params, KeyMaterial(primes, secret, public), bytes.fromhex(case["key"]), header.epoch)
    assert key.fingerprint == header.key
    assert tag_moduli(key.server)[1:] == tuple(element["prime"] for element in case["elements"])
    return Authenticator(key, header)


def bodies_of(case):
    return [bytes.fromhex(body) for body in case["bodies"]]


def words_of(case):
    """The polynomials, each a row a data prime."""
    rows = list(dict.fromkeys((element["index"], element["prime"]) for element in case["elements"]))
    degree = case["header"]["params"]["poly_modulus_degree"]
    return [
        np.array(
            [
                [(case["step"] * (j + 1) + polynomial + index) ** 2 % prime for j in range(degree)]
                for index, prime in rows
            ],
            np.uint64,
        ).reshape(-1)
        for polynomial in range(case["polynomials"])
    ]


@pytest.mark.usefixtures("kernels")
@cases
def test_words_have_these_tags(case):
    """All at once, and a polynomial at a time."""
    polynomials = words_of(case)
    for pieces in ([np.concatenate([np.empty(0, np.uint64), *polynomials])], polynomials):
        authenticator = authenticator_of(case)
        for words in pieces:
            authenticator.add_ciphertext(words)
        assert [f"{tag:x}" for tag in authenticator.tags(bodies_of(case))[1:]] == [
            element["tag"] for element in case["elements"]
        ]


@cases
def test_keys_of_the_hash(case, monkeypatch):
    """β and α are the words below the prime, in the order of the stream, however many are taken at a time."""
    found = []

    def record(words, moduli, n, counts, beta, alpha, state):
        found.append((beta.reshape(-1, n).copy(), alpha.reshape(-1, len(state)).copy()))

    monkeypatch.setattr(secagg_ext, "word_macs", record)
    authenticator = authenticator_of(case)
    for words in words_of(case):
        authenticator.add_ciphertext(words)
    for number, element in enumerate(case["elements"]):
        alpha = [int(alpha[0, number]) for _, alpha in found]
        for beta, _ in found[:1]:
            row = beta[number].tolist()
            assert [f"{word:x}" for word in row[:2] + row[-2:]] == element["beta"]
            assert blake3(beta[number].tobytes()).hexdigest() == element["blake3"][0]
        assert [f"{word:x}" for word in alpha[:2] + alpha[-2:]] == element["alpha"]
        assert blake3(np.array(alpha, "<u8").tobytes()).hexdigest() == element["blake3"][1]


@cases
def test_pads(case):
    """Of words that are none: the sum of the pads."""
    tags = authenticator_of(case).tags(bodies_of(case))[1:]
    for tag, element in zip(tags, case["elements"], strict=True):
        assert tag == sum(int(pad, 16) for pad in element["pads"]) % element["prime"]


def test_the_cases_reach_what_is_hard():
    """Primes of all sizes, some with half of all candidates rejected, several rows, sites and polynomials."""
    primes = {element["prime"] for case in CASES for element in case["elements"]}
    assert {26, 36, 40, 53, 60} <= {prime.bit_length() for prime in primes}
    assert any(prime < 0.51 * 2 ** prime.bit_length() for prime in primes)
    assert {element["k"] for case in CASES for element in case["elements"]} == set(range(5))
    assert max(element["index"] for case in CASES for element in case["elements"]) == 2
    assert min(case["polynomials"] for case in CASES) == 0 < 30 < max(case["polynomials"] for case in CASES)
    assert max(len(case["contributions"]) for case in CASES) == 3
