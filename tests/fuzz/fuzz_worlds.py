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
from secagg.scheme.scales import Scales
from secagg.trust.key import KeyMaterial
from secagg.trust.project import Earlier, Party

warnings.simplefilter("ignore", PrivacyWarning)

ROUND, BASE = 4, bytes(range(32))
#: Digest of the manifest before that of each federation.
EARLIER = bytes(range(32, 64))
NAMES = ("site-1", "site-2", "site-3")
CORPUS = Path(__file__).parent / "corpus"

#: The smallest that each way of encryption takes: pads, seeded ciphertexts, whole ones; and scales that are measured in
#: the round, and in the round before.
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
SCHEMES["measured"] = SCHEMES["following"] = {
    "scheme": "BGV",
    "poly_modulus_degree": 1024,
    "coeff_mod_bit_sizes": [26],
    "plain_modulus_bits": 14,
    "value_bits": 6,
}
#: Their `precision`.
MEASURED = {"measured": "auto", "following": "previous"}
#: The only primes of 26 bits, and of 14 bits, that SEAL takes for that degree.
PRIME, PLAIN = 67_104_769, 12_289


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
    def of(cls, scheme: str, *, clear: bool, certificates: Mapping[str, bytes] | None = None) -> World:
        """One of a scheme, with a tensor in the clear or without; `certificates` are in DER, by names."""
        params, certificates = SCHEMES[scheme], certificates or {}
        lattice, exact = params["scheme"] != "FLASHE", params["scheme"] == "BGV"
        scales = {"precision": MEASURED[scheme]} if scheme in MEASURED else {"max_abs": 1.0}
        config = secagg.Config.from_dict(
            {
                "he": {"lib": "seal" if lattice else "flashe", "config": params},
                "encrypt": {"exclude": ["c"]} if clear else "all",
                "aggregation": {"min_clients": 2, "max_clients": 4, **scales},
            }
        )
        # Any words below the prime make a key whose symmetric ciphertexts decrypt; no sum is right by chance.
        rng = np.random.default_rng(0)
        words = (1, 1024) if lattice else (0,)
        secret = rng.integers(0, PRIME, words, np.uint64)
        public = rng.integers(0, PRIME, (2, *words) if lattice else words, np.uint64)
        material = KeyMaterial((PRIME,) if lattice else (), secret, public, PLAIN if exact else 0)
        key = secagg.ClientKey(config.params, material, bytes(range(32)))
        parties = []
        for name in ("server", *NAMES):
            own = certificates.get(name, name.encode())
            parties.append(Party(name, identity(name).public, hashlib.sha256(own).hexdigest()))
        project = Project(
            name="fuzz",
            serial=1,
            issued=0,
            expires=2**53,
            config=config,
            epoch=0,
            key=key.fingerprint,
            authority=identity("authority").public,
            server=parties[0],
            sites=tuple(parties[1:]),
            earlier=(Earlier(EARLIER, 0),),
            server_certificate=certificates.get("server"),
        )
        state = {"w": np.zeros(5, np.float32)} | ({"c": np.zeros(3, np.float32)} if clear else {})
        if scheme in MEASURED:  # one that fills most of a block, and a small one
            state = {"w": np.linspace(-1, 1, 100, dtype=np.float32).reshape(2, 50), "b": np.full(5, 1e-3)}
        return cls(config, key, project, state)

    def site(self, name: str = "site-1", *, project: bool = True) -> secagg.Client:
        known = {"identity": identity(name), "project": self.project} if project else {}
        return secagg.Client(self.config, self.key, name, **known)

    def aggregator(self, *, project: bool = True, kind: str = "update") -> secagg.Aggregator:
        known = self.project if project else None
        return secagg.Aggregator(self.config, self.key.server, ROUND, project=known, kind=kind)

    def updates(self, scales: secagg.Update | None) -> list[secagg.Update]:
        """What all sites send in the round: where scales are measured in it, under these."""
        given = scales if self.precision == "auto" else SCALES if self.precision == "previous" else None
        sites = [self.site(name) for name in NAMES]
        for site in sites:
            site.restore_carry(b"")
        return [site.encrypt(self.state, round=ROUND, base=BASE, calibration=given) for site in sites]

    @property
    def precision(self) -> str:
        return self.config.aggregation.precision


#: The scales that updates of "measured" are made under: a file of the corpus, so that those that were kept have them.
SCALES_SEED = "seed-measured-scales"
#: Of the tensors of "following".
SCALES = Scales((103, 84))

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
