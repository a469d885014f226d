"""TenSEAL as its tutorials use it: one encrypted vector of the whole model, with Clara's params."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

from ..settings import CLARA
from .job import Job

_SITE, _SERVER = "site.tenseal", "server.tenseal"


class Site:
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._context = ts.context(
            ts.SCHEME_TYPE.CKKS,
            CLARA["poly_modulus_degree"],
            coeff_mod_bit_sizes=list(CLARA["coeff_mod_bit_sizes"]),
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )
        self._context.global_scale = 2.0 ** CLARA["scale_bits"]
        (job.keys / _SITE).write_bytes(self._context.serialize(save_secret_key=True))
        (job.keys / _SERVER).write_bytes(self._context.serialize(save_secret_key=False))

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`."""
        message: bytes = ts.ckks_vector(self._context, self._job.flat(site)).serialize()
        return message


class Server:
    """See `roles.Server`."""

    def __init__(self, job: Job) -> None:
        self._context = ts.context_from((job.keys / _SERVER).read_bytes())
        self._total: Any = None

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`."""
        vector = ts.ckks_vector_from(self._context, message.read_bytes())
        self._total = vector if self._total is None else self._total.add_(vector)

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        answer.write_bytes(self._total.serialize())


class Reader:
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None:
        self._job, self._context = job, ts.context_from((job.keys / _SITE).read_bytes())

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        flat = np.asarray(ts.ckks_vector_from(self._context, answer).decrypt())
        return self._job.shaped(flat / sum(self._job.weights))
