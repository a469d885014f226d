"""seal-python as its examples use it: a CKKS ciphertext a block, under the secret key, with Clara's params."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import seal
from numpy.typing import NDArray

from ..settings import CLARA
from .job import Job, joined, split

_KEY_FILE = "secret.seal"
_SLOTS = CLARA["poly_modulus_degree"] // 2
_SCALE = 2.0 ** CLARA["scale_bits"]


class Site:
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        self._job, context = job, _context()
        secret = seal.KeyGenerator(context).secret_key()
        (job.keys / _KEY_FILE).write_bytes(secret.to_string())
        self._encoder, self._encryptor = seal.CKKSEncoder(context), seal.Encryptor(context, secret)

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`."""
        flat = self._job.flat(site)
        blocks = (flat[start : start + _SLOTS] for start in range(0, flat.size, _SLOTS))
        plain = (self._encoder.encode(block, _SCALE) for block in blocks)
        return joined([self._encryptor.encrypt_symmetric(block).to_string() for block in plain])


class Server:
    """See `roles.Server`."""

    def __init__(self, job: Job) -> None:
        self._context = _context()
        self._evaluator = seal.Evaluator(self._context)
        self._total: list[seal.Ciphertext] = []

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`."""
        blocks = [_block(self._context, part) for part in split(message.read_bytes())]
        if not self._total:
            self._total = blocks
            return
        for mine, other in zip(self._total, blocks, strict=True):
            self._evaluator.add_inplace(mine, other)

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        answer.write_bytes(joined([block.to_string() for block in self._total]))


class Reader:
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None:
        self._job, self._context = job, _context()
        secret = self._context.from_secret_str((job.keys / _KEY_FILE).read_bytes())
        self._encoder, self._decryptor = seal.CKKSEncoder(self._context), seal.Decryptor(self._context, secret)

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        plain = seal.Plaintext()
        parts = []
        for part in split(answer):
            self._decryptor.decrypt(_block(self._context, part), plain)
            parts.append(self._encoder.decode(plain))
        return self._job.shaped(np.concatenate(parts) / sum(self._job.weights))


def _context() -> seal.SEALContext:
    degree = CLARA["poly_modulus_degree"]
    parms = seal.EncryptionParameters(seal.scheme_type.ckks)
    parms.set_poly_modulus_degree(degree)
    parms.set_coeff_modulus(seal.CoeffModulus.Create(degree, list(CLARA["coeff_mod_bit_sizes"])))
    return seal.SEALContext(parms)


def _block(context: seal.SEALContext, part: bytes) -> seal.Ciphertext:
    block = seal.Ciphertext()
    block.load_bytes(context, part)
    return block
