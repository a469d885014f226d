"""A process that is forked while its threads encrypt and decrypt: child and parent go on with the same clients."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from federation import LATTICE, Federation, federate
from forking import SECONDS, forked, threads_are_known

import secagg

FORKS = 5
VALUES = 20_000
STATES = [{"w": np.random.default_rng(seed).uniform(-1, 1, VALUES).astype(np.float32)} for seed in range(2)]


@contextmanager
def busy(work: Callable[[], object]) -> Iterator[None]:
    """A thread that does it again and again, until the block ends."""
    stop, failures, done = threading.Event(), [], threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                work()
                done.set()
        except Exception as error:
            failures.append(error)
            done.set()
            raise

    thread = threading.Thread(target=run)
    thread.start()
    done.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures


def check_sum(federation: Federation, update: secagg.Update, round: int = 0) -> None:
    """An update of the first state is one, and what it is added to decrypts to the mean."""
    other = federation.site("other").encrypt(STATES[1], round=round)
    aggregator = federation.aggregator(round)
    for each in (update, other):
        aggregator.add(each)
    federation.assert_mean(federation.site().decrypt(aggregator.finish()), STATES)


def test_a_child_encrypts_while_a_thread_of_the_parent_does(lib: str) -> None:
    federation = federate(lib)
    site = federation.site()
    nonces = set()
    with busy(lambda: site.encrypt(STATES[0])):
        for _ in range(FORKS):
            update = secagg.Update.from_bytes(forked(lambda: site.encrypt(STATES[0]).to_bytes())())
            check_sum(federation, update)
            nonces.add(update.header.contributions[0].nonce)
    assert len(nonces) == FORKS
    check_sum(federation, site.encrypt(STATES[0]))


def test_a_child_decrypts_while_a_thread_of_the_parent_does(lib: str, tmp_path: Path) -> None:
    """Failures are counted in a file, whose lock the thread holds at the fork."""
    federation = federate(lib)
    aggregate = federation.sum(STATES)
    site = secagg.Client(federation.config, federation.keys.client, "site-1", failures=tmp_path / "failures")

    def mean() -> bytes:
        return pickle.dumps(site.decrypt(aggregate)["w"])

    with busy(mean):
        for _ in range(FORKS):
            federation.assert_mean({"w": pickle.loads(forked(mean)())}, STATES)
    assert mean() == forked(mean)()


@pytest.mark.parametrize("lib", ["flashe", "seal-BGV"])
def test_with_error_feedback(lib: str) -> None:
    """Updates take turns, and the turn of a thread that is not in the child is over there. The carry is the child's."""
    federation = federate(lib, {"value_bits": 6, "rounding": "nearest", "error_feedback": True}, max_abs=1.0)
    site, alone = federation.site(), federation.site()
    for client in (site, alone):
        client.encrypt(STATES[0])
    alone.encrypt(STATES[0], round=1)

    def second() -> bytes:
        site.encrypt(STATES[0], round=1)
        return site.carry()

    with busy(lambda: site.encrypt(STATES[0])):  # the same round again and again leaves the same
        for _ in range(FORKS):
            assert forked(second)() == alone.carry()
    assert second() == alone.carry()


@pytest.mark.parametrize("lib", LATTICE)
def test_parent_and_child_draw_their_own(lib: str) -> None:
    """Were a library's randomness copied by a fork, two ciphertexts with one error and one c1 would give secrets away.

    A block of zeros is encrypted by both: c0, c1 and c0 + c1·s, which is nothing but the error, differ.
    """
    federation = federate(lib)
    site, params = federation.site(), federation.config.params
    backend = site._encryption._backend
    slots = np.zeros(params.slot_count, np.float64 if params.scheme == "CKKS" else np.uint64)
    material = federation.keys.client.secret_material()

    def parts() -> list[bytes]:
        c0, c1 = backend.encrypt(slots).copy().reshape(2, -1, params.poly_modulus_degree)[:, 0].astype(object)
        phase = (c0 + c1 * material.secret[0].astype(object)) % material.primes[0]
        return [row.astype(np.uint64).tobytes() for row in (c0, c1, phase)]

    parts()  # the library has drawn before the fork
    result = forked(lambda: pickle.dumps(parts()))
    here, there, again = parts(), pickle.loads(result()), parts()
    for one, two, three in zip(here, there, again, strict=True):
        assert len({one, two, three}) == 3


def test_parent_and_child_make_updates_of_their_own(lib: str) -> None:
    """Of the same state and round: other nonces, other ciphertexts, other rounding."""
    federation = federate(lib)
    site = federation.site()
    site.encrypt(STATES[0])
    result = forked(lambda: site.encrypt(STATES[0]).to_bytes())
    here, there = site.encrypt(STATES[0]), secagg.Update.from_bytes(result())
    assert here.header.contributions[0].nonce != there.header.contributions[0].nonce
    for (_, one), (_, two) in zip(here.frames(), there.frames(), strict=True):
        words = [np.frombuffer(bytes(payload)[: len(payload) // 8 * 8], np.uint64) for payload in (one, two)]
        assert np.count_nonzero(words[0] == words[1]) < 10
    sums = [federation.add([each, federation.site("other").encrypt(STATES[1])]) for each in (here, there)]
    means = [site.decrypt(each)["w"] for each in sums]
    assert not np.array_equal(*means)


_site: secagg.Client


def _encrypt(number: int) -> bytes:
    return _site.encrypt(STATES[0], round=number).to_bytes()


def test_a_pool_of_forked_processes(lib: str) -> None:
    global _site
    federation = federate(lib)
    _site = federation.site()
    with busy(lambda: _site.encrypt(STATES[0])), threads_are_known():
        pool = multiprocessing.get_context("fork").Pool(2)
        try:
            blobs = pool.map_async(_encrypt, range(6)).get(SECONDS)
        finally:
            pool.terminate()
            pool.join()
    for round, blob in enumerate(blobs):
        check_sum(federation, secagg.Update.from_bytes(blob), round)
