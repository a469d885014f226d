"""Sums that change between the reading that verifies their words and the one that decrypts them."""

from __future__ import annotations

import os
from io import BytesIO

import numpy as np
import pytest
from federation import LATTICE, TINY, TINY_AGGREGATION, federate, random_states
from signed import Parts, ring_of

import secagg
from secagg.errors import DecryptionError, FormatError
from secagg.trust.tags import Authenticator
from secagg.wire.body import MemoryBody


@pytest.fixture(scope="module", params=LATTICE)
def federation(request):
    params = {"CKKS": TINY | {"seeded": False}, "BGV": {"value_bits": 8, "seeded": False}}
    return federate(request.param, params, **TINY_AGGREGATION)


@pytest.fixture(scope="module")
def states(federation):
    """Of two frames, the second a block."""
    return random_states(2, {"w": (federation.frame_blocks * federation.codec.block_values + 5,)})


@pytest.fixture(scope="module")
def honest(federation, states):
    return federation.sum(states).to_bytes()


@pytest.fixture(scope="module")
def forged(federation, honest):
    """Another sum under the same head, of the same length: each frame has another word, every digest is right."""
    parts = Parts.of(secagg.Update.from_bytes(honest))
    for index, payload in enumerate(parts.payloads):
        packed = np.frombuffer(payload, np.uint8).copy()
        size = ring_of(federation, "encrypted").block_nbytes
        one = ring_of(federation, "encrypted").from_bytes(memoryview(packed[:size]))
        one[0] ^= np.uint64(1)
        packed[:size] = ring_of(federation, "encrypted").to_bytes(one)
        parts.payloads[index] = packed.tobytes()
    blob = parts.to_bytes()
    assert len(blob) == len(honest)
    return blob


class Place:
    """Where a sum lies, and how it becomes another one."""

    def __init__(self, kind, blob, tmp_path):
        self.kind, self.path, self.stream = kind, tmp_path / "aggregate.secagg", None
        if kind == "file":
            self.path.write_bytes(blob)
            self.update = secagg.Update.open(self.path)
        elif kind == "stream":
            self.stream = BytesIO(blob)
            self.update = secagg.Update.open(self.stream)
        else:
            header = secagg.Update.from_bytes(blob).header
            self.memory, self.start = bytearray(blob), len(header.head)
            self.update = secagg.Update(header, MemoryBody(memoryview(self.memory)[self.start :]))

    def become(self, blob, start=0):
        """Put bytes from `start` on in their place; the time of a file is made what it was."""
        if self.kind == "file":
            before = self.path.stat()
            with self.path.open("r+b", buffering=0) as file:
                file.seek(start)
                file.write(blob[start:])
            os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
            after = self.path.stat()
            assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
        elif self.kind == "stream":
            self.stream.getbuffer()[start:] = blob[start:]
        else:
            self.memory[start:] = blob[start:]


@pytest.fixture(params=["file", "stream", "memory"])
def place(request, honest, tmp_path):
    place = Place(request.param, honest, tmp_path)
    yield place
    place.update.close()


@pytest.fixture
def decrypted(federation, monkeypatch):
    """Blocks that the backend is asked to decrypt; with what to do at the first of them."""
    blocks, genuine = Blocks(), federation.backend.decrypt

    def spy(self, words):
        if not blocks and blocks.at_first is not None:
            blocks.at_first()
        blocks.append(words.copy())
        return genuine(self, words)

    monkeypatch.setattr(federation.backend, "decrypt", spy)
    return blocks


class Blocks(list):
    at_first = None


def all_blocks(federation, blob):
    ring = ring_of(federation, "encrypted")
    payloads = Parts.of(secagg.Update.from_bytes(blob)).payloads
    words = np.concatenate([ring.from_bytes(memoryview(payload)) for payload in payloads])
    return words.reshape(-1, ring.block_size)


def test_a_sum_that_stays(federation, states, honest, place, decrypted):
    """Its verified words are decrypted, each once; and again, whenever it is asked for."""
    for _ in range(2):
        decrypted.clear()
        federation.assert_mean(federation.site().decrypt(place.update), states)
        np.testing.assert_array_equal(np.stack(decrypted), all_blocks(federation, honest))


@pytest.mark.parametrize("what", ["forged", "flipped"])
def test_another_sum_once_the_tags_are_checked(federation, honest, forged, place, decrypted, monkeypatch, what):
    """Digests of the other one may be right, or wrong: none of its words is decrypted."""
    flipped = bytearray(honest)
    flipped[len(place.update.header.head) + 7] ^= 1
    genuine, other = Authenticator.fits, {"forged": forged, "flipped": bytes(flipped)}[what]

    def fits(self, tail):
        answer = genuine(self, tail)
        place.become(other)
        return answer

    monkeypatch.setattr(Authenticator, "fits", fits)
    with pytest.raises(FormatError):
        federation.site().decrypt(place.update)
    assert not decrypted


def test_another_sum_while_it_is_decrypted(federation, honest, forged, place, decrypted):
    """The frame that has been read was verified; the next one is another, and is not decrypted."""
    first, second = place.update.header.frames
    start = len(place.update.header.head) + second.offset
    decrypted.at_first = lambda: place.become(forged, start)
    with pytest.raises(FormatError):
        federation.site().decrypt(place.update)
    np.testing.assert_array_equal(np.stack(decrypted), all_blocks(federation, honest)[: first.blocks])


def test_another_sum_after_it_was_decrypted(federation, forged, place, decrypted):
    federation.site().decrypt(place.update)
    decrypted.clear()
    place.become(forged)
    with pytest.raises(FormatError):
        federation.site().decrypt(place.update)
    assert not decrypted


def test_a_sum_that_was_refused_and_comes_back(federation, honest, forged, place, decrypted, monkeypatch):
    """It was read first; what is verified in its place cannot be followed by it."""
    place.become(forged)
    with pytest.raises(DecryptionError):
        federation.site().decrypt(place.update)
    genuine = Authenticator.fits

    def fits(self, tail):
        answer = genuine(self, tail)
        place.become(forged)
        return answer

    place.become(honest)
    monkeypatch.setattr(Authenticator, "fits", fits)
    with pytest.raises(FormatError):
        federation.site().decrypt(place.update)
    assert not decrypted
