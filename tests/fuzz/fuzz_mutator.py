"""Mutations that keep digests right, and signatures where the fuzzer plays a party: else it would get no further."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from container import (
    AGGREGATE,
    CALIBRATION,
    CLIENT_KEY,
    MODEL,
    PROJECT,
    SCALES,
    SERVER_KEY,
    UPDATE,
    WITH_TAIL,
    Container,
    canonical,
    fingerprint,
)
from fuzz_worlds import AUTHORITY, NAMES, PRIME, identity

from secagg import Header, Update
from secagg.errors import SecAggError
from secagg.wire.tail import signed_message

Mutate = Callable[[bytes, int], bytes]

#: What may stand anywhere in JSON, hostile and harmless.
JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 0.5, 1.0, -0.0, 1e308, 5e-324, 10**400, 2**32, 2**53, 2**63, 2**64,
    "", "x", "site-1", "site-2", "w", "c", "*", "[", "CKKS", "BGV", "FLASHE", "float16", "bfloat16", "int64", "clear",
    "encrypted", "local", "all", "conv", "fixed", "auto", "previous", "clip", "nearest", "ab" * 32,
    "../..", "\u0000", "\ud800", "é" * 100, [], [[]], [1], [[[[]]]], {},
    {"": 0}, {"w": 1.0}, {"default": 1.0, "w": 0.5}, [["w", "float32", [5], "encrypted"]], [["site-1", "ab" * 32]],
    [60, 40, 40], [26], 1024, 4096, 32768, 10_000,
]  # fmt: skip

#: What a header says of larger ones is refused for its length.
MAX_NBYTES = 1 << 18
#: Of a list or object, so that the mutator itself needs little memory.
MAX_ITEMS = 10_000


class Mutator:
    """Mutates inputs of `fuzz_parsers.Reader`; `mutate` is libFuzzer's own way with bytes."""

    def __init__(self, mutate: Mutate) -> None:
        self._mutate = mutate

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.8:
            try:
                mutant = self.change(data, rng)
            except Exception:  # noqa: BLE001 - it is damaged where taking it apart needs it whole, in any way
                mutant = b""
            if 0 < len(mutant) <= max_size:
                return mutant
        return self._mutate(data, max_size)

    def change(self, data: bytes, rng: random.Random) -> bytes:
        """Change a whole container; anything may be raised where it is not."""
        if data[10:11] and data[10] in WITH_TAIL:
            Update.from_bytes(data)  # raises where the header alone would keep `Container` busy
        container = Container.read(data)
        changes = [self._header, self._header, self._header, self._text, self._preamble]
        if container.payloads:
            changes += [self._payload, self._payload, self._frames]
        if container.kind in WITH_TAIL:
            changes += [self._tags, self._proofs, self._contributions]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            rng.choice(changes)(container, rng)
        self._sign(container, rng)
        return container.to_bytes()

    # What is changed.

    def _header(self, container: Container, rng: random.Random) -> None:
        """Junk, another value of the header, or a changed one in any place; then payloads of the size that follows."""
        if not isinstance(container.header, dict):
            return
        paths = list(places(container.header))
        path = rng.choice(paths)
        value = look(container.header, path)
        how = rng.randrange(4)
        if how == 0:
            new = rng.choice(JUNK)
        elif how == 1:
            new = look(container.header, rng.choice(paths))
        elif how == 2 and isinstance(value, (list, dict)):
            new = self._collection(value, rng)
        else:
            new = self._scalar(value, rng)
        if path:
            container.header = put(container.header, path, new)
        if container.kind == CLIENT_KEY and rng.random() < 0.7:
            container.header["fingerprint"] = fingerprint(container.header, b"".join(container.payloads))
        if container.kind in WITH_TAIL and rng.random() < 0.8:
            self._refit(container)

    def _collection(self, value: Any, rng: random.Random) -> Any:
        items = list(value.items()) if isinstance(value, dict) else list(value)
        if items:
            at = rng.randrange(len(items))
            change = rng.randrange(4)
            if change == 0:
                del items[at]
            elif change == 1:
                items.insert(at, items[rng.randrange(len(items))])
            elif change == 2:
                rng.shuffle(items)
            else:
                items += items[at : at + 1000] * rng.choice([1, 2, 100])
                del items[MAX_ITEMS:]
        return dict(items) if isinstance(value, dict) else items

    def _scalar(self, value: Any, rng: random.Random) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return rng.choice([value + 1, value - 1, -value, 2 * value, value * 1000, value ^ 1 << rng.randrange(64)])
        if isinstance(value, float):
            return rng.choice([value * 2, value / 3, -value, value + 1e-9, int(value)])
        if isinstance(value, str):
            mutant = self._mutate(value.encode("utf-8", "surrogatepass"), len(value) + 8)
            return mutant.decode("utf-8", "replace")
        return rng.choice(JUNK)

    def _text(self, container: Container, rng: random.Random) -> None:
        """JSON as bytes."""
        text = container.header if isinstance(container.header, bytes) else canonical(container.header)
        container.header = self._mutate(text, len(text) + 64)

    def _preamble(self, container: Container, rng: random.Random) -> None:
        change = rng.randrange(4)
        if change == 0:
            container.kind = rng.choice(
                [0, UPDATE, AGGREGATE, CLIENT_KEY, SERVER_KEY, MODEL, PROJECT, CALIBRATION, SCALES, 255]
            )
        elif change == 1:
            container.version = rng.choice([0, 1, 2, 3, 4, 65_535])
        elif change == 2:
            container.reserved = rng.randrange(256)
        else:
            container.header_nbytes = rng.choice([0, 1, 100, 1000, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 2**32 - 1])

    def _payload(self, container: Container, rng: random.Random) -> None:
        """Other words of the same number."""
        index = rng.randrange(len(container.payloads))
        payload = bytearray(container.payloads[index])
        if not payload:
            return
        start = rng.randrange(len(payload)) // 8 * 8
        piece = bytes(payload[start : start + rng.choice([1, 8, 64, 4096, len(payload)])])
        change = rng.randrange(5)
        if change == 0:
            new = self._mutate(piece, len(piece))
        elif change == 1:
            new = bytes(len(piece))
        elif change == 2:
            new = b"\xff" * len(piece)
        elif change == 3:
            new = rng.randbytes(len(piece))
        else:
            new = piece[::-1]
        new = new[: len(piece)].ljust(len(piece), b"\0")
        payload[start : start + len(piece)] = new
        container.payloads[index] = bytes(payload)

    def _frames(self, container: Container, rng: random.Random) -> None:
        """Another number of frames, or other lengths."""
        index, change = rng.randrange(len(container.payloads)), rng.randrange(4)
        if change == 0:
            del container.payloads[index]
        elif change == 1:
            container.payloads.insert(index, container.payloads[index])
        elif change == 2:
            rng.shuffle(container.payloads)
        else:
            container.payloads[index] = self._mutate(container.payloads[index], len(container.payloads[index]) + 8)

    def _refit(self, container: Container) -> None:
        """Payloads of the sizes that the header asks for, and as many tags; `Container` has a proof for each site."""
        try:
            header = Header.from_head(container.head)
            if header.nbytes > MAX_NBYTES:
                return
        except SecAggError:
            return
        whole = b"".join(container.payloads) or b"\0"
        whole *= -(-header.tail_offset // len(whole))
        container.payloads = [whole[frame.offset : frame.offset + frame.nbytes] for frame in header.frames]
        container.tags = (container.tags + [0] * header.tag_count)[: header.tag_count]

    def _tags(self, container: Container, rng: random.Random) -> None:
        """Another tag, another order, or another number of them."""
        tags, change = container.tags, rng.randrange(6)
        if not tags:
            tags.append(rng.randrange(2**127))
        elif change == 0:
            del tags[rng.randrange(len(tags))]
        elif change == 1:
            tags.append(rng.choice(tags) % 2**64)
        elif change == 2 and len(tags) > 2:
            tags[1:] = rng.sample(tags[1:], len(tags) - 1)
        else:
            at = rng.randrange(len(tags))
            top, modulus = (2**64, PRIME) if at else (2**128, 2**127 - 1)
            known = [0, 1, modulus - 1, modulus, modulus + 1, top - 1, (tags[at] + 1) % top]
            tags[at] = rng.choice([*known, rng.randrange(modulus), rng.randrange(top)])

    def _proofs(self, container: Container, rng: random.Random) -> None:
        proofs, change = container.proofs, rng.randrange(5)
        if not proofs:
            return
        at = rng.randrange(len(proofs))
        if change == 0:
            del proofs[at]
        elif change == 1:
            proofs.insert(at, rng.choice(proofs))
        elif change == 2:
            rng.shuffle(proofs)
        elif change == 3:
            proofs[at] = (proofs[at][0], rng.choice([bytes(64), proofs[0][1], rng.randbytes(64)]))
        else:
            proofs[at] = (rng.randbytes(32), proofs[at][1])

    def _contributions(self, container: Container, rng: random.Random) -> None:
        if not isinstance(container.header, dict) or not isinstance(container.header.get("contributions"), list):
            return
        listed = [list(item) if isinstance(item, list) else item for item in container.header["contributions"]]
        change = rng.randrange(4)
        if change == 0 and listed:
            del listed[rng.randrange(len(listed))]
        elif change == 1:
            listed.append([rng.choice([*NAMES, "server", "site-9"]), rng.randbytes(32).hex()])
        elif change == 2:
            rng.shuffle(listed)
        else:
            count = rng.choice([5, 100, 2000])
            listed += [[f"site-{number}", rng.randbytes(32).hex()] for number in range(9, 9 + count)]
        container.header["contributions"] = listed

    # Who signs it.

    def _sign(self, container: Container, rng: random.Random) -> None:
        """A site that means harm signs what it sends, and a provisioner that errs signs what it made."""
        if container.kind == PROJECT:
            container.signature = AUTHORITY.sign(container.head)
        if container.kind in (UPDATE, CALIBRATION, MODEL) and isinstance(container.header, dict) and rng.random() < 0.7:
            site = container.header["contributions"][0][0]
            body = container.body
            container.proofs = [(body, identity(str(site)).sign(signed_message(container.head, body)))]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def look(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return json.loads(json.dumps(value))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = put(value[path[0]], path[1:], new)
    return copied
