"""Peak memory of one task in a process of its own: ``python peak_memory.py TASK FOLDER``, the result as JSON.

The folder holds ``config.json``, both key files and ``model.npz``. A task sets itself up first; what is reported is
the process's peak after the task less its resident memory before.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

import secagg
from secagg.bench.memory import peak, resident


def encrypt(folder: Path) -> Callable[[], int]:
    """A site encrypts; returns the size of the update."""
    site = secagg.Client(_config(folder), secagg.load_key(folder / "client.key"), "site-1")
    state = _model(folder)
    return lambda: len(site.encrypt(state).to_bytes())


def encrypt_bare(folder: Path) -> Callable[[], int]:
    """TenSEAL itself does what a site does."""
    import tenseal as ts

    params = _config(folder).params
    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        params.poly_modulus_degree,
        coeff_mod_bit_sizes=list(params.coeff_mod_bit_sizes),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
    )
    context.global_scale = 2.0**params.scale_bits
    flat = np.concatenate([tensor.reshape(-1) for tensor in _model(folder).values()])
    return lambda: len(ts.ckks_vector(context, flat).serialize())


def aggregate(folder: Path) -> Callable[[], int]:
    """An aggregator adds the files whose paths arrive on stdin, and answers each; returns the number of sites."""
    config, key = _config(folder), secagg.load_key(folder / "server.key")

    def task() -> int:
        aggregator = secagg.Aggregator(config, key)
        for line in sys.stdin:
            with secagg.Update.open(line.rstrip("\n")) as update:
                aggregator.add(update)
            print("added", file=answers, flush=True)
        result = aggregator.finish()
        return len(result.header.contributions)

    return task


def stream(folder: Path) -> Callable[[], int]:
    """A site encrypts 10⁹ float32 values into a file; returns the size of the update."""
    site = secagg.Client(_config(folder), secagg.load_key(folder / "client.key"), "site-1")
    values = np.random.default_rng(0).uniform(-1, 1, 1_000_000).astype(np.float32)
    state = {f"layer-{number}.weight": np.tile(values, 100) for number in range(10)}
    path = folder / "stream.secagg"

    def task() -> int:
        site.encrypt_to(path, state)
        try:
            return path.stat().st_size
        finally:
            path.unlink()

    return task


TASKS = {"encrypt": encrypt, "encrypt-bare": encrypt_bare, "aggregate": aggregate, "stream": stream}


def _config(folder: Path) -> secagg.Config:
    return secagg.Config.from_dict(json.loads((folder / "config.json").read_text()))


def _model(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "model.npz") as arrays:
        return dict(arrays)


def _own_stdout() -> TextIO:
    """Keep stdout for answers: what libraries print goes to stderr."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    answers = _own_stdout()
    run = TASKS[sys.argv[1]](Path(sys.argv[2]))
    start = resident()
    result = run()
    above = peak() - start
    libraries = sorted({"tenseal", "Pyfhel", "torch"} & sys.modules.keys())
    print(json.dumps({"start": start, "above": above, "result": result, "libraries": libraries}), file=answers)
