"""Seeds, derived keys and decoding once more, from docs/wire-format.md: Python's integers, and AES block by block.

It shares no code with secagg, whose kernels and backends are held against what it computes.
"""

from __future__ import annotations

import cmath
import hashlib
import hmac
import itertools
from collections.abc import Iterator
from fractions import Fraction
from math import ceil

import numpy as np
from container import CALIBRATION, SCALES, Container, block_nbytes, lanes, rows, unpack
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from phases import phase
from section_numbers import limit_of

#: What a client key's payload begins with.
ROOT_NBYTES = 32

# Nonces in place of c1.


def keystream(key: bytes, offset: int, nbytes: int) -> bytes:
    """Bytes of AES-256 in counter mode from counter 0, each counter block encrypted by itself."""
    first, last = offset // 16, -(-(offset + nbytes) // 16)
    counters = b"".join(counter.to_bytes(16, "big") for counter in range(first, last))
    blocks = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(counters)
    return blocks[offset - 16 * first :][:nbytes]


def slack(prime: int, degree: int) -> int:
    """Candidates of a region beyond the words of a row."""
    over = ceil(Fraction(2 * degree * (2 ** prime.bit_length() - prime), prime))
    return 8 * ceil((over + 64) / 8)


def region_nbytes(prime: int, degree: int) -> int:
    return 8 * (degree + slack(prime, degree))


def mask(nonce: bytes, primes: list[int], degree: int, block: int) -> list[list[int]]:
    """The rows of c1 of one block."""
    offset, result = block * sum(region_nbytes(prime, degree) for prime in primes), []
    for prime in primes:
        region = keystream(nonce, offset, region_nbytes(prime, degree))
        offset += len(region)
        candidates = (word % 2 ** prime.bit_length() for word in unpack(region, 64))
        below = [candidate for candidate in candidates if candidate < prime]
        assert len(below) >= degree
        result.append(below[:degree])
    return result


# Keys that derive from that of the federation.


def samples(key: bytes, prime: int) -> Iterator[int]:
    """Words below a prime: the lowest bits of the keystream's u64, where they are below it."""
    for offset in itertools.count(0, 4096):
        for word in unpack(keystream(key, offset, 4096), 64):
            if (candidate := word % 2 ** prime.bit_length()) < prime:
                yield candidate


def info_of(purpose: str, fingerprint: str, epoch: int, *fields: bytes | int) -> bytes:
    """HKDF's info: fields, each behind its length; numbers are u64."""
    first = (purpose.encode("ascii"), bytes.fromhex(fingerprint))
    packed = [field.to_bytes(8, "little") if isinstance(field, int) else field for field in (*first, epoch, *fields)]
    return b"".join(len(field).to_bytes(4, "little") + field for field in packed)


def pad_info(fingerprint: str, epoch: int, round: int, site: str, nonce: bytes) -> bytes:
    """That of FLASHE's pads."""
    return info_of("secagg flashe pad v1", fingerprint, epoch, round, site.encode("ascii"), nonce)


def root_of(key: Container) -> bytes:
    """What all keys derive from: it comes first."""
    return key.payloads[0][:ROOT_NBYTES]


def secret_of(key: Container) -> list[list[int]]:
    """The secret words of a client key of a lattice scheme, a row a data prime; they come behind the root."""
    degree, payload = key.header["params"]["poly_modulus_degree"], b"".join(key.payloads)
    words = unpack(payload[ROOT_NBYTES:][: 8 * degree * len(data_primes(key))], 64)
    return [words[start : start + degree] for start in range(0, len(words), degree)]


def data_primes(key: Container) -> list[int]:
    """The primes that a ciphertext has."""
    return key.header["primes"][:-1] or key.header["primes"]


def derive(root: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 without salt, 32 bytes (RFC 5869): extract, then the first block of expand."""
    extracted = hmac.new(bytes(32), root, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


# Decoding.


def sums(aggregate: Container, key: Container, count: int) -> list[int]:
    """The first numbers of the encrypted section of an exact scheme: Σ z. All that is behind them must be 0."""
    params, numbers = aggregate.header["params"], aggregate.header["aggregation"]
    limit = 1 if aggregate.kind in (CALIBRATION, SCALES) else limit_of(params)
    shape, sites, result = lanes(params, numbers, limit), len(aggregate.header["contributions"]), []
    for block in range(block_count(aggregate)):
        words = plain_words(aggregate, key, block)
        assert all(word >> shape.bits * shape.per_word == 0 for word in words)
        for value in range(shape.words * shape.per_word):
            word, shift = shape.place(value)
            total = words[word] >> shift & (1 << shape.bits) - 1
            assert total <= 2 * shape.limit * sites
            result.append(total - shape.limit * sites)
    assert not any(result[count:])
    return result[:count]


def plain_words(aggregate: Container, key: Container, block: int) -> list[int]:
    """The plaintext words of a block of BGV or FLASHE."""
    header = aggregate.header
    if header["params"]["scheme"] == "BGV":
        plain = key.header["plain_modulus"]
        return bgv_slots([word % plain for word in phases(aggregate, key, block)], plain)
    words = np.array(rows(packed_block(aggregate, block), header["params"])[0], dtype=np.uint64)
    for site, nonce in header["contributions"]:
        info = pad_info(header["key"], header["epoch"], header["round"], site, bytes.fromhex(nonce))
        stream = keystream(derive(root_of(key), info), 8 * block * words.size, 8 * words.size)
        words -= np.frombuffer(stream, "<u8")
    return words.tolist()


def phases(aggregate: Container, key: Container, block: int) -> list[int]:
    """Message plus noise of a block of CKKS or BGV, coefficient by coefficient."""
    secret = np.array(secret_of(key), dtype=np.uint64)
    return phase(np.array(polynomials(aggregate, key, block), dtype=np.uint64), secret, data_primes(key)).tolist()


def polynomials(aggregate: Container, key: Container, block: int) -> list[list[int]]:
    """The rows of c0 and c1 of a block; in place of a c1 that is not sent, what nonces stand for."""
    params, primes = aggregate.header["params"], data_primes(key)
    words = rows(packed_block(aggregate, block), params)
    if params["seeded"]:
        nonces = [bytes.fromhex(nonce) for _, nonce in aggregate.header["contributions"]]
        masks = [mask(nonce, primes, params["poly_modulus_degree"], block) for nonce in nonces]
        words += [
            [sum(column) % prime for column in zip(*parts, strict=True)]
            for prime, *parts in zip(primes, *masks, strict=True)
        ]
    return words


def bgv_slots(message: list[int], plain: int) -> list[int]:
    """Slot i is the message at ψ^(3^i), slot N/2 + i at ψ^(−3^i); ψ is the least primitive root of order 2N."""
    degree = len(message)
    base = next(g for g in itertools.count(2) if pow(g, (plain - 1) // 2, plain) == plain - 1)
    root = pow(base, (plain - 1) // (2 * degree), plain)
    least = min(pow(root, power, plain) for power in range(1, 2 * degree, 2))
    assert plain < 2**31  # products are below 2**62, sums of remainders below 2**43
    powers = np.array([pow(least, power, plain) for power in range(2 * degree)])
    coefficients, places = np.array(message), np.arange(degree)
    exponents = [pow(3, i, 2 * degree) for i in range(degree // 2)]
    exponents += [-exponent % (2 * degree) for exponent in exponents]
    return [
        int((coefficients * powers[places * exponent % (2 * degree)] % plain).sum() % plain) for exponent in exponents
    ]


def ckks_slots(message: list[int], scale_bits: int) -> list[complex]:
    """Slot i is the message at ζ^(3^i), over the scale; ζ = exp(πi/N)."""
    degree = len(message)
    powers = np.array([cmath.exp(1j * cmath.pi * power / degree) for power in range(2 * degree)])
    coefficients, places = np.array(message, dtype=float) / 2.0**scale_bits, np.arange(degree)
    exponents = [pow(3, i, 2 * degree) for i in range(degree // 2)]
    return [complex((coefficients * powers[places * exponent % (2 * degree)]).sum()) for exponent in exponents]


def reals(aggregate: Container, key: Container) -> list[float]:
    """All values of the encrypted section of CKKS, Σ x·w / max_weight, the weight's own first."""
    params = aggregate.header["params"]
    slots = itertools.chain.from_iterable(
        ckks_slots(phases(aggregate, key, block), params["scale_bits"]) for block in range(block_count(aggregate))
    )
    if params["complex_slots"]:
        return [part for slot in slots for part in (slot.real, slot.imag)]
    return [slot.real for slot in slots]


def block_count(container: Container) -> int:
    """Blocks of the encrypted section."""
    return len(container.payloads[0]) // block_nbytes(container.header["params"])


def packed_block(container: Container, block: int) -> bytes:
    """One packed block of the encrypted section, which here is one frame."""
    nbytes = block_nbytes(container.header["params"])
    return container.payloads[0][block * nbytes : (block + 1) * nbytes]
