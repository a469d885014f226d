"""Flattening a model and scattering it back, beside one memcpy of as many bytes."""

from __future__ import annotations

import ctypes

import numpy as np

import secagg_ext

ROUNDS = 100


def test_flatten(compare, report, benchmark, model, flat):
    sources = [tensor.numpy().reshape(-1) for tensor in model.values()]
    out, copy = np.empty_like(flat), np.empty_like(flat)
    outcome = compare(lambda: secagg_ext.flatten(sources, out), lambda: memcpy(copy, flat), ROUNDS)
    assert np.array_equal(out, flat)
    assert np.array_equal(copy, flat)
    benchmark.extra_info["nbytes"] = flat.nbytes
    report.measure("flatten", outcome.ratio, outcome.detail)


def test_scatter(compare, report, benchmark, model, flat):
    targets = [np.empty(tensor.numel(), np.float32) for tensor in model.values()]
    copy = np.empty_like(flat)
    outcome = compare(lambda: secagg_ext.scatter(flat, targets), lambda: memcpy(copy, flat), ROUNDS)
    assert np.array_equal(np.concatenate(targets), flat)
    benchmark.extra_info["nbytes"] = flat.nbytes
    report.measure("scatter", outcome.ratio, outcome.detail)


def memcpy(target: np.ndarray, source: np.ndarray) -> None:
    ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)
