"""Scheme parameters: frozen, validated, in SEAL's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, show

#: Largest log2 of the whole coefficient modulus (special prime included) for 128-bit classical security with a
#: ternary secret, by polynomial degree: Bossuat et al., "Security Guidelines for Implementing Homomorphic
#: Encryption", ePrint 2024/463, table 5.2. It is stricter than the 2018 table that SEAL enforces.
MAX_COEFF_MOD_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}

_FIELDS = ("poly_modulus_degree", "coeff_mod_bit_sizes", "scale_bits", "scheme")


@dataclass(frozen=True)
class Params:
    """Parameters of CKKS.

    Parameters
    ----------
    poly_modulus_degree : int
        Degree N of the ring, a power of two from 1024 to 32768; a block has N/2 slots.
    coeff_mod_bit_sizes : tuple of int
        Bits of each prime. The last is SEAL's special prime, which ciphertexts do not carry; a single prime is
        a data prime.
    scale_bits : int
        log2 of the scale by which values are multiplied before they are rounded to integers.
    scheme : str
        ``"CKKS"``.

    Raises
    ------
    ConfigError
        If a value has the wrong type, is out of SEAL's range, or the modulus exceeds the 128-bit ceiling of
        ePrint 2024/463.
    """

    poly_modulus_degree: int
    coeff_mod_bit_sizes: tuple[int, ...]
    scale_bits: int
    scheme: str = "CKKS"

    def __post_init__(self) -> None:
        if self.scheme != "CKKS":
            raise ConfigError(f"he.config.scheme is {show(self.scheme)}; this version knows CKKS")
        if not isinstance(self.coeff_mod_bit_sizes, (tuple, list)):
            raise ConfigError(
                f"coeff_mod_bit_sizes is {show(self.coeff_mod_bit_sizes)}; give a list such as [60, 40, 40]"
            )
        object.__setattr__(self, "coeff_mod_bit_sizes", tuple(self.coeff_mod_bit_sizes))
        degree, sizes = self.poly_modulus_degree, self.coeff_mod_bit_sizes
        if not _is_int(degree) or degree not in MAX_COEFF_MOD_BITS:
            raise ConfigError(
                f"poly_modulus_degree is {show(degree)}; use one of {', '.join(map(str, MAX_COEFF_MOD_BITS))}"
            )
        if not sizes or not all(_is_int(bits) for bits in sizes):
            raise ConfigError(
                f"coeff_mod_bit_sizes is {show(list(sizes))}; give the bits of each prime, such as [60, 40, 40]"
            )
        smallest = degree.bit_length() + 1  # primes are 1 modulo 2N
        if any(not smallest <= bits <= 60 for bits in sizes):
            raise ConfigError(
                f"coeff_mod_bit_sizes is {show(list(sizes))}; at degree {degree} each prime has {smallest} to 60 bits"
            )
        if sum(sizes) > MAX_COEFF_MOD_BITS[degree]:
            raise ConfigError(
                f"coeff_mod_bit_sizes {list(sizes)} add up to {sum(sizes)} bits; 128-bit security at "
                f"poly_modulus_degree {degree} allows {MAX_COEFF_MOD_BITS[degree]} (ePrint 2024/463): use fewer or "
                "smaller primes, or a larger degree"
            )
        if not _is_int(self.scale_bits) or not 1 <= self.scale_bits <= 120:
            raise ConfigError(f"scale_bits is {show(self.scale_bits)}; use 1 to 120, such as 40")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Params:
        """Read the ``he.config`` block; unknown and missing keys raise `ConfigError`."""
        unknown = [str(key) for key in config if key not in _FIELDS]
        if unknown:
            raise ConfigError(f"he.config has an unknown key {unknown[0]!r}; it knows {', '.join(_FIELDS)}")
        missing = [key for key in _FIELDS[:3] if key not in config]
        if missing:
            raise ConfigError(f"he.config needs {missing[0]!r}")
        return cls(
            poly_modulus_degree=config["poly_modulus_degree"],
            coeff_mod_bit_sizes=config["coeff_mod_bit_sizes"],
            scale_bits=config["scale_bits"],
            scheme=config.get("scheme", "CKKS"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the ``he.config`` block that makes these params."""
        return {
            "scheme": self.scheme,
            "poly_modulus_degree": self.poly_modulus_degree,
            "coeff_mod_bit_sizes": list(self.coeff_mod_bit_sizes),
            "scale_bits": self.scale_bits,
        }

    @property
    def slot_count(self) -> int:
        """Real values a block."""
        return self.poly_modulus_degree // 2

    @property
    def data_bit_sizes(self) -> tuple[int, ...]:
        """Bits of the primes that a ciphertext carries: all but the special prime."""
        return self.coeff_mod_bit_sizes[:-1] or self.coeff_mod_bit_sizes

    @property
    def has_special_prime(self) -> bool:
        """Whether SEAL sets the last prime aside (it does when there are two or more)."""
        return len(self.coeff_mod_bit_sizes) > 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
