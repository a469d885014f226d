"""What many patterns over many names cost an update: 1,159 of ``max_abs`` and 1,920 tensors of 4 values."""

from __future__ import annotations

import time

import numpy as np

import secagg

TENSORS, PATTERNS, ROUNDS = 1920, 1159, 15


def test_patterns(benchmark, message, decrypted, report, times):
    names = [f"blocks.{index // 12}.layer.{index % 12}.weight" for index in range(TENSORS)]
    state = {name: np.full(4, 0.25, np.float32) for name in names}
    patterns = {"default": 1.0} | {f"{name.removesuffix('weight')}*": 0.5 for name in names[:PATTERNS]}
    sites, keys = {}, {}
    for what, max_abs in (("patterns", patterns), ("number", 1.0)):
        config = secagg.Config.from_dict(
            {
                "he": {"lib": "flashe", "config": {"value_bits": 16}},
                "aggregation": {"min_clients": 3, "max_clients": 4, "max_abs": max_abs},
            }
        )
        keys[what] = secagg.generate_keys(config)
        sites[what] = secagg.Client(config, keys[what].client, "site-1")
    start = time.perf_counter()
    sites["patterns"].encrypt(state)
    first = time.perf_counter() - start
    matched, plain = times(), times()

    def turn() -> None:
        matched.run(lambda: sites["patterns"].encrypt(state))
        plain.run(lambda: sites["number"].encrypt(state))

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    assert sites["patterns"].layout(state).bounds(sites["patterns"].config.aggregation)[names[0]] == 0.5
    sent = sites["patterns"].encrypt(state)
    message(sent, decrypted(sites["patterns"].config, keys["patterns"], sent, state), state)
    benchmark.extra_info.update(first_seconds=first, matched_seconds=matched.seconds, plain_seconds=plain.seconds)
    report.measure(
        "patterns",
        matched.seconds / plain.seconds,
        f"{1e3 * matched.seconds:.0f} against {1e3 * plain.seconds:.0f} ms; {1e3 * first:.0f} ms at first",
    )
