"""Faults of precision, of calibrations and their sums, and of the scales that updates are made under, one a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import by_hand
import model_by_hand
from container import AGGREGATE, CALIBRATION, SCALES, UPDATE, Container, tag_moduli
from maker import Change, Maker
from scheme_faults import added, drop, fitted, put
from section_numbers import BINS, Numbers, bin_digits, limit_of, sent

#: Who reads what: a sum of calibrations, a site that begins to encrypt, and one that decrypts.
ADD = {"reads": "add_calibration", "config": "bgv-auto"}
READ = {"reads": "scales", "config": "bgv-auto"}
DECRYPT = {"reads": "decrypt", "config": "bgv-auto"}


def scales_faults(maker: Maker) -> None:
    """Add them all."""
    _precisions(maker)
    _names(maker)
    _kinds(maker)
    _calibrations(maker)
    _scales(maker)
    _counts(maker)
    _bins(maker)
    _following(maker)


def _precisions(maker: Maker) -> None:
    """What an update says of its scales, which no configuration says, or not that of the reader."""

    def bad(name: str, fault: str, change: Change, config: str = "bgv-auto", error: str = "FormatError") -> None:
        maker.header(f"{config}-{name}", error, fault, change, f"{config}-update", config=config)

    bad("precision-missing", "no precision", drop("aggregation", "precision"))
    bad("precision-text", "a precision that there is not", numbers(precision="best"))
    bad("precision-null", "null as precision", numbers(precision=None))
    bad("max-abs", "max_abs where scales are measured", numbers(max_abs=1.0))
    bad("max-weight-zero", "max_weight 0.0", numbers(max_weight=0.0))
    bad("max-weight-large", "max_weight beyond the largest scale", numbers(max_weight=2.0**41))
    bad("max-weight-integer", "a whole number as max_weight", numbers(max_weight=100))
    bad("overflow", "values beyond measured scales are an error", put("params", "overflow", to="error"))
    bad("max-abs-null", "no max_abs where scales are fixed", numbers(max_abs=None), "flashe")
    bad("max-weight-null", "no max_weight where scales are fixed", numbers(max_weight=None), "flashe")
    measured = numbers(max_abs=None, max_weight=None, precision="auto")
    maker.header("precision-auto", "FormatError", "measured scales in CKKS", measured)
    bad("other-precision", "another precision", numbers(precision="previous"), "auto", "MismatchError")
    bad("other-max-weight", "max_weight where there is none", numbers(max_weight=100.0), "auto", "MismatchError")


def _names(maker: Maker) -> None:
    """What names the scales in headers."""

    def bad(name: str, fault: str, value: Any, source: str, error: str = "FormatError", **where: str) -> None:
        maker.header(name, error, fault, put("calibration", to=value), source, **where)

    fault = "no key for a name of scales"
    maker.header(
        "bgv-auto-name-missing", "FormatError", fault, drop("calibration"), "bgv-auto-update", config="bgv-auto"
    )
    for name, value, fault in (
        ("null", None, "none"),
        ("short", "ab" * 31, "31 bytes"),
        ("long", "ab" * 33, "33 bytes"),
        ("capitals", "AB" * 32, "in capitals"),
        ("letters", "xy" * 32, "not hexadecimal"),
        ("number", 0, "a number"),
        ("empty", "", "empty"),
    ):
        bad(f"bgv-auto-name-{name}", f"the name of scales: {fault}", value, "bgv-auto-update", config="bgv-auto")
    bad("previous-name-null", "no name of scales", None, "previous-update", config="previous")
    bad("bgv-auto-aggregate-name-null", "no name of scales", None, "bgv-auto-aggregate", **DECRYPT)
    name, fault = "ab" * 32, "a name of scales where they are fixed"
    bad("name", fault, name, "update")
    bad("flashe-name", fault, name, "flashe-update", config="flashe")
    bad("bgv-auto-calibration-name", "a calibration that names scales", name, "bgv-auto-calibration", **ADD)
    bad("bgv-auto-scales-name", "scales that name scales", name, "bgv-auto-scales", **READ)
    where = {"reads": "decrypt_model", "config": "previous"}
    bad("previous-model-name", "a model that names scales", name, "previous-model", **where)
    fault = "other scales than those of the sum"
    for config in ("bgv-auto", "previous"):
        bad(f"{config}-other-name", fault, name, f"{config}-update", "ScalesMismatchError", config=config)


def _kinds(maker: Maker) -> None:
    """One kind in the place of another."""
    good = maker.good

    def other(name: str, fault: str, source: str, **where: str) -> None:
        maker.add(f"bgv-auto-{name}", "MismatchError", fault, good.blob(f"bgv-auto-{source}"), **where)

    other("calibration-for-update", "a calibration where an update belongs", "calibration", config="bgv-auto")
    other("scales-for-update", "scales where an update belongs", "scales", config="bgv-auto")
    other("update-for-calibration", "an update where a calibration belongs", "update", **ADD)
    other("scales-for-calibration", "scales where a calibration belongs", "scales", **ADD)
    other("calibration-for-scales", "a calibration where scales belong", "calibration", **READ)
    other("aggregate-for-scales", "an aggregate where scales belong", "aggregate", **READ)
    other("scales-for-aggregate", "scales where an aggregate belongs", "scales", **DECRYPT)

    def says(name: str, fault: str, kind: int, source: str, **where: str) -> None:
        maker.edit(name, "FormatError", fault, lambda c: setattr(c, "kind", kind), source, **where)

    fault = "a calibration that says it is an update"
    says("bgv-auto-calibration-as-update", fault, UPDATE, "bgv-auto-calibration", config="bgv-auto")
    fault = "an update that says it is a calibration"
    says("bgv-auto-update-as-calibration", fault, CALIBRATION, "bgv-auto-update", **ADD)
    fault = "scales that say they are a calibration"
    says("bgv-auto-scales-as-calibration", fault, CALIBRATION, "bgv-auto-scales", **ADD)
    says("flashe-as-calibration", "a calibration where scales are fixed", CALIBRATION, "flashe-update", config="flashe")
    says("as-calibration", "a calibration in CKKS", CALIBRATION, "update")
    for name, change, fault in (
        ("fixed", numbers(precision="fixed", max_abs=1.0, max_weight=1.0), "where they are fixed"),
        ("previous", numbers(precision="previous"), "where they follow from the round before"),
    ):
        where = {"source": "bgv-auto-scales", **READ}
        maker.header(f"bgv-auto-scales-{name}", "FormatError", f"scales {fault}", change, **where)
    name = good["auto-aggregate"].header["calibration"]

    def as_aggregate(container: Container) -> None:
        container.kind, container.header["calibration"] = AGGREGATE, name
        container.payloads.append(bytes(len(good["auto-aggregate"].payloads[1])))

    def as_scales(container: Container) -> None:
        container.kind, container.header["calibration"] = SCALES, None
        del container.payloads[1:]

    fault, where = "scales in the form of an aggregate", DECRYPT | {"config": "auto"}
    maker.edit("auto-scales-as-aggregate", "DecryptionError", fault, as_aggregate, "auto-scales", **where)
    fault, where = "an aggregate in the form of scales", READ | {"config": "auto"}
    maker.edit("auto-aggregate-as-scales", "DecryptionError", fault, as_scales, "auto-aggregate", **where)


def _calibrations(maker: Maker) -> None:
    """Calibrations that the sum does not take."""

    def bad(name: str, error: str, fault: str, change: Change) -> None:
        maker.header(f"bgv-auto-calibration-{name}", error, fault, change, "bgv-auto-calibration", **ADD)

    other = maker.good["bgv-auto-calibration-2"].header["contributions"][0]
    bad("round", "RoundMismatchError", "another round", put("round", to=8))
    bad("base", "MismatchError", "another base", put("base", to="ab" * 32))
    bad("same-site", "DuplicateError", "a site that is in the sum", put("contributions", 0, 0, to=other[0]))
    bad("same-nonce", "DuplicateError", "a nonce that is in the sum", put("contributions", 0, 1, to=other[1]))
    bad("order", "LayoutError", "tensors in another order", lambda header: header["layout"].reverse())
    more = [["site-8", "ab" * 32], ["site-9", "cd" * 32]]
    bad("two-sites", "FormatError", "a calibration of two sites", put("contributions", to=more))

    def edit(name: str, fault: str, change: Change) -> None:
        maker.edit(f"bgv-auto-calibration-{name}", "FormatError", fault, change, "bgv-auto-calibration", **ADD)

    edit("clear", "a clear section", lambda c: c.payloads.append(bytes(8 * 4096)))
    edit("no-frames", "no frames", lambda c: c.payloads.clear())
    prime = maker.good["signed-server-key"].header["primes"][0]

    def large(container: Container) -> None:
        container.tags[-1] = prime

    edit("tag", "the last tag is the prime", large)


def _scales(maker: Maker) -> None:
    """Scales that a site does not take, of which it shows before it decrypts, or by the tags."""

    def bad(name: str, error: str, fault: str, change: Change) -> None:
        maker.header(f"bgv-auto-scales-{name}", error, fault, change, "bgv-auto-scales", **READ)

    bad("round", "RoundMismatchError", "another round", put("round", to=6))
    bad("base", "VerificationError", "another base", put("base", to="ab" * 32))
    bad("base-null", "VerificationError", "no base", put("base", to=None))
    bad("key", "KeyMismatchError", "another key's fingerprint", put("key", to="ab" * 32))
    bad("quorum", "QuorumError", "fewer sites than min_clients", lambda header: header["contributions"].pop())
    bad("order", "LayoutError", "tensors in another order", lambda header: header["layout"].reverse())
    bad("dtype", "LayoutError", "a tensor of another dtype", put("layout", 0, 1, to="float64"))
    maker.flip("bgv-auto-scales-flip", "one bit of the payload", 2000, "bgv-auto-scales", **READ)

    def tags(config: str, name: str, fault: str, place: int) -> None:
        moduli = tag_moduli(maker.good.key(config).header)

        def change(container: Container) -> None:
            container.tags[place] = (container.tags[place] + 1) % moduli[place]

        where = {"reads": "scales", "config": config}
        maker.edit(f"{config}-scales-{name}", "DecryptionError", fault, change, f"{config}-scales", **where)

    tags("auto", "tag", "the tag of integers is one more", 0)
    tags("bgv-auto", "tag", "the tag of integers is one more", 0)
    tags("bgv-auto", "word-tag", "the last tag of ciphertext words is one more", -1)
    where = {"source": "auto-scales", **READ, "config": "auto"}
    moved = added({1 + 40: 1, 1 + 41: -1})
    maker.edit("auto-scales-moved", "DecryptionError", "counts that no tag fits", moved, **where)
    swapped = lambda c: c.proofs.reverse()  # noqa: E731
    maker.edit("auto-scales-bodies", "DecryptionError", "two proofs in each other's place", swapped, **where)


def _counts(maker: Maker) -> None:
    """Counts that so many sites cannot have. Nothing but the plaintext is wrong: tags fit."""
    scales, key = maker.good["auto-scales"], maker.good.key("auto")
    sums = by_hand.sums(scales, key, 1 + BINS * len(sent(scales.header)))

    def bad(name: str, fault: str, amounts: dict[int, int]) -> None:
        fitted(maker, "auto", f"scales-sum-{name}", fault, added(amounts), "scales", "scales")

    bad("count-more", "the counts of one site more", {0: 1})
    bad("count-less", "the counts of one site less", {0: -1})
    bad("above", "three counts of a tensor where there are two sites", {_empty(sums, 1): 1})
    bad("negative", "a count of -1", {_empty(sums, 1): -1})
    bad("lane", "a sum beyond 2·L·n", {_empty(sums, 1): 3})
    bad("padding", "a number behind the last tensor", {len(sums): 1})
    aggregate, key = maker.good["previous-aggregate"], maker.good.key("previous")
    its = Numbers.of(aggregate.header)
    sums, first = by_hand.sums(aggregate, key, sum(its)), its.weight + 1 + its.bins
    for name, fault, amount in (
        ("counts-above", "three counts of a tensor where there are two sites", 1),
        ("counts-negative", "a count of -1", -1),
    ):
        fitted(maker, "previous", f"sum-{name}", fault, added({_empty(sums, first): amount}))


def _bins(maker: Maker) -> None:
    """Bins that sites cannot have agreed on. Nothing but the plaintext is wrong: tags fit."""

    def bad(config: str, name: str, fault: str, totals: dict[int, int]) -> None:
        aggregate, key = maker.good[f"{config}-aggregate"], maker.good.key(config)
        width, base = bin_digits(aggregate.header["params"]), limit_of(aggregate.header["params"]) + 1
        its, amounts = Numbers.of(aggregate.header), {}
        sums = by_hand.sums(aggregate, key, sum(its))
        for tensor, total in totals.items():
            for place in range(width):
                at, above = its.weight + 1 + tensor * width + place, place == width - 1
                amounts[at] = (total // base**place if above else total // base**place % base) - sums[at]
        fitted(maker, config, f"sum-{name}", fault, added(amounts))

    bins = maker.good["auto-aggregate"].header["layout"]
    every = dict.fromkeys(range(len(bins)), 2 * BINS)
    for config in ("auto", "previous"):
        bad(config, "bins-beyond", "a bin of 193", {1: 2 * 193})
        bad(config, "bins-negative", "a bin of -1", {1: -2})
        bad(config, "bins-different", "bins of two sites that differ by 1", {1: 2 * 113 + 1})
        bad(config, "bins-unknown", "nothing has been measured of one tensor", {1: 2 * BINS})
        bad(config, "bins-known", "something has been measured of one tensor", every | {1: 2 * 113})
    bad("auto", "bins-none", "nothing has been measured, in the round of a calibration", every)


def _following(maker: Maker) -> None:
    """Aggregates whose scales are not those of the next round, and models that have no bins."""

    def bad(name: str, error: str, fault: str, change: Change) -> None:
        where = {"reads": "scales", "config": "previous"}
        maker.header(f"previous-before-{name}", error, fault, change, "previous-before", **where)

    bad("round", "RoundMismatchError", "of two rounds before", put("round", to=5))
    bad("base", "MismatchError", "of another model than the base of the round leads to", put("base", to="ab" * 32))
    bad(
        "precision",
        "MismatchError",
        "of measured scales",
        lambda header: header["aggregation"].update(precision="auto"),
    )
    where = {"reads": "decrypt_model", "config": "previous"}
    model, key = maker.good["previous-model"], maker.good.key("previous")
    secret, plain = model_by_hand.model_key(model.header, key), model_by_hand.decrypt(model, key)
    values = len(plain.rstrip(b"\0")) - len(sent(model.header))
    bins = plain[values : values + len(sent(model.header))]
    assert plain == model_by_hand.padded(plain[:values] + bins)
    for name, fault, other in (
        ("beyond", "a bin of 193", bytes([193, *bins[1:]])),
        ("unknown", "nothing has been measured of one tensor", bytes([BINS, *bins[1:]])),
    ):

        def change(container: Container, other: bytes = other) -> None:
            whole = model_by_hand.padded(plain[:values] + other)
            container.payloads = model_by_hand.encrypt(container, secret, whole)

        maker.edit(f"previous-model-{name}", "FormatError", fault, change, "previous-model", **where)


def numbers(**changes: Any) -> Change:
    """Change what sites must agree on."""
    return lambda header: header["aggregation"].update(changes)


def _empty(sums: Sequence[int], first: int) -> int:
    """The place of a count of 0, of the tensor whose counts begin at `first`, which both sites have counted."""
    counts = sums[first : first + BINS]
    assert sum(counts) == 2
    return first + counts.index(0)
