"""Pyfhel as its examples use it: a ciphertext a block, under the public key, with Clara's params."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from Pyfhel import PyCtxt, Pyfhel

from ..settings import CLARA
from .job import Job, joined, split

_CONTEXT, _SECRET, _PUBLIC = "context.pyfhel", "secret.pyfhel", "public.pyfhel"
_SLOTS = CLARA["poly_modulus_degree"] // 2


class Site:
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        self._job, self._native = job, Pyfhel()
        self._native.contextGen(
            scheme="ckks",
            n=CLARA["poly_modulus_degree"],
            scale=2.0 ** CLARA["scale_bits"],
            qi_sizes=list(CLARA["coeff_mod_bit_sizes"]),
        )
        self._native.keyGen()
        (job.keys / _CONTEXT).write_bytes(self._native.to_bytes_context())
        (job.keys / _SECRET).write_bytes(self._native.to_bytes_secret_key())
        (job.keys / _PUBLIC).write_bytes(self._native.to_bytes_public_key())

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`."""
        flat = self._job.flat(site)
        blocks = (flat[start : start + _SLOTS] for start in range(0, flat.size, _SLOTS))
        return joined([self._native.encryptFrac(block).to_bytes() for block in blocks])


class Server:
    """See `roles.Server`."""

    def __init__(self, job: Job) -> None:
        self._native = _native(job)
        self._total: list[Any] = []

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`."""
        blocks = [_block(self._native, part) for part in split(message.read_bytes())]
        self._total = [mine + other for mine, other in zip(self._total, blocks, strict=True)] if self._total else blocks

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        answer.write_bytes(joined([block.to_bytes() for block in self._total]))


class Reader:
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None:
        self._job, self._native = job, _native(job)
        self._native.from_bytes_secret_key((job.keys / _SECRET).read_bytes())
        self._native.from_bytes_public_key((job.keys / _PUBLIC).read_bytes())

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        flat = np.concatenate([self._native.decryptFrac(_block(self._native, part)) for part in split(answer)])
        return self._job.shaped(flat / sum(self._job.weights))


def _native(job: Job) -> Any:
    native = Pyfhel()
    native.from_bytes_context((job.keys / _CONTEXT).read_bytes())
    return native


def _block(native: Any, part: bytes) -> Any:
    return PyCtxt(pyfhel=native, bytestring=part, scheme="ckks")
