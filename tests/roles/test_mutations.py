"""Ten thousand random mutations of an update of each kind: none is accepted, none crashes, the sum stays as it was."""

from __future__ import annotations

import copy
import random
from collections import Counter

import numpy as np
import pytest
from container import PRIME, Container, block_nbytes, canonical, put_word, row_offsets, tag_sizes
from federation import federate, random_states

from secagg import Aggregator, Update
from secagg.errors import (
    DigestError,
    DuplicateError,
    FormatError,
    KeyMismatchError,
    LayoutError,
    ManifestMismatchError,
    MismatchError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
)
from secagg.scheme.scales import Scales, one_hot

COUNT = 10_000
ROUND = 3

#: Variants, what they encrypt, and what is mutated: whole and seeded ciphertexts, words modulo 2**64, which are all
#: valid, updates that name their scales, and calibrations.
CASES = {
    "seeded": ("tenseal", "all", "update"),
    "whole, partly": ("pyfhel", {"exclude": ["c"]}, "update"),
    "integers, partly": ("seal-BGV", {"exclude": ["c"]}, "update"),
    "words": ("flashe", "all", "update"),
    "words under scales": ("flashe/auto", "all", "update"),
    "integers under scales": ("seal-BGV/previous", "all", "update"),
    "calibration": ("seal-BGV/auto", {"exclude": ["c"]}, "calibration"),
}

#: What may stand anywhere in JSON, hostile and harmless.
JUNK = [
    None, True, False, 0, 1, 2, -1, 0.5, 1.0, 1e308, 10**400, 2**32, 2**63, 2**64, "", "x", "CKKS", "float16", "clear",
    "encrypted", "local", "ab" * 32, "../..", "\u0000", "\ud800", "*", [], [[]], [1], [[[[]]]], {}, {"": 0}, {"w": 1.0},
]  # fmt: skip


class Mutator:
    """Draws mutations of one update; each returns other bytes."""

    def __init__(self, blob: bytes, other: bytes, added: Container, seed: int) -> None:
        self.blob, self.other, self.added = blob, other, added
        self.container = Container.read(blob)
        self.rows = row_offsets(self.container.header["params"])
        self.random = random.Random(seed)
        self.kinds = [
            self.flip, self.change, self.insert, self.delete, self.truncate, self.extend, self.repeat, self.swap,
            self.splice, self.blank, self.edit_header, self.edit_header, self.edit_preamble, self.edit_frames,
            self.edit_tail,
        ]  # fmt: skip
        if self.rows != [(0, 64)]:  # every word of 64 bits is below 2**64
            self.kinds.append(self.large_word)

    def draw(self) -> tuple[str, bytes]:
        while True:
            kind = self.random.choice(self.kinds)
            mutant = kind()
            if mutant not in (None, self.blob):
                return kind.__name__, mutant

    def place(self) -> int:
        """A place in the file, the head as often as all the rest."""
        end = len(self.container.head) if self.random.random() < 0.5 else len(self.blob)
        return self.random.randrange(end)

    def span(self) -> tuple[int, int]:
        start = self.place()
        return start, min(len(self.blob), start + self.random.choice([1, 2, 8, 32, 100, 5000]))

    # Bytes: the digests are what they were.

    def flip(self):
        mutant = bytearray(self.blob)
        for _ in range(self.random.choice([1, 1, 2, 10])):
            mutant[self.place()] ^= 1 << self.random.randrange(8)
        return bytes(mutant)

    def change(self):
        mutant = bytearray(self.blob)
        mutant[self.place()] = self.random.choice([0, 255, 10, 34, 44, 48, 93, 125, self.random.randrange(256)])
        return bytes(mutant)

    def insert(self):
        place = self.place()
        return self.blob[:place] + self.random.randbytes(self.random.choice([1, 2, 16, 1000])) + self.blob[place:]

    def delete(self):
        start, end = self.span()
        return self.blob[:start] + self.blob[end:]

    def truncate(self):
        return self.blob[: self.place()]

    def extend(self):
        return self.blob + self.random.choice([b"\0", b"\n", bytes(32), self.blob, self.random.randbytes(50)])

    def repeat(self):
        start, end = self.span()
        return self.blob[:end] + self.blob[start:]

    def swap(self):
        (a, b), (c, d) = sorted((self.span(), self.span()))
        return self.blob[:a] + self.blob[c:d] + self.blob[b:c] + self.blob[a:b] + self.blob[d:] if b <= c else None

    def splice(self):
        """A stretch of another valid update in its place."""
        start, end = self.span()
        return self.blob[:start] + self.other[start:end] + self.blob[end:]

    def blank(self):
        start, end = self.span()
        return self.blob[:start] + self.random.choice([b"\0", b"\xff"]) * (end - start) + self.blob[end:]

    # Containers: every digest is made anew, so that what is wrong must be found behind them.

    def edit_preamble(self):
        container = self.container.copy()
        field = self.random.choice(["kind", "version", "reserved", "header_nbytes", "magic"])
        value = self.random.randbytes(8) if field == "magic" else self.random.choice([0, 1, 2, 3, 4, 5, 6, 255])
        setattr(container, field, value)
        return container.to_bytes()

    def edit_header(self):
        """Change, drop, double or move one thing anywhere in the header."""
        container = self.container.copy()
        header = container.header
        path = self.random.choice(list(paths(header)))
        block = header
        for key in path[:-1]:
            block = block[key]
        key, value = path[-1], block[path[-1]]
        if path[0] == "contributions":  # another site or nonce of the right form would be another valid update
            theirs = self.added.header["contributions"]
            if len(path) == 3:
                block[key] = self.random.choice([None, 7, "", "a b", value + "/", value + "g" * 64, theirs[0][key]])
            else:
                header["contributions"] = self.random.choice(
                    [[], [theirs[0]], theirs + header["contributions"], {}, None, [[]]]
                )
        else:
            action = self.random.randrange(4)
            if action == 0:
                block[key] = copy.deepcopy(self.random.choice(JUNK))
            elif action == 1:
                del block[key]
            elif action == 2 and isinstance(block, list):
                block.insert(self.random.randrange(len(block) + 1), copy.deepcopy(self.random.choice([value, *JUNK])))
            else:
                block[key] = self.nudge(value)
        return None if canonical(header) == canonical(self.container.header) else container.to_bytes()

    def nudge(self, value):
        if value is None:
            return "ab" * 32
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return value + self.random.choice([-1, 1, 8, 1024])
        if isinstance(value, float):
            return value * self.random.choice([-1, 0.5, 2, 1 + 2.0**-50])
        if isinstance(value, str):
            place = self.random.randrange(len(value))
            return value[:place] + self.random.choice("0aZ.*[\n") + value[place + 1 :]
        if isinstance(value, list):
            return value[::-1]
        return {**value, "more": 1}

    def edit_frames(self):
        container = self.container.copy()
        payloads = container.payloads
        index = self.random.randrange(len(payloads))
        action = self.random.randrange(6)
        if action == 0:
            del payloads[index]
        elif action == 1:
            payloads.insert(index, payloads[self.random.randrange(len(payloads))])
        elif action == 2:
            payloads.reverse()
        elif action == 3:
            payloads[index] = payloads[index][: self.random.randrange(len(payloads[index]))]
        elif action == 4:
            payloads[index] += self.random.randbytes(self.random.choice([1, 32, 13_824, 32_768]))
        else:
            payloads[index : index + 1] = [payloads[index][:100], payloads[index][100:]]
        return container.to_bytes()

    def edit_tail(self):
        """Another number of proofs, another body, a tag that is none. (Nobody signed, and only sites verify tags.)"""
        container = self.container.copy()
        tail, size = container.make_tail(), sum(tag_sizes(container.kind, container.header["params"]))
        tags, proof = tail[:size], tail[size:]
        place = self.random.randrange(32)
        container.tail = self.random.choice(
            [
                b"",
                tags,
                tags + proof * 2,
                tags + proof[:-1],
                tags + proof + b"\0",
                tags + proof[:place] + bytes([proof[place] ^ 1 << self.random.randrange(8)]) + proof[place + 1 :],
                (PRIME + self.random.randrange(2**127)).to_bytes(16, "little") + tags[16:] + proof,
                self.random.randbytes(len(tail)),
            ]
        )
        return container.to_bytes()

    def large_word(self):
        """A word that is not below its prime, anywhere in the ciphertext."""
        container = self.container.copy()
        params = container.header["params"]
        block = block_nbytes(params)
        start = self.random.randrange(len(container.payloads[0]) // block) * block
        row, bits = self.random.choice(self.rows)
        payload = container.payloads[0]
        part = put_word(
            payload[start : start + block], row, bits, self.random.randrange(params["poly_modulus_degree"]), 2**bits - 1
        )
        container.payloads[0] = payload[:start] + part + payload[start + block :]
        return container.to_bytes()


def paths(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def messages(federation, kind, states):
    """What two sites send in a round, and what the second might have sent in the place of it."""
    sites = federation.sites(2)
    for site in sites:
        site.restore_carry(b"")
    parts = [*zip(sites, states, strict=True), (sites[1], states[0])]
    if kind == "calibration":
        return [site.calibrate(state, round=ROUND) for site, state in parts]
    scales = None
    if federation.precision == "auto":
        scales = federation.add(site.calibrate(state, round=ROUND) for site, state in parts[:2])
    elif federation.precision == "previous":
        scales = Scales.measured(one_hot([1.0] * len(federation.site().layout(states[0]).sent)))
    return [site.encrypt(state, round=ROUND, calibration=scales) for site, state in parts]


@pytest.mark.parametrize(("mode", "encrypt", "kind"), CASES.values(), ids=CASES)
def test_ten_thousand_mutations(mode, encrypt, kind):
    federation = federate(mode, encrypt=encrypt)
    states = [state | {"n": np.int64(4)} for state in random_states(2, {"w": (2, 700), "c": (6,)})]
    first, second, other = messages(federation, kind, states)
    mutator = Mutator(second.to_bytes(), other.to_bytes(), Container.read(first.to_bytes()), seed=20_24)
    aggregator = begin(federation, kind)
    aggregator.add(first)

    errors, kinds = Counter(), Counter()
    for number in range(COUNT):
        name, mutant = mutator.draw()
        kinds[name] += 1
        try:
            aggregator.add(Update.from_bytes(mutant))
        except SecAggError as error:
            errors[type(error)] += 1
        else:
            pytest.fail(f"mutation {number}, {name}, was accepted")

    assert aggregator.sites == ("site-1",)
    aggregator.add(second)
    summed = aggregator.finish()
    untouched = begin(federation, kind)
    untouched.add(second)
    untouched.add(first)
    assert Container.read(summed.to_bytes()).payloads == Container.read(untouched.finish().to_bytes()).payloads
    if kind == "update":
        federation.assert_mean(federation.site().decrypt(summed, like=states[0]), states)
    else:
        site = federation.site()
        site.restore_carry(b"")
        site.encrypt(states[0], round=ROUND, calibration=summed)
    # The mutations reached every check.
    assert len(kinds) == len({kind.__name__ for kind in mutator.kinds})
    scales = {ScalesMismatchError} if kind == "update" and federation.precision != "fixed" else set()
    assert set(errors) == scales | {
        FormatError, DigestError, MismatchError, KeyMismatchError, RoundMismatchError, LayoutError, DuplicateError,
        ManifestMismatchError,
    }  # fmt: skip


def begin(federation, kind):
    return Aggregator(federation.config, federation.keys.server, ROUND, kind=kind)
