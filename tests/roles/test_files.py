"""Promise 5: updates in files are the updates in memory, and the aggregator's memory does not grow with them."""

from __future__ import annotations

import os
import tracemalloc
from types import MappingProxyType

import numpy as np
import pytest
from container import Container
from federation import federate, random_states

from secagg import Update
from secagg.errors import FormatError, RangeError, StateError

ENCRYPT = {"exclude": ["c"]}


@pytest.fixture(scope="module")
def federation(lib):
    return federate(lib, encrypt=ENCRYPT)


@pytest.fixture(scope="module")
def states(federation):
    """Of two encrypted frames and a clear one."""
    return random_states(2, {"w": (federation.codec.block_values * federation.frame_blocks * 6 // 5,), "c": (9000,)})


@pytest.fixture(scope="module")
def updates(federation, states):
    return [site.encrypt(state) for site, state in zip(federation.sites(2), states, strict=True)]


def save(updates, folder):
    paths = [folder / f"{update.header.site}.secagg" for update in updates]
    for update, path in zip(updates, paths, strict=True):
        update.save(path)
    return paths


def test_a_file_holds_what_memory_holds(updates, tmp_path):
    for update, path in zip(updates, save(updates, tmp_path), strict=True):
        assert path.read_bytes() == update.to_bytes()
        with Update.open(str(path)) as opened:
            assert opened.header == update.header
            assert opened.nbytes == update.nbytes == path.stat().st_size == len(update.to_bytes())
            assert opened.to_bytes() == update.to_bytes()
            assert [(frame, bytes(payload)) for frame, payload in opened.frames()] == [
                (frame, bytes(payload)) for frame, payload in update.frames()
            ]


def test_the_sum_of_files_is_the_sum_of_memory(federation, updates, tmp_path):
    paths = save(updates, tmp_path)
    aggregator = federation.aggregator()
    for path in paths:
        with Update.open(path) as update:
            aggregator.add(update)
    from_files, from_memory = aggregator.finish(), federation.add(updates)
    assert from_files.to_bytes() == from_memory.to_bytes()
    assert all(path.exists() for path in paths)


def test_an_aggregate_in_a_file(federation, states, updates, tmp_path):
    aggregate = federation.add(updates)
    aggregate.save(tmp_path / "aggregate.secagg")
    with Update.open(tmp_path / "aggregate.secagg") as opened:
        mean = federation.site().decrypt(opened, like=states[0])
    federation.assert_mean(mean, states)
    np.testing.assert_array_equal(mean["w"], federation.site().decrypt(aggregate)["w"])


def test_encrypting_into_a_file(federation, states, tmp_path):
    path = tmp_path / "update.secagg"
    path.write_bytes(b"an earlier round")
    first, second = federation.sites(2)
    first.encrypt_to(path, MappingProxyType(states[0]), weight=0.5, round=0)
    with Update.open(path) as update:
        assert (update.header.site, update.header.round, update.header.kind) == ("site-1", 0, "update")
        aggregate = federation.add([update, second.encrypt(states[1])])
    federation.assert_mean(first.decrypt(aggregate), states, [0.5, 1.0])
    assert [item.name for item in tmp_path.iterdir()] == ["update.secagg"]


def test_a_file_appears_whole_or_not_at_all(federation, tmp_path):
    path = tmp_path / "update.secagg"
    path.write_bytes(b"an earlier round")
    with pytest.raises(RangeError):
        federation.site().encrypt_to(path, {"w": np.ones(3), "c": np.array([np.nan])})
    assert path.read_bytes() == b"an earlier round"
    assert [item.name for item in tmp_path.iterdir()] == ["update.secagg"]


def test_chunks_are_what_is_sent(updates):
    """The head, a frame each, the tail: no chunk is over 1 MiB and a digest."""
    update = updates[0]
    chunks = [bytes(chunk) for chunk in update.chunks()]
    assert b"".join(chunks) == update.to_bytes()
    assert len(chunks) == 1 + update.header.frame_count + 1
    assert chunks[0] == update.header.head
    assert max(map(len, chunks[1:])) <= (1 << 20) + 32
    payloads = Container.read(update.to_bytes()).payloads
    assert [chunk[:-32] for chunk in chunks[1:-1]] == payloads
    assert len(payloads) == 3  # two encrypted frames, one clear


def test_an_update_over_its_own_file(updates, tmp_path):
    (path,) = save(updates[:1], tmp_path)
    before = path.read_bytes()
    with Update.open(path) as update:
        update.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["absent.secagg", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(FormatError, match="cannot read"):
        Update.open(tmp_path / name)


def test_a_file_that_becomes_shorter(updates, tmp_path):
    (path,) = save(updates[:1], tmp_path)
    with Update.open(path) as update:
        os.truncate(path, 1 << 20)
        with pytest.raises(FormatError, match="became shorter"):
            list(update.frames())


def test_a_file_that_is_closed(federation, updates, tmp_path):
    (path,) = save(updates[:1], tmp_path)
    with Update.open(path) as update:
        pass
    aggregator = federation.aggregator()
    with pytest.raises(StateError, match="the update's file is closed"):
        aggregator.add(update)
    for update in updates:
        aggregator.add(update)


def test_a_refused_file_is_closed(updates, tmp_path):
    """pytest turns the warning about a file left open into a failure."""
    (path,) = save(updates[:1], tmp_path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(FormatError, match="trailing bytes"):
        Update.open(path)


def test_memory_of_the_aggregator_is_one_sum_and_one_frame(federation, states, tmp_path):
    """Whatever the number of sites. NumPy and Python both tell tracemalloc what they allocate."""
    paths = save([site.encrypt(states[0]) for site in federation.sites(4)], tmp_path)
    size = paths[0].stat().st_size
    peaks = []
    for count in (2, 4):
        aggregator = federation.aggregator()
        tracemalloc.start()
        for path in paths[:count]:
            with Update.open(path) as update:
                aggregator.add(update)
        aggregator.finish()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < size + (1 << 20) + (1 << 18)
    assert peaks[1] < peaks[0] + (1 << 16)


def test_repr_says_what_it_is(federation, updates):
    assert repr(updates[0]) == f"<update of round 0 from site-1, {updates[0].nbytes} bytes>"
    assert repr(federation.add(updates)).startswith("<aggregate of round 0 from site-1, site-2, ")
