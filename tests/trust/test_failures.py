"""How many aggregates that do not decrypt one key can stand: eight, restarts included."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import Counter

import numpy as np
import pytest
from federation import Federation, federate, other_keys, random_states
from signed import Parts

import secagg
from secagg.errors import DecryptionError, EpochError, KeyFileError, QuorumError, RoundMismatchError, SecAggError
from secagg.trust.failures import MAX_FAILURES, Failures


@pytest.fixture(scope="module")
def federation(lib) -> Federation:
    return federate(lib)


@pytest.fixture(scope="module")
def aggregate(federation):
    return federation.sum(random_states(2, {"w": (50,)}))


@pytest.fixture(scope="module")
def damaged(federation, aggregate):
    """An aggregate whose digests are right; of every scheme it decrypts to rubbish."""
    parts = Parts.of(aggregate)
    parts.payloads[0] = bytes(len(parts.payloads[0]) // 2) + parts.payloads[0][len(parts.payloads[0]) // 2 :]
    return parts.build()


def site_of(federation, path=None) -> secagg.Client:
    return secagg.Client(federation.config, federation.keys.client, "site-1", failures=path)


def fail(site, aggregate, times):
    for _ in range(times):
        with pytest.raises(DecryptionError):
            site.decrypt(aggregate)


def count_in(path) -> list[int]:
    """How many lines each key has."""
    lines = path.read_text().splitlines()
    if lines and lines[-1] == "-" * 64:  # the place of the next one
        lines.pop()
    return list(Counter(lines).values())


def test_eight_failures_end_the_epoch(federation, aggregate, damaged):
    assert MAX_FAILURES == 8
    site = site_of(federation)
    fail(site, damaged, 7)
    site.decrypt(aggregate)  # a success neither counts nor resets
    fail(site, damaged, 1)
    for refused in (damaged, aggregate):
        with pytest.raises(EpochError, match=r"8 aggregates under the key of epoch 0 .* have the key rotated"):
            site.decrypt(refused)


def test_it_is_over_for_decryption_only(federation, damaged):
    """The site still sends updates: they tell the server nothing."""
    site = site_of(federation)
    fail(site, damaged, 8)
    site.encrypt(random_states(1, {"w": (50,)})[0])


def test_a_restart_does_not_begin_anew(federation, aggregate, damaged, tmp_path):
    path = tmp_path / "failures"
    for before in range(8):
        site = site_of(federation, path)
        assert count_in(path) == ([before] if before else [])
        fail(site, damaged, 1)
    with pytest.raises(EpochError):
        site_of(federation, path).decrypt(aggregate)
    assert count_in(path) == [8]


def test_without_a_file_a_restart_does(federation, aggregate, damaged):
    fail(site_of(federation), damaged, 8)
    site_of(federation).decrypt(aggregate)


def test_another_key_begins_at_0(federation, damaged, tmp_path):
    path = tmp_path / "failures"
    fail(site_of(federation, path), damaged, 8)
    rotated = other_keys(federation)
    states = random_states(2, {"w": (50,)})
    site = site_of(rotated, path)
    site.decrypt(rotated.sum(states))
    parts = Parts.of(rotated.sum(states))
    parts.payloads[0] = bytes(len(parts.payloads[0]))
    fail(site, parts.build(), 1)
    assert sorted(count_in(path)) == [1, 8]
    with pytest.raises(EpochError):
        site_of(federation, path).decrypt(damaged)


def test_another_epoch_of_one_secret_begins_at_0(federation, damaged, tmp_path):
    """The epoch is part of the fingerprint, by which is counted."""
    path, key = tmp_path / "failures", federation.keys.client
    fail(site_of(federation, path), damaged, 8)
    client = secagg.ClientKey(key.params, key.secret_material(), key._root, epoch=1)
    with Failures(client.server, path).guard():
        pass
    with pytest.raises(EpochError), Failures(key.server, path).guard():
        pass


def test_what_does_not_count(federation, aggregate, damaged, tmp_path):
    """Refused before anything is decrypted: the key has given nothing away."""
    path = tmp_path / "failures"
    site = site_of(federation.but(min_clients=3), path)
    for _ in range(10):
        with pytest.raises(QuorumError):
            site.decrypt(damaged)
        with pytest.raises(RoundMismatchError):
            site_of(federation, path).decrypt(damaged, round=1)
    assert count_in(path) == []


def test_it_is_on_the_disk_before_anybody_hears_of_it(federation, damaged, tmp_path, monkeypatch):
    path, seen = tmp_path / "failures", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (fsync(handle), seen.append(count_in(path))))
    fail(site_of(federation, path), damaged, 2)
    assert seen == [[], [1], [1], [2]]  # the place of each, then the failure itself
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [path.name]


def test_a_disk_that_fails_in_that_moment(federation, aggregate, damaged, tmp_path, monkeypatch):
    """The process counts all the same."""
    site = site_of(federation, tmp_path / "failures")
    site.decrypt(aggregate)  # the place of the first one is there now

    pwrite = os.pwrite

    def fails(handle, data, offset):
        if len(data) == 64:  # a fingerprint
            raise OSError(5, "the disk is gone")
        return pwrite(handle, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails)
        for _ in range(8):
            with pytest.raises(KeyFileError, match="the disk is gone"):
                site.decrypt(damaged)
    with pytest.raises(EpochError):
        site.decrypt(aggregate)


def test_a_file_that_is_gone(federation, damaged, tmp_path):
    """Whoever takes it away does not set this site back."""
    path = tmp_path / "failures"
    site = site_of(federation, path)
    fail(site, damaged, 7)
    path.unlink()
    with pytest.raises(SecAggError):
        site.decrypt(damaged)
    path.touch()
    fail(site, damaged, 1)
    with pytest.raises(EpochError):
        site.decrypt(damaged)


LINE = b"ab" * 32 + b"\n"
DAMAGED = {
    "a text": b"8\n",
    "cut": LINE + LINE[:-1],
    "cut in the middle": LINE + LINE[:30],
    "more": LINE + b" " + LINE,
    "an empty line": LINE + b"\n" + LINE,
    "other ends": LINE.replace(b"\n", b"\r\n"),
    "capitals": LINE.upper(),
    "short": LINE[1:],
    "zeros": LINE + bytes(65),
    "no text": b"\xff\xfe{}",
    "huge": LINE * 20_000,
    "another form": b'{"' + b"ab" * 32 + b'": 3}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file(content, tmp_path):
    """Nobody knows how many there were: a new file would begin at 0."""
    path = tmp_path / "failures"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=re.escape(str(path))):
        site_of(federate("flashe"), path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a folder that is not there"])
def test_what_is_no_file(kind, tmp_path):
    path = tmp_path / "failures"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / "nowhere" / "failures"
    with pytest.raises(SecAggError):
        site_of(federate("flashe"), path)


def test_sites_that_share_a_file(federation, damaged, tmp_path):
    """Two processes of one site, say: what either of them gives away counts for both."""
    path = tmp_path / "failures"
    first, second = site_of(federation, path), site_of(federation, path)
    for _ in range(4):
        fail(first, damaged, 1)
        fail(second, damaged, 1)
    assert count_in(path) == [8]
    for site in (first, second, site_of(federation, path)):
        with pytest.raises(EpochError):
            site.decrypt(damaged)


def test_threads_share_a_count():
    """No more than eight ever hear that an aggregate did not decrypt."""
    federation = federate("flashe")
    parts = Parts.of(federation.sum(random_states(2, {"w": (50,)})))
    parts.payloads[0] = bytes(len(parts.payloads[0]))
    aggregate, site, heard = parts.to_bytes(), site_of(federation), []
    barrier = threading.Barrier(16)

    def decrypt():
        barrier.wait()
        try:
            site.decrypt(secagg.Update.from_bytes(aggregate))
        except SecAggError as error:
            heard.append(type(error))

    threads = [threading.Thread(target=decrypt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 16
    assert heard.count(DecryptionError) <= MAX_FAILURES
    assert set(heard) <= {DecryptionError, EpochError}


def test_the_message_is_always_the_same(federation, aggregate):
    """Whatever was wrong: a server learns that, and nothing else."""
    messages = set()
    for change in (0, -1):
        parts = Parts.of(aggregate)
        words = np.frombuffer(parts.payloads[0], np.uint8).copy()
        words[change * words.size // 2 :][: words.size // 2] = 0
        parts.payloads[0] = words.tobytes()
        with pytest.raises(DecryptionError) as caught:
            federation.site().decrypt(parts.build())
        messages.add(str(caught.value))
        assert caught.value.__cause__ is None
    assert len(messages) == 1
