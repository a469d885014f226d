"""Sums that sites must not take: not those of the updates listed, or with tags that are not theirs; one a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import by_hand
import tail_by_hand
from container import Container, block_nbytes, pack_rows, rows, tag_moduli
from maker import Change, Maker, prefix_of
from scheme_faults import added, shifted
from section_numbers import Numbers
from tail_faults import body, resigned


def sum_faults(maker: Maker) -> None:
    """Add them all."""
    _tags(maker)
    _bodies(maker)
    _sums(maker)
    _attacks(maker)


def _tags(maker: Maker) -> None:
    """Right sums with other tags."""

    def swapped(container: Container) -> None:
        assert container.tags[1] != container.tags[2]
        container.tags[1:3] = container.tags[2:0:-1]

    def zeros(container: Container) -> None:
        container.tags[1:] = [0] * (len(container.tags) - 1)

    for config in ("all", "partly", "whole", "seeded", "bgv", "bgv-whole", "bgv-partly", "signed", "flashe"):
        moduli = tag_moduli(maker.good.key(config).header)
        last = len(moduli) - 1

        def more(place: int, moduli: list[int] = moduli) -> Change:
            return lambda c: c.tags.__setitem__(place, (c.tags[place] + 1) % moduli[place])

        bad_sum(maker, config, "tag", "the tag of integers is one more", more(0))
        if config in ("partly", "signed", "flashe"):
            bad_sum(maker, config, "tag-zero", "no tag of integers", lambda c: c.tags.__setitem__(0, 0))
        if last:
            bad_sum(maker, config, "word-tag", "the last tag of ciphertext words is one more", more(last))
        if config in ("all", "whole", "signed", "bgv-whole"):
            bad_sum(maker, config, "word-tags-swapped", "two tags of ciphertext words in each other's place", swapped)
            bad_sum(maker, config, "word-tags-zero", "no tags of ciphertext words", zeros)
    moduli = tag_moduli(maker.good.key("all").header)

    def beyond(container: Container) -> None:
        container.tags[1] += moduli[1]

    bad_sum(maker, "all", "word-tag-beyond", "the prime is added to a tag of ciphertext words", beyond)


def _bodies(maker: Maker) -> None:
    """Right sums and tags, whose pads derive from the digests of other bodies."""
    for config in ("all", "bgv-whole", "flashe"):
        bad_sum(maker, config, "body", "the digest of another body, which nobody signed", body(0, bytes(32)))
        bad_sum(maker, config, "bodies-swapped", "two proofs in each other's place", lambda c: c.proofs.reverse())
    theirs = [site for site, _ in maker.good["signed-aggregate"].header["contributions"]].index("site-2")
    bad_sum(
        maker, "signed", "body", "the digest of another body, which its site signed", resigned(body(theirs, bytes(32)))
    )


def _sums(maker: Maker) -> None:
    """Sums that are plausible, and are not those of the updates listed, which their sites have signed."""

    def bad(config: str, name: str, fault: str, change: Change) -> None:
        bad_sum(maker, config, name, fault, change)

    one = maker.good["signed-update"]

    def only_one(container: Container) -> None:
        container.payloads, container.tags = one.payloads, one.tags

    bad("signed", "one", "one site's update, listed as the sum of both", only_one)
    both = [site for site, _ in maker.good["signed-aggregate"].header["contributions"]]
    assert both == ["site-2", "site-1"]
    whole = maker.good["bgv-whole-update"]

    def doubled(container: Container) -> None:
        key = maker.good.key("bgv-whole")
        container.payloads = [on_words(key, whole, lambda _, row, prime: [2 * word % prime for word in row])]
        container.tags = [2 * tag % modulus for tag, modulus in zip(whole.tags, tag_moduli(key.header), strict=True)]

    bad("bgv-whole", "doubled", "one site's update twice, listed as the sum of two", doubled)
    numbers = Numbers.of(maker.good["flashe-aggregate"].header)
    bad("flashe", "value", "a value is one step more", added({sum(numbers) - numbers.other: 1}))
    bad("flashe", "digit", "a value of a small tensor is one step more", added({numbers.weight + 1: 1}))
    bad("flashe", "weight", "a weight is a little more", added({0: 1}))
    bad("bgv-partly", "clear", "a clear value is one step more", clear(0, 1))

    def unsigned(container: Container) -> None:
        key = maker.good.key("bgv-partly")
        words, place = tail_by_hand.integers_of(container, key), tail_by_hand.place_of(container, key)
        assert min(words) < 0
        pads = [tail_by_hand.pad(place, *item) for item in tail_by_hand.contributions_of(container)]
        container.tags[0] = tail_by_hand.tag(tail_by_hand.point(place), [word % 2**64 for word in words], pads)

    bad("bgv-partly", "clear-unsigned", "the tag of clear words taken as unsigned", unsigned)
    bad("bgv-partly", "clear-padding", "a word behind the last clear value", clear(4095, 1))
    bad("partly", "clear", "a clear value is one step more", clear(0, 1))
    bad("seeded", "shifted", "every value is a little more", shifted(maker, "seeded", 1 << 9))


def _attacks(maker: Maker) -> None:
    """Sums that would tell of the secret key, were they decrypted: of whole ciphertexts, which carry c1."""

    def secret(container: Container) -> None:
        """(0, Δ): the message is Δ·s."""
        rows_ = lambda index, row, prime: [1 << 15 if index else 0] * len(row)  # noqa: E731
        container.payloads = [on_words(maker.good.key("whole"), container, rows_)]

    bad_sum(maker, "whole", "secret", "c0 is zero and c1 a number: the message is the secret key", secret)

    def multiple(container: Container) -> None:
        """(t·X^j, t): a multiple of t, whose noise depends on the secret key, and nothing of the plaintext."""
        key = maker.good.key("bgv-whole")
        plain = key.header["plain_modulus"]

        def change(index: int, row: list[int], prime: int) -> list[int]:
            factors = [1] * len(row) if index else monomial(5, len(row), prime)
            return [(word + plain * factor) % prime for word, factor in zip(row, factors, strict=True)]

        container.payloads = [on_words(key, container, change)]

    bad_sum(maker, "bgv-whole", "multiple", "t·X^5 is added to c0, and t to c1: the plaintext is the same", multiple)


def bad_sum(maker: Maker, config: str, name: str, fault: str, change: Change) -> None:
    """An aggregate that sites refuse. Where sites sign, all have signed their part of it."""
    name, source = f"{config}-sum-{name}", f"{prefix_of(config)}aggregate"
    maker.edit(name, "DecryptionError", fault, change, source, reads="decrypt", config=config)


# Changes.


def on_words(key: Container, container: Container, change: Callable[[int, list[int], int], list[int]]) -> bytes:
    """Change the rows of whole ciphertexts; `change` gets the index of the polynomial, the row and its prime."""
    params, payload, primes = container.header["params"], container.payloads[0], by_hand.data_primes(key)
    nbytes, blocks = block_nbytes(params), []
    for start in range(0, len(payload), nbytes):
        changed = [
            change(index // len(primes), row, primes[index % len(primes)])
            for index, row in enumerate(rows(payload[start : start + nbytes], params))
        ]
        blocks.append(pack_rows(changed, params))
    return b"".join(blocks)


def monomial(power: int, degree: int, prime: int) -> list[int]:
    """X to a power in NTT form: word k is its value at ψ^(2·rev(k) + 1)."""
    base = next(g for g in itertools.count(2) if pow(g, (prime - 1) // 2, prime) == prime - 1)
    root = pow(base, (prime - 1) // (2 * degree), prime)
    least = min(pow(root, exponent, prime) for exponent in range(1, 2 * degree, 2))
    bits = degree.bit_length() - 1
    exponents = [2 * int(f"{index:0{bits}b}"[::-1], 2) + 1 for index in range(degree)]
    return [pow(least, power * exponent, prime) for exponent in exponents]


def clear(index: int, amount: int) -> Change:
    """Add to a word of the clear section."""

    def apply(container: Container) -> None:
        payload = container.payloads[1]
        word = (int.from_bytes(payload[8 * index : 8 * index + 8], "little") + amount) % 2**64
        container.payloads[1] = payload[: 8 * index] + word.to_bytes(8, "little") + payload[8 * index + 8 :]

    return apply
