"""Scheme parameters: frozen, validated, in SEAL's own words, one class a scheme."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeGuard

from ..errors import ConfigError, show

#: Largest log2 of the whole coefficient modulus (special prime included) for 128-bit classical security with a
#: ternary secret, by polynomial degree: Bossuat et al., "Security Guidelines for Implementing Homomorphic
#: Encryption", ePrint 2024/463, table 5.2. It is stricter than the 2018 table that SEAL enforces.
MAX_COEFF_MOD_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}

#: Bits of the largest prime that SEAL takes, coefficient or plain modulus.
MAX_PRIME_BITS = 60

MIN_VALUE_BITS, MAX_VALUE_BITS = 3, 24
ROUNDING_CHOICES = ("stochastic", "nearest")
OVERFLOW_CHOICES = ("error", "clip")

#: 64-bit words of a FLASHE block.
FLASHE_BLOCK_WORDS = 4096

#: What a key does not depend on.
_ENCODING_FIELDS = frozenset(
    ["value_bits", "rounding", "overflow", "error_feedback", "seeded", "scale_bits", "complex_slots"]
)


@dataclass(frozen=True)
class Params:
    """Parameters of a scheme; `from_dict` makes the class that fits ``scheme``."""

    scheme: ClassVar[str]

    @property
    def block_nbytes(self) -> int:
        """Bytes of one packed block of an update."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Params:
        """Read a whole ``he.config`` block; unknown and missing keys raise `ConfigError`.

        Without ``scheme`` the block is one of CKKS, as NVIDIA Clara Train writes it.
        """
        scheme = config.get("scheme", CKKSParams.scheme)
        if not isinstance(scheme, str) or scheme not in _KINDS:
            raise ConfigError(f"he.config.scheme is {show(scheme)}; this version knows {', '.join(SCHEMES)}")
        known = known_fields(scheme)
        unknown = [str(key) for key in config if key not in known]
        if unknown:
            raise ConfigError(f"he.config has an unknown key {show(unknown[0])}; {scheme} knows {', '.join(known)}")
        kind = _KINDS[scheme]
        missing = [item.name for item in fields(kind) if item.default is MISSING and item.name not in config]
        if missing:
            raise ConfigError(f"he.config needs {missing[0]!r}")
        return kind(**{name: value for name, value in config.items() if name != "scheme"})

    def to_dict(self) -> dict[str, Any]:
        """Return the ``he.config`` block that makes these params."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {"scheme": self.scheme} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
        }

    @property
    def of_key(self) -> dict[str, Any]:
        """The part of `to_dict` that a key depends on; the rest says how values are encoded and sent."""
        return {name: value for name, value in self.to_dict().items() if name not in _ENCODING_FIELDS}


@dataclass(frozen=True)
class LatticeParams(Params):
    """What CKKS and BGV have in common.

    Parameters
    ----------
    poly_modulus_degree : int
        Degree N of the ring, a power of two from 1024 to 32768.
    coeff_mod_bit_sizes : tuple of int
        Bits of each prime. The last is SEAL's special prime, which ciphertexts do not carry; a single prime is
        a data prime.

    Raises
    ------
    ConfigError
        If a value has the wrong type, is out of SEAL's range, or the modulus exceeds the 128-bit ceiling of
        ePrint 2024/463.
    """

    #: Whether an update carries c0 alone, and its nonce stands for c1.
    seeded = False

    poly_modulus_degree: int
    coeff_mod_bit_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.coeff_mod_bit_sizes, (tuple, list)):
            raise ConfigError(
                f"coeff_mod_bit_sizes is {show(self.coeff_mod_bit_sizes)}; give a list such as [60, 40, 40]"
            )
        object.__setattr__(self, "coeff_mod_bit_sizes", tuple(self.coeff_mod_bit_sizes))
        degree, sizes = self.poly_modulus_degree, self.coeff_mod_bit_sizes
        if not is_int(degree) or degree not in MAX_COEFF_MOD_BITS:
            raise ConfigError(
                f"poly_modulus_degree is {show(degree)}; use one of {', '.join(map(str, MAX_COEFF_MOD_BITS))}"
            )
        if not sizes or not all(is_int(bits) for bits in sizes):
            raise ConfigError(
                f"coeff_mod_bit_sizes is {show(list(sizes))}; give the bits of each prime, such as [60, 40, 40]"
            )
        smallest = min_prime_bits(degree)
        if any(not smallest <= bits <= MAX_PRIME_BITS for bits in sizes):
            raise ConfigError(
                f"coeff_mod_bit_sizes is {show(list(sizes))}; at degree {degree} each prime has {smallest} to "
                f"{MAX_PRIME_BITS} bits"
            )
        if sum(sizes) > MAX_COEFF_MOD_BITS[degree]:
            raise ConfigError(
                f"coeff_mod_bit_sizes {show(list(sizes))} add up to {sum(sizes)} bits; 128-bit security at "
                f"poly_modulus_degree {degree} allows {MAX_COEFF_MOD_BITS[degree]} (ePrint 2024/463): use fewer or "
                "smaller primes, or a larger degree"
            )

    @property
    def slot_count(self) -> int:
        """Slots a block: N/2 of CKKS, N of BGV."""
        raise NotImplementedError

    @property
    def data_bit_sizes(self) -> tuple[int, ...]:
        """Bits of the primes that a ciphertext carries: all but the special prime."""
        return self.coeff_mod_bit_sizes[:-1] or self.coeff_mod_bit_sizes

    def data_primes(self, primes: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of a whole chain of primes that a ciphertext carries."""
        return primes[: len(self.data_bit_sizes)]

    @property
    def has_special_prime(self) -> bool:
        """Whether SEAL sets the last prime aside (it does when there are two or more)."""
        return len(self.coeff_mod_bit_sizes) > 1

    @property
    def block_nbytes(self) -> int:
        """Bytes of one packed block of an update: both polynomials, or c0 alone if seeded."""
        return (1 if self.seeded else 2) * sum(self.data_bit_sizes) * self.poly_modulus_degree // 8


@dataclass(frozen=True)
class CKKSParams(LatticeParams):
    """Parameters of CKKS: approximate sums of real numbers.

    Parameters
    ----------
    poly_modulus_degree, coeff_mod_bit_sizes
        See `LatticeParams`; a block has N/2 slots.
    scale_bits : int
        log2 of the scale by which values are multiplied before they are rounded to integers.
    complex_slots : bool
        Whether a slot holds two real values, as its real and its imaginary part.
    seeded : bool
        Whether updates carry c0 alone; only where the library encrypts symmetrically.
    """

    scheme: ClassVar[str] = "CKKS"

    scale_bits: int
    complex_slots: bool = False
    seeded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_int(self.scale_bits) or not 1 <= self.scale_bits <= 120:
            raise ConfigError(f"scale_bits is {show(self.scale_bits)}; use 1 to 120, such as 40")
        _check_flags(self, "complex_slots", "seeded")

    @property
    def slot_count(self) -> int:
        """Slots a block."""
        return self.poly_modulus_degree // 2


@dataclass(frozen=True, kw_only=True)
class QuantisedParams(Params):
    """How exact schemes turn values into integers.

    Parameters
    ----------
    value_bits : int
        Bits of a quantised value, 3 to 24: integers from −(2**(value_bits−1) − 1) to 2**(value_bits−1) − 1.
    rounding : str
        ``"stochastic"``, which is unbiased, or ``"nearest"``.
    overflow : str
        What becomes of values beyond ``max_abs``, or what was measured: ``"error"``, or ``"clip"``, which counts them.
    error_feedback : bool
        Whether what rounding and clipping dropped is added to the site's next update.

    Raises
    ------
    ConfigError
        If a value is none of these.
    """

    value_bits: int
    rounding: str = "stochastic"
    overflow: str = "error"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if not is_int(self.value_bits) or not MIN_VALUE_BITS <= self.value_bits <= MAX_VALUE_BITS:
            raise ConfigError(
                f"value_bits is {show(self.value_bits)}; use a whole number from {MIN_VALUE_BITS} to {MAX_VALUE_BITS}"
            )
        for name, choices in (("rounding", ROUNDING_CHOICES), ("overflow", OVERFLOW_CHOICES)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"{name} is {show(value)}; use {' or '.join(choices)}")
        _check_flags(self, "error_feedback")

    @property
    def limit(self) -> int:
        """Largest quantised value."""
        return (1 << (self.value_bits - 1)) - 1


@dataclass(frozen=True)
class BGVParams(LatticeParams, QuantisedParams):
    """Parameters of BGV: exact sums of quantised values, several lanes in each of N slots.

    Parameters
    ----------
    poly_modulus_degree, coeff_mod_bit_sizes
        See `LatticeParams`; a block has N slots.
    plain_modulus_bits : int
        Bits of the prime modulo which slots are added.
    value_bits, rounding, overflow, error_feedback
        See `QuantisedParams`.
    seeded : bool
        Whether updates carry c0 alone; only where the library encrypts symmetrically.
    """

    scheme: ClassVar[str] = "BGV"

    plain_modulus_bits: int
    seeded: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        LatticeParams.__post_init__(self)
        QuantisedParams.__post_init__(self)
        smallest = min_prime_bits(self.poly_modulus_degree)
        if not is_int(self.plain_modulus_bits) or not smallest <= self.plain_modulus_bits <= MAX_PRIME_BITS:
            raise ConfigError(
                f"plain_modulus_bits is {show(self.plain_modulus_bits)}; at degree {self.poly_modulus_degree} use "
                f"{smallest} to {MAX_PRIME_BITS}"
            )
        if self.plain_modulus_bits in self.coeff_mod_bit_sizes:
            raise ConfigError(
                f"plain_modulus_bits {self.plain_modulus_bits} is also in coeff_mod_bit_sizes "
                f"{list(self.coeff_mod_bit_sizes)}: SEAL would choose the same prime twice; make one larger"
            )
        _check_flags(self, "seeded")

    @property
    def slot_count(self) -> int:
        """Slots a block."""
        return self.poly_modulus_degree


@dataclass(frozen=True)
class FLASHEParams(QuantisedParams):
    """Parameters of FLASHE: exact sums modulo 2**64 under pads of AES-256-CTR; see `QuantisedParams`."""

    scheme: ClassVar[str] = "FLASHE"

    @property
    def block_nbytes(self) -> int:
        """Bytes of one block of an update."""
        return 8 * FLASHE_BLOCK_WORDS


_KINDS: dict[str, type[Params]] = {kind.scheme: kind for kind in (CKKSParams, BGVParams, FLASHEParams)}
SCHEMES = tuple(_KINDS)


def known_fields(scheme: str) -> tuple[str, ...]:
    """Return the keys that ``he.config`` may have in a scheme."""
    return ("scheme", *(item.name for item in fields(_KINDS[scheme])))


def min_prime_bits(degree: int) -> int:
    """Return the bits of the smallest prime that is 1 modulo 2N."""
    return degree.bit_length() + 1


def prime_floor(bits: int) -> int:
    """Return what a prime of so many bits that SEAL chose is surely not below: it takes the largest that suit.

    That is an assumption, which `IntegerCodec.check_moduli` verifies on the primes themselves.
    """
    return (1 << bits) - (1 << (bits - 10))


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_int(value: object) -> int | None:
    """Return a whole number of any library as an int; None of a bool, and of what is no whole number."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _check_flags(params: Params, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(params, name), bool):
            raise ConfigError(f"{name} is {show(getattr(params, name))}; use true or false")
