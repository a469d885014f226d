"""Flattening a model and scattering it back, and authenticating words, beside one memcpy of as many bytes."""

from __future__ import annotations

import ctypes
import secrets

import numpy as np

import secagg_ext

ROUNDS = 100


def test_flatten(compare, report, model, flat):
    sources = [tensor.numpy().reshape(-1) for tensor in model.values()]
    out, copy = np.empty_like(flat), np.empty_like(flat)
    outcome = compare(lambda: secagg_ext.flatten(sources, out), lambda: memcpy(copy, flat), ROUNDS)
    assert np.array_equal(out, flat)
    assert np.array_equal(copy, flat)
    report.measure("flatten", outcome.ratio, outcome.detail)


def test_scatter(compare, report, model, flat):
    targets = [np.empty(tensor.numel(), np.float32) for tensor in model.values()]
    copy = np.empty_like(flat)
    outcome = compare(lambda: secagg_ext.scatter(flat, targets), lambda: memcpy(copy, flat), ROUNDS)
    assert np.array_equal(np.concatenate(targets), flat)
    report.measure("scatter", outcome.ratio, outcome.detail)


def test_poly_mac(compare, report, benchmark, flat):
    """As many words as the model has with flashe and 16-bit values, at three values a word."""
    words = np.random.default_rng(0).integers(0, 2**64, -(-flat.size // 3), np.uint64)
    alpha, copy, state = secrets.randbits(126), np.empty_like(words), np.zeros(2, np.uint64)
    outcome = compare(lambda: secagg_ext.poly_mac(words, alpha, state), lambda: memcpy(copy, words), ROUNDS)
    expected = np.zeros(2, np.uint64)
    for _ in range(ROUNDS + 1):
        for piece in np.array_split(words, 7):
            secagg_ext.poly_mac(piece, alpha, expected)
    assert np.array_equal(state, expected)
    word_ns = outcome.ours.seconds / words.size * 1e9
    benchmark.extra_info["word_ns"] = word_ns
    report.measure("poly-mac", outcome.ratio, f"{outcome.detail}, {word_ns:.2f} ns a word")


def test_word_macs(compare, report, benchmark):
    """1 MiB of the words of ciphertexts with primes of 60, 40 and 40 bits, under a tag of as many bits as sums need."""
    primes, n, counts, pieces = (2**60 - 2**14 + 1, 2**40 - 9 * 2**14 + 1, 2**40 - 30 * 2**14 + 1), 8192, (2, 3, 3), 5
    elements = np.repeat(np.array(primes, np.uint64), counts)
    rng = np.random.default_rng(0)
    words = rng.integers(0, np.array(primes, np.uint64)[:, None], (pieces, 3, n), np.uint64).reshape(-1)
    beta = rng.integers(0, elements[:, None], (8, n), np.uint64).reshape(-1)
    alpha = rng.integers(0, elements, (pieces, 8), np.uint64).reshape(-1)
    copy, state = np.empty_like(words), np.zeros(8, np.uint64)
    outcome = compare(
        lambda: secagg_ext.word_macs(words, primes, n, counts, beta, alpha, state), lambda: memcpy(copy, words), ROUNDS
    )
    expected = np.zeros(8, np.uint64)
    secagg_ext.word_macs(words, primes, n, counts, beta, alpha, expected)
    assert np.array_equal(state, expected.astype(object) * (ROUNDS + 1) % elements.astype(object))
    element_ns = outcome.ours.seconds / (pieces * n * 8) * 1e9
    benchmark.extra_info["element_ns"] = element_ns
    report.measure("word-macs", element_ns, f"{outcome.detail}, {outcome.ratio:.2f} × one memcpy")


def memcpy(target: np.ndarray, source: np.ndarray) -> None:
    ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)
