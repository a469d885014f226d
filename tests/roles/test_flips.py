"""Single flipped bits over every region of an update, an aggregate and a model: none is accepted.

Each is tried as it is, as corruption would leave it, and with all digests made right behind it, as an attacker would.
The reader asks for nothing but what the project says: no round, no base, no receipt, no model at hand.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from federation import VARIANTS, federate, random_states, twin_of
from signed import ROUND, Signed, sign_federation

import secagg
from secagg import Update
from secagg.errors import EpochError, FormatError, SecAggError
from secagg.trust.failures import Failures
from secagg.wire.container import DIGEST_NBYTES, PREAMBLE_NBYTES, digest, frame_digest
from secagg.wire.tail import tags_nbytes

KINDS = ("update", "aggregate", "model")
CASES = [
    (variant, kind, mended)
    for variant, kind, mended in itertools.product(VARIANTS, KINDS, (False, True))
    if kind != "model" or variant == "flashe"  # no scheme has a part in models
]
#: Flips in all.
SHORT, LONG = 2_000, 100_000


@dataclass(frozen=True)
class Region:
    """Bytes of one meaning, which a digest may bind."""

    name: str
    start: int
    stop: int
    index: int = 0

    @property
    def bits(self) -> int:
        return 8 * (self.stop - self.start)


def regions(update: Update) -> Iterator[Region]:
    """All bytes of a container, in order."""
    header = update.header
    head = len(header.head)
    ends = [("preamble", PREAMBLE_NBYTES), ("header", head - DIGEST_NBYTES), ("head digest", head)]
    for frame in header.frames:
        end = head + frame.offset + frame.nbytes
        ends += [("payload", end), ("frame digest", end + DIGEST_NBYTES)]
    place = head + header.tail_offset + tags_nbytes(header.tag_count)
    if header.tag_count:  # a model has none
        ends.append(("tags", place))
    for _ in header.contributions:
        ends += [("body digest", place + 32), ("signature", place + 96)]
        place += 96
    ends.append(("tail digest", place + DIGEST_NBYTES))
    start, seen = 0, Counter()
    for name, end in ends:
        yield Region(name, start, end, seen[name])
        start = end
        seen[name] += 1
    assert start == update.nbytes


class Flips:
    """Draws containers with one bit flipped, regions in turn, none twice."""

    def __init__(self, update: Update, mended: bool, count: int) -> None:
        self.blob, self.kind, self.mended = update.to_bytes(), update.header.kind, mended
        self.all, self.tags = list(regions(update)), update.header.tag_count
        self.head = next(region.stop for region in self.all if region.name == "head digest")
        self.drawn: Counter[str] = Counter()
        places = [self._places(region) for region in self.all]
        in_turn = (place for row in itertools.zip_longest(*places) for place in row if place is not None)
        self.places = list(itertools.islice(in_turn, count))

    def _places(self, region: Region) -> list[tuple[Region, int]]:
        shuffled = random.Random(f"{region.name} {region.index}")
        return [(region, bit) for bit in shuffled.sample(range(region.bits), min(region.bits, 20_000))]

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for region, bit in self.places:
            flipped = bytearray(self.blob)
            flipped[region.start + bit // 8] ^= 1 << bit % 8
            if self.mended:
                self._mend(flipped, region)
            assert flipped != self.blob
            self.drawn[region.name] += 1
            yield f"{region.name} {region.index}, bit {bit}", bytes(flipped)

    def _mend(self, data: bytearray, flipped: Region) -> None:
        """Make every digest right that is not flipped itself, those first that others are made of."""

        def put(region: Region, value: bytes) -> None:
            if region != flipped:
                data[region.start : region.stop] = value

        by_name = {(region.name, region.index): region for region in self.all}
        put(by_name["head digest", 0], digest(bytes(data[: self.head - DIGEST_NBYTES])))
        head, digests = bytes(data[: self.head]), []
        for region in self.all:
            if region.name == "frame digest":
                payload = by_name["payload", region.index]
                put(region, frame_digest(head, region.index, bytes(data[payload.start : payload.stop])))
                digests.append(bytes(data[region.start : region.stop]))
        if self.kind != "aggregate":
            put(by_name["body digest", 0], digest(head[-DIGEST_NBYTES:], *digests))
        start, end = by_name["body digest", 0].start - tags_nbytes(self.tags), by_name["tail digest", 0]
        put(end, frame_digest(head, len(digests), bytes(data[start : end.start])))


@dataclass(frozen=True)
class Target:
    """A valid container, and who reads it."""

    container: Update
    read: Callable[[Update], object]
    after: Callable[[], object]


def forgiving(signed: Signed) -> Callable[[], secagg.Client]:
    """A site whose count of failures begins anew with each call: else the epoch would be over, and nothing tried."""
    site = signed.site()

    def fresh() -> secagg.Client:
        twin = twin_of(site)
        twin._failures = Failures(signed.federation.keys.server, None)
        return twin

    return fresh


def target(variant: str, kind: str, tmp_path) -> Target:
    federation = federate(variant, encrypt={"exclude": ["c"]})
    signed = sign_federation(federation)
    states = random_states(3, {"w": (federation.codec.block_values - 50,), "c": (4000,)}, largest=0.5)
    updates = signed.encrypt(states, base=bytes(32))
    aggregate, site = signed.add(updates), forgiving(signed)
    if kind == "update":
        aggregator = signed.aggregator()

        def read(update: Update) -> None:
            """The server cannot tell other tags, where they are below their moduli: a site refuses the sum."""
            if update.tail.tags == updates[0].tail.tags:
                aggregator.add(update)
            else:
                site().decrypt(signed.add([update, *updates[1:]]))

        def rest() -> None:
            """Nothing was added by any of them."""
            for update in updates:
                aggregator.add(update)
            assert aggregator.finish().to_bytes() == aggregate.to_bytes()

        return Target(updates[0], read, rest)
    if kind == "model":
        signed.site().encrypt_model(tmp_path / "model", states[0], round=ROUND, base=bytes(32))
        model = Update.from_bytes((tmp_path / "model").read_bytes())
        return Target(model, lambda it: site().decrypt_model(it), lambda: site().decrypt_model(model))
    return Target(aggregate, lambda it: site().decrypt(it), lambda: site().decrypt(aggregate))


@pytest.mark.parametrize(("variant", "kind", "mended"), CASES, ids=lambda it: {False: "raw", True: "mended"}.get(it))
@pytest.mark.parametrize("total", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
def test_no_flipped_bit_is_accepted(variant, kind, mended, total, tmp_path):
    count = -(-total // len(CASES))
    goal = target(variant, kind, tmp_path)
    flips = Flips(goal.container, mended, count)
    errors: Counter[type[SecAggError]] = Counter()
    for where, blob in flips:
        try:
            goal.read(Update.from_bytes(blob))
        except EpochError:
            pytest.fail("nothing was tried")
        except SecAggError as error:
            errors[type(error)] += 1
        else:
            pytest.fail(f"accepted: {where}")
    goal.after()
    assert errors.total() == flips.drawn.total() == count
    assert set(flips.drawn) == {region.name for region in flips.all}  # every region
    if not mended:
        assert all(issubclass(error, FormatError) for error in errors)  # found by lengths and digests


def test_the_digests_are_made_right(tmp_path):
    """What is mended is told by nothing but keys: a flip that is flipped back is the container itself."""
    for variant, kind in (("flashe", "update"), ("flashe", "aggregate"), ("flashe", "model")):
        container = target(variant, kind, tmp_path).container
        flips = Flips(container, True, 0)
        data = bytearray(container.to_bytes())
        for region in flips.all:
            if region.name in ("head digest", "frame digest", "tail digest") or (
                region.name == "body digest" and kind != "aggregate"
            ):
                data[region.start : region.stop] = bytes(region.stop - region.start)
        flips._mend(data, Region("nothing", 0, 0))
        assert data == container.to_bytes()
