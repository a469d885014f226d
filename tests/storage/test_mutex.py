"""Locks and a fork: what another thread holds is free in the child, and what must be whole is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from forking import forked, threads_are_known

from secagg.errors import ConfigError
from secagg.storage import mutex
from secagg.storage.locks import open_locked
from secagg.storage.mutex import Mutex


@contextmanager
def running(work: object) -> Iterator[threading.Event]:
    """A thread that does `work(stop)` until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))  # type: ignore[arg-type]
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def take(lock: Mutex) -> bytes:
    with lock.held():
        return b"taken"


@pytest.mark.parametrize("whole", [False, True])
def test_threads_keep_out_of_each_others_way(whole: bool) -> None:
    lock, inside, most = Mutex(whole=whole), [], []

    def enter() -> None:
        for _ in range(200):
            with lock.held():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_what_another_thread_holds_is_free_in_the_child() -> None:
    lock, held = Mutex(), threading.Event()

    def hold(stop: threading.Event) -> None:
        with lock.held():
            held.set()
            stop.wait()

    with running(hold):
        held.wait()
        assert forked(lambda: take(lock))() == b"taken"
    assert take(lock) == b"taken"


def test_a_fork_waits_for_what_must_be_whole() -> None:
    lock, pair = Mutex(whole=True), [0, 0]

    def count(stop: threading.Event) -> None:
        while not stop.is_set():
            with lock.held():
                pair[0] += 1
                time.sleep(0.01)
                pair[1] += 1

    def look() -> bytes:
        assert pair[0] == pair[1]
        return take(lock)

    with running(count):
        for _ in range(20):
            assert forked(look)() == b"taken"
    assert take(lock) == b"taken"


def test_threads_that_fork_at_once() -> None:
    """Each waits for all locks: in whatever order, one after another."""
    locks = [Mutex(whole=True) for _ in range(5)]
    failures: list[BaseException] = []

    def fork() -> None:
        try:
            for _ in range(10):
                locks.append(Mutex(whole=True))  # a fork meets them while they come
                assert forked(lambda: b"".join(map(take, locks[:5])))() == b"taken" * 5
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=fork) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_fork_in_the_block_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler can: it waits for what cannot end, but not for ever; parent and child leave the block."""
    monkeypatch.setattr(mutex, "PATIENCE_SECONDS", 0.1)
    lock = Mutex(whole=True)
    reader, writer = os.pipe()
    with lock.held(), threads_are_known():
        child = os.fork()
    if not child:
        os.write(writer, take(lock))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 10) == take(lock)
    os.close(reader)
    os.close(writer)


#: A fork waits for `busy` and has `free` when a signal handler forks: four processes go on, and each takes both.
NESTED = """
import os, signal, threading, time
from secagg.storage import mutex

free, busy = mutex.Mutex(whole=True), mutex.Mutex(whole=True)
mutex._every = [free, busy]  # in this order
mutex.PATIENCE_SECONDS = 2.0  # so long does the child of the handler wait for `busy`
parent, held, inner = os.getpid(), threading.Event(), []

def hold():
    with busy.held():
        held.set()
        time.sleep(0.5)

def fork(*_):
    before, start = free._lock.locked(), time.monotonic()
    inner.append(os.fork())
    if inner[0]:
        print(before, free._lock.locked(), time.monotonic() - start < 1.5, flush=True)

signal.signal(signal.SIGALRM, fork)
threading.Thread(target=hold).start()
held.wait()
signal.setitimer(signal.ITIMER_REAL, 0.1)
outer = os.fork()
for lock in (free, busy):
    with lock.held():
        os.write(1, b"taken\\n")
for child in (inner[0], outer):  # none of a child that forks no more
    if child and (os.getpid() == parent or child == outer):
        os.waitpid(child, 0)
os._exit(0)
"""


def test_a_fork_in_a_signal_handler_during_a_fork() -> None:
    """The inner one waits for nothing that the outer one holds, and gives none of it back.

    In a process of its own: `concurrent.futures`, if it is imported after us, takes a lock before each fork that it
    cannot take twice.
    """
    result = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines.count("taken") == 8
    assert [line for line in lines if line != "taken"] == ["True True True"]


def test_a_child_does_not_keep_the_lock_of_a_file(tmp_path: Path) -> None:
    """It has a copy of the handle, and lives on."""
    path, busy = tmp_path / "lock", ConfigError("busy")
    reader, writer = os.pipe()
    with open_locked(path, os.O_WRONLY | os.O_CREAT, busy):
        result = forked(lambda: os.read(reader, 1))
    with open_locked(path, os.O_WRONLY, busy):
        os.write(writer, b"x")
        assert result() == b"x"
    os.close(reader)
    os.close(writer)


def test_a_child_does_not_give_back_the_lock_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    reader, writer = os.pipe()
    with open_locked(path, os.O_WRONLY | os.O_CREAT), threads_are_known():
        parent, child = os.getpid(), os.fork()
        if child:
            os.waitpid(child, 0)
            with pytest.raises(ConfigError), open_locked(path, os.O_WRONLY, ConfigError("busy")):
                pass
    if os.getpid() != parent:
        os.write(writer, b"out")
        os._exit(0)
    assert os.read(reader, 3) == b"out"
    os.close(reader)
    os.close(writer)
