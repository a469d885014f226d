"""The federations that fuzzing plays in: the same in every process, so that inputs that were kept stay valid."""

from __future__ import annotations

import hashlib
import resource
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import secagg
from secagg import Identity, Project
from secagg.errors import PrivacyWarning, SecAggError
from secagg.trust.key import KeyMaterial
from secagg.trust.project import Party

warnings.simplefilter("ignore", PrivacyWarning)

ROUND, BASE = 4, bytes(range(32))
NAMES = ("site-1", "site-2", "site-3")
CORPUS = Path(__file__).parent / "corpus"

#: The smallest that each way of encryption takes: pads, seeded ciphertexts, whole ones.
SCHEMES: dict[str, dict[str, Any]] = {
    "words": {"scheme": "FLASHE", "value_bits": 8},
    "seeded": {"scheme": "CKKS", "poly_modulus_degree": 1024, "coeff_mod_bit_sizes": [26], "scale_bits": 20},
    "whole": {
        "scheme": "CKKS",
        "poly_modulus_degree": 1024,
        "coeff_mod_bit_sizes": [26],
        "scale_bits": 20,
        "seeded": False,
    },
}
#: The only prime of 26 bits that SEAL takes for that degree.
PRIME = 67_104_769


def identity(name: str) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


@dataclass(frozen=True)
class World:
    """A federation whose keys are made from numbers that everybody knows."""

    config: secagg.Config
    key: secagg.ClientKey
    project: Project
    state: dict[str, Any]

    @classmethod
    def of(cls, scheme: str, *, clear: bool, certificates: Mapping[str, str] | None = None) -> World:
        """One of a scheme, with a tensor in the clear or without; `certificates` are fingerprints by names."""
        params, certificates = SCHEMES[scheme], certificates or {}
        lattice = params["scheme"] != "FLASHE"
        config = secagg.Config.from_dict(
            {
                "he": {"lib": "seal" if lattice else "flashe", "config": params},
                "encrypt": {"exclude": ["c"]} if clear else "all",
                "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0},
            }
        )
        # Any words below the prime make a key whose symmetric ciphertexts decrypt; no sum is right by chance.
        rng = np.random.default_rng(0)
        words, moduli = ((1, 1024), (PRIME,)) if lattice else ((4,), ())
        secret = rng.integers(0, PRIME, words, np.uint64)
        public = rng.integers(0, PRIME, (2, *words), np.uint64) if lattice else np.empty(0, np.uint64)
        key = secagg.ClientKey(config.params, KeyMaterial(moduli, secret, public))
        members = [
            Party(name, public, certificates.get(name, public.hex()))
            for name, public in ((name, identity(name).public) for name in ("server", *NAMES))
        ]
        authority = identity("authority")
        project = Project(
            "fuzz", 1, 0, 2**53, config, 0, key.fingerprint, authority.public, members[0], tuple(members[1:])
        )
        state = {"w": np.zeros(5, np.float32)} | ({"c": np.zeros(3, np.float32)} if clear else {})
        return cls(config, key, project, state)

    def site(self, name: str = "site-1", *, project: bool = True) -> secagg.Client:
        known = {"identity": identity(name), "project": self.project} if project else {}
        return secagg.Client(self.config, self.key, name, **known)

    def aggregator(self, *, project: bool = True) -> secagg.Aggregator:
        return secagg.Aggregator(self.config, self.key.server, ROUND, project=self.project if project else None)


WORLDS = {scheme: World.of(scheme, clear=scheme == "words") for scheme in SCHEMES}
AUTHORITY, SERVER = identity("authority"), identity("server")


def attempt(act: Callable[[], object]) -> None:
    """Do it, whatever is wrong with the input; any other error escapes."""
    with suppress(SecAggError):
        act()


def limit_memory(nbytes: int) -> None:
    """Let this process have so many bytes more of addresses than it has now: what asks for them fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def scratch() -> TemporaryDirectory[str]:
    """Return a new folder, in memory where there is one that is."""
    return TemporaryDirectory(prefix="secagg-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
