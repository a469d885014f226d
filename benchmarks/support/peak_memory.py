"""Peak memory of one task in a process of its own: ``python peak_memory.py TASK FOLDER``, the result as JSON.

The folder holds ``config.json``, ``client.key`` and ``model.npz``. A task sets itself up first; what is reported is
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


TASKS = {"encrypt": encrypt, "encrypt-bare": encrypt_bare}


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
    print(json.dumps({"above": above, "result": result}), file=answers)
