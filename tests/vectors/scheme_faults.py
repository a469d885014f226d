"""Faults of seeds, of exact schemes, of epochs and of their keys, one a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import by_hand
import tail_by_hand
from blake3 import blake3
from container import Container, block_nbytes, fingerprint, lanes, pack_rows, put_word, row_offsets, rows
from maker import Maker, prefix_of
from section_numbers import Numbers

Change = Callable[[Any], Any]


def scheme_faults(maker: Maker) -> None:
    """Add them all."""
    for config in ("seeded", "bgv", "flashe"):
        _contributions(maker, config)
    _epochs(maker)
    _seeds(maker)
    _bgv(maker)
    _flashe(maker)
    _sums(maker)
    _keys(maker)


def _contributions(maker: Maker, config: str) -> None:
    """Nonces and sites, from which c1 or the pad is made."""
    update, aggregate = f"{config}-update", f"{config}-aggregate"
    other = maker.good[f"{config}-update-2"].header["contributions"][0][1]
    short = put("contributions", 0, 1, to="ab" * 16)
    maker.header(f"{config}-nonce-short", "FormatError", "a nonce of 16 bytes", short, update, config=config)
    maker.header(
        f"{config}-same-nonce",
        "DuplicateError",
        "a nonce that is in the sum",
        put("contributions", 0, 1, to=other),
        update,
        config=config,
    )
    listed = maker.good[aggregate].header["contributions"]
    for name, error, fault, change in (
        ("nonce-long", "FormatError", "a nonce of 33 bytes", put("contributions", 1, 1, to="ab" * 33)),
        ("site-twice", "DuplicateError", "a site twice", put("contributions", 1, 0, to=listed[0][0])),
        ("nonce-twice", "DuplicateError", "a nonce twice", put("contributions", 1, 1, to=listed[0][1])),
        ("capacity", "CapacityError", "five sites where max_clients is 4", more(3)),
        ("epoch", "KeyMismatchError", "another epoch", put("epoch", to=3)),
    ):
        maker.header(f"{config}-aggregate-{name}", error, fault, change, aggregate, reads="decrypt", config=config)
    for name, fault, change in (
        ("aggregate-other-nonce", "a nonce that no site drew", put("contributions", 1, 1, to="ab" * 32)),
        ("aggregate-nonce-more", "a site listed that is not in the sum", more(1)),
    ):
        fitted(maker, config, name, fault, lambda container, change=change: change(container.header))


def _epochs(maker: Maker) -> None:
    maker.header("epoch-missing", "FormatError", "no epoch", lambda header: header.pop("epoch"))
    maker.header("epoch-float", "FormatError", "the epoch is 2.0", put("epoch", to=2.0))
    maker.header("epoch-large", "FormatError", "the epoch is 2**32", put("epoch", to=2**32))
    for config in ("all", "seeded", "bgv", "flashe"):
        source = "update" if config == "all" else f"{config}-update"
        maker.header(
            f"{config}-other-epoch", "KeyMismatchError", "another epoch", put("epoch", to=1), source, config=config
        )


def _seeds(maker: Maker) -> None:
    """Half a ciphertext where a whole one belongs, and the other way round."""
    good, params = maker.good, maker.good["seeded-update"].header["params"]
    nbytes, prime = block_nbytes(params), maker.good["whole-server-key"].header["primes"][0]

    def twice(container: Container) -> None:
        container.payloads[0] *= 2

    def half(container: Container) -> None:
        payload, size = container.payloads[0], block_nbytes(container.header["params"])
        container.payloads[0] = b"".join(payload[start : start + size // 2] for start in range(0, len(payload), size))

    for config in ("seeded", "bgv"):
        maker.edit(
            f"{config}-body-whole",
            "FormatError",
            "whole ciphertexts under a seeded header",
            twice,
            f"{config}-update",
            config=config,
        )
    fault = "c0 alone under a header that is not seeded"
    maker.edit("body-seeded", "FormatError", fault, half, "whole-update", config="whole")
    maker.edit("bgv-whole-body-seeded", "FormatError", fault, half, "bgv-whole-update", config="bgv-whole")
    maker.add(
        "seeded-for-whole",
        "MismatchError",
        "a seeded update where whole ones are added",
        good.blob("seeded-update"),
        config="whole",
    )
    maker.add(
        "whole-for-seeded",
        "MismatchError",
        "a whole update where seeded ones are added",
        good.blob("whole-update"),
        config="seeded",
    )

    def complex_slots(container: Container) -> None:
        container.header["params"]["complex_slots"] = True
        container.payloads[0] = container.payloads[0][:nbytes]

    maker.edit("seeded-other-slots", "MismatchError", "complex slots", complex_slots, "seeded-update", config="seeded")
    start, bits = row_offsets(params)[0]

    def large(container: Container) -> None:
        container.payloads[0] = put_word(container.payloads[0], start, bits, 2047, prime)

    maker.edit(
        "seeded-word", "FormatError", "the last word is the prime itself", large, "seeded-update", config="seeded"
    )
    maker.header("seeded-missing", "FormatError", "params do not say whether it is seeded", drop("params", "seeded"))
    maker.header("seeded-number", "FormatError", "seeded is 0", put("params", "seeded", to=0))
    maker.header("complex-text", "FormatError", "complex_slots is a text", put("params", "complex_slots", to="no"))


def _bgv(maker: Maker) -> None:
    def bad(name: str, error: str, fault: str, config: str = "bgv", **params: Any) -> None:
        def change(header: dict[str, Any]) -> None:
            header["params"].update(params)

        maker.header(f"bgv-{name}", error, fault, change, f"{config}-update", config=config)

    def too_many(header: dict[str, Any]) -> None:
        header["params"]["value_bits"], header["aggregation"]["max_clients"] = 24, 64

    fault = "the sum of 64 values of 24 bits is beyond the plain modulus"
    maker.header("bgv-lanes", "FormatError", fault, too_many, "bgv-update", config="bgv")
    bad("noise", "FormatError", "the noise can reach half of the data prime", plain_modulus_bits=50)
    fault = "the noise of public-key ciphertexts can reach half of it"
    bad("whole-noise", "FormatError", fault, "bgv-whole", plain_modulus_bits=40)
    bad("same-prime", "FormatError", "a plain modulus of as many bits as a prime", plain_modulus_bits=53)
    bad("plain-modulus-small", "FormatError", "a plain modulus too small to be 1 modulo 2N", plain_modulus_bits=12)
    bad("value-bits", "FormatError", "value_bits 25", value_bits=25)
    bad("rounding", "FormatError", "a rounding that there is not", rounding="up")
    bad("overflow", "FormatError", "an overflow that there is not", overflow="wrap")
    bad("scale", "FormatError", "a key of CKKS", scale_bits=20)
    bad("other-value-bits", "MismatchError", "values of 11 bits", value_bits=11)
    bad("other-rounding", "MismatchError", "another rounding", rounding="stochastic")
    bad("other-feedback", "MismatchError", "error feedback", error_feedback=True)
    prime = maker.good["bgv-server-key"].header["primes"][0]

    def large(container: Container) -> None:
        container.payloads[0] = put_word(container.payloads[0], 0, 53, 0, prime)

    maker.edit("bgv-word", "FormatError", "the first word is the prime itself", large, "bgv-update", config="bgv")


def _flashe(maker: Maker) -> None:
    def bad(name: str, fault: str, change: Change) -> None:
        maker.header(f"flashe-{name}", "FormatError", fault, change, "flashe-update", config="flashe")

    bad("degree", "a degree, which only lattices have", put("params", "poly_modulus_degree", to=2048))
    bad("primes", "primes, which only lattices have", put("params", "coeff_mod_bit_sizes", to=[53]))
    bad("seeded", "seeded, which only lattices are", put("params", "seeded", to=True))
    bad("value-bits", "value_bits 2", put("params", "value_bits", to=2))
    bad("scheme", "a scheme that there is not", put("params", "scheme", to="FLASH"))
    maker.edit(
        "flashe-body-short",
        "FormatError",
        "a word less",
        lambda container: container.payloads.__setitem__(0, container.payloads[0][:-8]),
        "flashe-update",
        config="flashe",
    )
    maker.add(
        "flashe-for-bgv",
        "MismatchError",
        "an update of another scheme",
        maker.good.blob("flashe-update"),
        config="bgv",
    )
    for name, fault, change in (
        ("round", "another round, so another pad", put("round", to=8)),
        ("site", "another site, so another pad", put("contributions", 0, 0, to="site-9")),
    ):
        fitted(maker, "flashe", f"other-{name}", fault, lambda container, change=change: change(container.header))


def _sums(maker: Maker) -> None:
    """Aggregates that decrypt to what no sites can have sent. Nothing but the plaintext is wrong: tags fit."""

    def bad(config: str, name: str, fault: str, change: Change) -> None:
        fitted(maker, config, f"sum-{name}", fault, change)

    shape = shape_of(maker.good["bgv-aggregate"])
    bad("bgv", "above", "a bit above all lanes", shifted(maker, "bgv", 1 << shape.bits * shape.per_word))
    bad("bgv", "lane", "sums beyond 2·L·n in the upper lane", shifted(maker, "bgv", 5000 << shape.bits))
    bad("seeded", "weight", "more weight than two sites have", shifted(maker, "seeded", 3 << 20))
    bad("seeded", "zero", "all words zero", lambda c: c.payloads.__setitem__(0, bytes(len(c.payloads[0]))))

    good = maker.good["flashe-aggregate"]
    shape, sites = shape_of(good), len(good.header["contributions"])
    numbers = Numbers.of(good.header)
    sums = by_hand.sums(good, maker.good["flashe-client-key"], sum(numbers))
    digits, first = numbers.weight, sum(numbers) - numbers.other  # that of the first value with a lane of its own
    top = [0] * (digits - 1)
    bad("flashe", "above", "a bit above all lanes", added({4095: 1 << shape.bits * shape.per_word}))
    padding = 4095, (shape.limit * sites + 1) << shape.bits * (shape.per_word - 1)
    bad("flashe", "lane", "a sum beyond 2·L·n in the padding", added(dict([padding])))
    bad("flashe", "weight-zero", "no weight", digits_are(sums[:digits], [0] * digits))
    bad("flashe", "weight-less", "less than no weight", digits_are(sums[:digits], [*top, -1]))
    bad(
        "flashe", "weight-small", "so little weight that means are beyond max_abs", digits_are(sums[:digits], [*top, 1])
    )
    bad("flashe", "mean", "a mean beyond max_abs", added({first: shape.limit * sites - sums[first]}))
    bad("flashe", "count", "the sum of one site more", added({digits: 1}))


def _keys(maker: Maker) -> None:
    def bad(name: str, fault: str, change: Change, source: str) -> None:
        maker.edit(f"key-{name}", "KeyFileError", fault, change, source, reads="load_key")

    def says(name: str, fault: str, change: Change, source: str = "server-key") -> None:
        bad(name, fault, lambda container: change(container.header), source)

    says("epoch-missing", "no epoch", lambda header: header.pop("epoch"))
    says("epoch-negative", "the epoch is -1", put("epoch", to=-1))
    says("epoch-large", "the epoch is 2**32", put("epoch", to=2**32))
    says("plain-modulus", "a plain modulus in CKKS", put("plain_modulus", to=12289))
    says("plain-modulus-missing", "no plain modulus", lambda header: header.pop("plain_modulus"))
    plain = maker.good["bgv-server-key"].header["plain_modulus"]
    says("bgv-plain-zero", "no plain modulus in BGV", put("plain_modulus", to=0), "bgv-server-key")
    says("bgv-plain-bits", "a plain modulus of other bits", put("plain_modulus", to=2**29 - 1), "bgv-server-key")
    says("bgv-plain-even", "an even plain modulus", put("plain_modulus", to=plain - 1), "bgv-server-key")
    says(
        "bgv-plain-other",
        "another plain modulus, which the fingerprint does not fit",
        put("plain_modulus", to=plain - 4096),
        "bgv-client-key",
    )
    says("flashe-primes", "primes, which FLASHE has not", put("primes", to=[2**53 - 1]), "flashe-server-key")
    says("flashe-plain", "a plain modulus in FLASHE", put("plain_modulus", to=12289), "flashe-server-key")
    says("flashe-degree", "params of a lattice", put("params", "poly_modulus_degree", to=2048), "flashe-server-key")
    says("flashe-epoch", "another epoch, which the fingerprint does not fit", put("epoch", to=3), "flashe-client-key")
    bad("flashe-short", "a key of 24 bytes, the fingerprint fits", resized(24), "flashe-client-key")
    bad("flashe-long", "a key of 40 bytes, the fingerprint fits", resized(40), "flashe-client-key")
    for version, numbers in ((1, ()), (2, (0, 2))):
        change = old_fingerprint(version, *numbers)
        bad(f"flashe-version-{version}", f"a fingerprint of version {version}", change, "flashe-client-key")
    bad("no-root", "no root, the fingerprint fits", without_root, "client-key")
    bad("bgv-no-root", "no root, the fingerprint fits", without_root, "bgv-client-key")
    for scheme in ("", "flashe-"):
        bad(
            f"{scheme}root",
            "one bit of the root, which the fingerprint does not fit",
            other_root,
            f"{scheme}client-key",
        )


def fitted(
    maker: Maker, config: str, name: str, fault: str, change: Change, source: str = "aggregate", reads: str = "decrypt"
) -> None:
    """A sum that no sites can have sent that share a configuration, with tags that fit it."""

    def fit(container: Container) -> None:
        change(container)
        tail_by_hand.fit(container, maker.good.key(config))

    name, source = f"{config}-{name}", f"{prefix_of(config)}{source}"
    maker.edit(name, "ImplausibleSumError", fault, fit, source, reads=reads, config=config)


# Changes.


def put(*path: Any, to: Any) -> Change:
    """Change one value of a header."""

    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = to

    return change


def drop(*path: Any) -> Change:
    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        del header[path[-1]]

    return change


def more(count: int) -> Change:
    """List sites that are not there."""
    return lambda header: header["contributions"].extend([f"more-{i}", f"{i:064x}"] for i in range(count))


def shape_of(container: Container) -> Any:
    return lanes(container.header["params"], container.header["aggregation"])


def shifted(maker: Maker, config: str, amount: int) -> Change:
    """Add a constant polynomial, that is, the same number to every slot of every block: to every word of c0."""
    primes = by_hand.data_primes(maker.good.key(config))

    def change(container: Container) -> None:
        payload, params = container.payloads[0], container.header["params"]
        size, blocks = block_nbytes(params), []
        for start in range(0, len(payload), size):
            words = rows(payload[start : start + size], params)
            words = [[(word + amount) % prime for word in row] for prime, row in zip(primes, words, strict=True)]
            blocks.append(pack_rows(words, params))
        container.payloads[0] = b"".join(blocks)

    return change


def added(amounts: dict[int, int]) -> Change:
    """Add to words of FLASHE."""

    def change(container: Container) -> None:
        (words,) = rows(container.payloads[0], container.header["params"])
        for index, amount in amounts.items():
            words[index] = (words[index] + amount) % 2**64
        container.payloads[0] = pack_rows([words], container.header["params"])

    return change


def digits_are(sums: Sequence[int], digits: Sequence[int]) -> Change:
    """Give the weight's digits other sums; they are in the lowest lane."""
    return added({index: digit - sums[index] for index, digit in enumerate(digits)})


def resized(nbytes: int) -> Change:
    def change(container: Container) -> None:
        payload = (container.payloads[0] * 2)[:nbytes]
        container.payloads = [payload]
        refit(container)

    return change


def refit(container: Container) -> None:
    container.header["fingerprint"] = fingerprint(container.header, b"".join(container.payloads))


def old_fingerprint(version: int, *numbers: int) -> Change:
    """That of FLASHE's keys; version 2 added plain modulus and epoch."""

    def change(container: Container) -> None:
        text = "".join(f"{part}\0" for part in (f"secagg key v{version}", "FLASHE", 0, [], *numbers))
        container.header["fingerprint"] = blake3(text.encode() + b"".join(container.payloads)).hexdigest()

    return change


def without_root(container: Container) -> None:
    container.payloads = [b"".join(container.payloads)[by_hand.ROOT_NBYTES :]]
    refit(container)


def other_root(container: Container) -> None:
    container.payloads[0] = bytes([container.payloads[0][0] ^ 1]) + container.payloads[0][1:]
