"""secagg inside frameworks: beside NVFlare's own HE, and what Flower's messages add."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from measured import BACKENDS
from nvflare_sides import Clear, OwnHE, SecAgg
from report import TARGETS, Target

ROUNDS = 5
STEPS = {f"site-{number}": 10 * number for number in range(1, 6)}
#: Four layers of 500 by 500 with biases: 1,002,000 values in 8 tensors.
SHAPES = {f"{layer}.{name}": shape for layer in range(4) for name, shape in (("weight", (500, 500)), ("bias", (500,)))}
MAX_ABS = 0.1

TARGETS.update(
    {
        "nvflare-size-tenseal": Target(
            "message in NVFlare, 1 M parameters, tenseal with Clara's params", 2.5, "× smaller than its HE's", True
        ),
        "nvflare-time-tenseal": Target("… server a client: unpack + add", 10, "× less than its HE", True),
        "nvflare-size-bgv": Target("… message, seal BGV, 16-bit values", 19, "× smaller than its HE's", True),
        "nvflare-time-bgv": Target("… server a client: unpack + add", 30, "× less than its HE", True),
    }
)

#: Backends that are held against NVFlare's HE, and those that stand beside them.
MEASURED = {"tenseal": "tenseal", "sums": "seal-sums", "bgv": "seal-bgv-16", "flashe": "flashe-16"}


def test_nvflare(benchmark, report, times, tmp_path_factory):
    """All sides take turns, a client of each at a time; every round's mean is held against the plain one."""
    draw = np.random.default_rng(0)
    changes = {
        site: {name: draw.uniform(-0.05, 0.05, shape).astype(np.float32) for name, shape in SHAPES.items()}
        for site in STEPS
    }
    initial = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    plain = {
        name: sum(steps * changes[site][name].astype(np.float64) for site, steps in STEPS.items()) / sum(STEPS.values())
        for name in SHAPES
    }
    limits = {"min_clients": len(STEPS), "max_clients": 30, "max_abs": MAX_ABS, "max_weight": max(STEPS.values())}
    sides = {"clear": Clear(list(STEPS)), "he": OwnHE(list(STEPS))}
    for name, backend in MEASURED.items():
        folder = tmp_path_factory.mktemp(name)
        sides[name] = SecAgg(list(STEPS), folder, BACKENDS[backend], initial, **limits)
    sending, taking = {name: times() for name in sides}, {name: times() for name in sides}
    up, down, errors = {}, {}, dict.fromkeys(sides, 0.0)

    def rounds() -> None:
        for _ in range(ROUNDS):
            for site, steps in STEPS.items():
                for name, side in sides.items():
                    message = sending[name].run(side.send, site, changes[site], steps)
                    up[name] = len(message)
                    taking[name].run(side.take, message)
            for name, side in sides.items():
                down[name], mean = side.finish()
                error = max(np.abs(mean[tensor].reshape(-1) - plain[tensor].reshape(-1)).max() for tensor in SHAPES)
                errors[name] = max(errors[name], float(error))

    benchmark.pedantic(rounds)
    raw = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
    table = {
        name: {
            "nbytes": up[name],
            "times_raw": up[name] / raw,
            "site_seconds": sending[name].seconds,
            "server_seconds": taking[name].seconds,
            "server_cpu_seconds": median(taking[name].cpu),
            "aggregate_nbytes": down[name],
            "max_error": errors[name],
        }
        for name in sides
    }
    for name, row in table.items(): print(name, row)
    benchmark.extra_info.update(table)
