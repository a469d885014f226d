"""A sum in ranges is the sum: bit for bit what an aggregator makes, of what is fit, whatever is not."""

from __future__ import annotations

import itertools
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from federation import MODES, State, federate, other_keys, random_states
from sharded import kit_of, lay, summed
from signed import ROUND, Parts, Signed, sign_federation

import secagg
from secagg import errors
from secagg.shards import RangeDone, Report, SumJob, ThreadPool, aggregate, sum_range
from secagg.storage import objects
from secagg.storage.pinned import Pinned
from secagg.wire.container import digest, frame_digest
from secagg.wire.tail import Proof, signed_message

#: More than two frames encrypted in every scheme, and two clear ones.
SHAPES = {"conv.weight": (500, 8, 50), "linear.weight": (700, 200)}


@cache
def federation(mode: str) -> Signed:
    return sign_federation(federate(mode, encrypt={"include": ["conv*"]}, max_abs=1.0))


@cache
def states() -> list[State]:
    return random_states(3, SHAPES)


@cache
def updates(mode: str) -> Sequence[secagg.Update]:
    return federation(mode).encrypt(states())


@pytest.fixture
def flashe() -> Signed:
    return federation("flashe")


def add(signed: Signed, urls: str | Sequence[str], target: str | Path, **changes: object) -> Report:
    arguments = {"round": ROUND, "pool": ThreadPool(2), **changes}
    return aggregate(kit_of(signed, Path(target).parent), urls, str(target), **arguments)  # type: ignore[arg-type]


def changed(path: str, place: int) -> None:
    """Flip a bit of a file; a place below 0 counts from the end."""
    data = bytearray(Path(path).read_bytes())
    data[place] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.parametrize("mode", MODES)
def test_is_that_of_an_aggregator_bit_for_bit(mode: str, tmp_path: Path) -> None:
    signed = federation(mode)
    given = updates(mode)
    urls, expected = lay(given, tmp_path), summed(signed, given)
    frames = given[0].header.frame_count
    assert frames >= 3
    for shards in (1, 2, frames, 64, None):
        target = tmp_path / f"sum-{shards}"
        report = add(signed, urls, target, shards=shards)
        assert target.read_bytes() == expected
        assert (report.header.sites, report.left_out, report.passes) == (tuple(signed.names), {}, 1)
        assert report.nbytes == len(expected)
    assert len(list(tmp_path.iterdir())) == 3 + 5  # no partial sum is left
    with secagg.Update.open(target) as aggregate:
        signed.site().decrypt(aggregate)  # tags and signatures verified


def test_calibrations_make_scales(tmp_path: Path) -> None:
    signed = federation("flashe/auto")
    given = signed.calibrate(states(), [1.0, 2.0, 0.5])
    add(signed, lay(given, tmp_path), tmp_path / "scales")
    assert (tmp_path / "scales").read_bytes() == summed(signed, given)


def many_frames(tmp_path: Path, shards: Sequence[int]) -> None:
    signed = sign_federation(federate("flashe", max_abs=1.0), 2)
    given = signed.encrypt(random_states(2, {"w": (65 * 131072 * 6,)}))
    assert given[0].header.frame_count >= 64
    urls, expected = lay(given, tmp_path), summed(signed, given)
    for count in shards:
        add(signed, urls, tmp_path / "sum", shards=count)
        assert (tmp_path / "sum").read_bytes() == expected
        (tmp_path / "sum").unlink()


def test_of_many_ranges(tmp_path: Path) -> None:
    many_frames(tmp_path, (1, 31, 64))


@pytest.mark.long
def test_of_any_number_of_ranges(tmp_path: Path) -> None:
    many_frames(tmp_path, range(1, 65))


@pytest.mark.parametrize("place", [300, 3_000_000, 0.5, -200, -50, -1])
def test_a_flipped_bit_leaves_an_update_out_of_all_ranges(flashe: Signed, tmp_path: Path, place: float) -> None:
    given = updates("flashe")
    urls = lay(given, tmp_path)
    size = given[1].nbytes
    changed(urls[1], int(place * size) if isinstance(place, float) else min(place, size - 1))
    report = add(flashe, urls, tmp_path / "sum", shards=3)
    assert list(report.left_out) == [urls[1]]
    assert isinstance(report.left_out[urls[1]], errors.FormatError)
    assert (tmp_path / "sum").read_bytes() == summed(flashe, [given[0], given[2]])


def test_all_that_is_unfit_is_found_in_one_pass(tmp_path: Path) -> None:
    signed = sign_federation(federate("flashe", encrypt={"include": ["conv*"]}, max_clients=8, max_abs=1.0), 6)
    given = signed.encrypt(random_states(6, SHAPES))
    urls = lay(given, tmp_path)
    for number, place in ((1, 4000), (3, -1_000_000), (4, 5000)):
        changed(urls[number], place)
    report = add(signed, urls, tmp_path / "sum")
    assert report.passes == 2
    assert set(report.left_out) == {urls[1], urls[3], urls[4]}
    assert (tmp_path / "sum").read_bytes() == summed(signed, [given[0], given[2], given[5]])


def forged(signed: Signed, parts: Parts, body: bytes | None = None) -> secagg.Update:
    """What a site signs that is no update of a sum: under right digests, and its own signature."""
    signature = signed.identities[parts.header.site].sign(signed_message(parts.header.head, body or parts.body()))
    if body is None:
        return parts.sealed(signature)
    return replace(parts, proofs=(Proof(body, signature),)).build()


def ones(signed: Signed, update: secagg.Update) -> secagg.Update:
    parts = Parts.of(update)
    return forged(signed, replace(parts, payloads=[b"\xff" * len(parts.payloads[0]), *parts.payloads[1:]]))


def plaintext(signed: Signed, update: secagg.Update) -> secagg.Update:
    parts = Parts.of(update)
    block = signed.config.params.block_nbytes
    first = parts.payloads[0]
    return forged(
        signed, replace(parts, payloads=[first[: block // 2] + bytes(block // 2) + first[block:], *parts.payloads[1:]])
    )


def other_body(signed: Signed, update: secagg.Update) -> secagg.Update:
    return forged(signed, Parts.of(update), body=bytes(32))


@pytest.mark.parametrize(
    ("forge", "message"), [(ones, "modulus"), (plaintext, "second polynomial is zero"), (other_body, "body")]
)
def test_what_a_site_signs_that_is_no_update(
    forge: Callable[[Signed, secagg.Update], secagg.Update], message: str, tmp_path: Path
) -> None:
    signed, given = federation("pyfhel"), updates("pyfhel")
    urls = lay([given[0], forge(signed, given[1]), given[2]], tmp_path)
    report = add(signed, urls, tmp_path / "sum", shards=2)
    assert message in str(report.left_out[urls[1]])
    assert (tmp_path / "sum").read_bytes() == summed(signed, [given[0], given[2]])


def test_heads_that_do_not_belong_there(flashe: Signed, tmp_path: Path) -> None:
    given = updates("flashe")
    shapes = {**SHAPES, "linear.weight": (700, 201)}
    stranger = sign_federation(flashe.federation, 4)
    other = sign_federation(other_keys(flashe.federation))
    bad: dict[str, tuple[bytes, type[errors.SecAggError]]] = {
        "unsigned": (Parts.of(given[1]).sealed(bytes(64)).to_bytes(), errors.SignatureError),
        "round": (flashe.encrypt(states(), round=ROUND + 1)[1].to_bytes(), errors.RoundMismatchError),
        "layout": (flashe.encrypt(random_states(2, shapes))[1].to_bytes(), errors.LayoutError),
        "base": (flashe.encrypt(states(), base=bytes(32))[1].to_bytes(), errors.MismatchError),
        "manifest": (stranger.encrypt([*states(), states()[0]])[3].to_bytes(), errors.ManifestMismatchError),
        "key": (other.encrypt(states())[1].to_bytes(), errors.KeyMismatchError),
        "twice": (given[0].to_bytes(), errors.DuplicateError),
        "aggregate": (summed(flashe, given), errors.MismatchError),
        "truncated": (given[1].to_bytes()[:-1], errors.FormatError),
        "trailing": (given[1].to_bytes() + b"0", errors.FormatError),
        "empty": (b"", errors.FormatError),
        "foreign": (b"PK" * 5000, errors.FormatError),
    }
    first = lay(given[:1], tmp_path)[0]
    for name, (data, _) in bad.items():
        (tmp_path / f"{name}.bad").write_bytes(data)
    last = lay(given[2:], tmp_path)[0]
    missing = str(tmp_path / "missing")
    report = add(flashe, [first, str(tmp_path / "*.bad"), missing, last], tmp_path / "sum")
    found = {Path(url).stem: type(error) for url, error in report.left_out.items()}
    assert found == {name: kind for name, (_, kind) in bad.items()} | {"missing": errors.FormatError}
    assert report.passes == 1  # their heads are enough
    assert (tmp_path / "sum").read_bytes() == summed(flashe, [given[0], given[2]])


@pytest.mark.parametrize("first", ["base", "layout"])
def test_one_site_does_not_decide_what_the_others_must_have(flashe: Signed, first: str, tmp_path: Path) -> None:
    given = updates("flashe")
    if first == "base":
        other = flashe.encrypt(states(), base=bytes(32))
    else:
        other = flashe.encrypt(random_states(1, {"conv": (9,)}))
    urls = lay([other[0], *given[1:]], tmp_path)
    report = add(flashe, urls, tmp_path / "sum")
    assert list(report.left_out) == urls[:1]
    assert isinstance(report.left_out[urls[0]], errors.MismatchError if first == "base" else errors.LayoutError)
    assert (tmp_path / "sum").read_bytes() == summed(flashe, given[1:])


def test_round_0_begins_from_the_project_s_model(tmp_path: Path) -> None:
    signed = sign_federation(federate("flashe", max_abs=1.0), base=bytes(range(32)))
    right = signed.encrypt(random_states(3, {"w": (9,)}), round=0, base=bytes(range(32)))
    wrong = signed.encrypt(random_states(3, {"w": (9,)}), round=0, base=bytes(32))
    with pytest.raises(errors.QuorumError, match="left out"):
        add(signed, lay(wrong, tmp_path), tmp_path / "sum", round=0)
    report = add(signed, lay([wrong[0], *right[1:]], tmp_path), tmp_path / "sum", round=0)
    assert report.header.sites == ("site-2", "site-3")


def test_a_second_update_of_a_site_counts_where_the_first_is_unfit(flashe: Signed, tmp_path: Path) -> None:
    given = updates("flashe")
    urls = lay(given, tmp_path)
    again = flashe.encrypt(states())[1]
    again.save(tmp_path / "again")
    urls.append(str(tmp_path / "again"))
    assert isinstance(add(flashe, urls, tmp_path / "first").left_out[urls[3]], errors.DuplicateError)
    changed(urls[1], 4000)
    report = add(flashe, urls, tmp_path / "sum")
    assert list(report.left_out) == [urls[1]]
    assert (tmp_path / "sum").read_bytes() == summed(flashe, [given[0], given[2], again])


def test_too_few_are_fit(flashe: Signed, tmp_path: Path) -> None:
    urls = lay(updates("flashe"), tmp_path)
    changed(urls[0], 40)
    changed(urls[1], 4000)
    with pytest.raises(errors.QuorumError, match=r"has 1 updates, min_clients is 2(.|\n)*left out: .*site-1") as raised:
        add(flashe, urls, tmp_path / "sum")
    assert "site-2" in str(raised.value)
    assert not (tmp_path / "sum").exists()
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(errors.QuorumError, match="has no update that can be added"):
        add(flashe, [str(tmp_path / "missing")], tmp_path / "sum")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"urls": []}, "no updates are named"),
        ({"urls": ["nothing-*"]}, "nothing is at 'nothing-\\*': mend the pattern, or leave it out"),
        ({"urls": ["a.secagg", "nothing-*"]}, "nothing is at 'nothing-\\*'"),
        ({"urls": [Path("x")]}, "an update is named .*as text"),
        ({"shards": 0}, "shards is 0"),
        ({"shards": 1.5}, "shards is 1.5"),
        ({"round": -1}, "round is -1"),
        ({"target": b"x"}, "the target is"),
    ],
)
def test_wrong_arguments(flashe: Signed, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    urls = arguments.pop("urls", None)
    urls = lay(updates("flashe"), tmp_path) if urls is None else urls
    given = {"target": str(tmp_path / "sum"), "round": ROUND, **arguments}
    with pytest.raises(errors.ConfigError, match=message):
        aggregate(kit_of(flashe, tmp_path), urls, **given)
    with pytest.raises(errors.ConfigError, match="workers is 0"):
        ThreadPool(0)


def test_an_expired_project_adds_nothing(tmp_path: Path) -> None:
    old = sign_federation(federate("flashe", max_abs=1.0), issued=1, expires=2)
    with pytest.raises(errors.IdentityError, match="expired"):
        add(old, ["x"], tmp_path / "sum")


def test_what_lies_at_the_target_is_not_replaced(flashe: Signed, tmp_path: Path) -> None:
    urls = lay(updates("flashe"), tmp_path)
    target = tmp_path / "sum.secagg"
    add(flashe, urls, target)
    before = target.stat().st_mtime_ns
    assert add(flashe, [str(tmp_path / "*.secagg")], target).passes == 0  # the target is none of the updates
    assert target.stat().st_mtime_ns == before
    with pytest.raises(errors.StateError, match="something else"):
        add(flashe, urls[:2], target)
    target.write_bytes(b"notes")
    with pytest.raises(errors.StateError, match="something else"):
        add(flashe, urls, target)
    assert target.read_bytes() == b"notes"


class Stopping:
    """A pool that is lost after some ranges."""

    def __init__(self, ranges: int) -> None:
        self._ranges = ranges

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        for index in itertools.islice(indices, self._ranges):
            yield sum_range(job, index)
        raise errors.TransportError("lost")


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is read of which object from now on."""
    reads: Counter[str] = Counter()
    read = objects.read

    def count(pinned: Pinned, offset: int, nbytes: int) -> bytes:
        reads[Path(pinned.url).name] += nbytes
        return read(pinned, offset, nbytes)

    monkeypatch.setattr(objects, "read", count)
    return reads


def test_a_lost_driver_goes_on(flashe: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = updates("flashe")
    urls = lay(given, tmp_path)
    with pytest.raises(errors.TransportError, match="lost"):
        add(flashe, urls, tmp_path / "sum", pool=Stopping(2), shards=3)
    assert not (tmp_path / "sum").exists()
    reads = counted(monkeypatch)
    add(flashe, urls, tmp_path / "sum", shards=3)
    assert (tmp_path / "sum").read_bytes() == summed(flashe, given)
    assert reads["site-1.secagg"] < 0.7 * given[0].nbytes
    assert len(list(tmp_path.iterdir())) == 4


def test_a_partial_sum_that_is_damaged_is_made_again(flashe: Signed, tmp_path: Path) -> None:
    given = updates("flashe")
    urls = lay(given, tmp_path)
    with pytest.raises(errors.TransportError, match="lost"):
        add(flashe, urls, tmp_path / "sum", pool=Stopping(3), shards=4)
    parts, digests = (sorted(tmp_path.glob(f"sum.*.{suffix}")) for suffix in ("part", "digests"))
    assert (len(parts), len(digests)) == (3, 3)
    changed(str(parts[0]), -5000)
    parts[1].write_bytes(parts[1].read_bytes()[:-1])
    changed(str(digests[2]), 5)
    add(flashe, urls, tmp_path / "sum", shards=4)
    assert (tmp_path / "sum").read_bytes() == summed(flashe, given)


def test_an_object_that_changes_between_head_and_frames(flashe: Signed, tmp_path: Path) -> None:
    given = updates("flashe")
    urls = lay(given, tmp_path)

    def swap(job: SumJob) -> None:
        if len(job.sources) == 3:
            flashe.encrypt(states())[0].save(urls[0])

    report = add(flashe, urls, tmp_path / "sum", began=swap)
    assert "changed since it was looked at" in str(report.left_out[urls[0]])
    assert (tmp_path / "sum").read_bytes() == summed(flashe, given[1:])


def test_pools_that_lose_ranges(flashe: Signed, tmp_path: Path) -> None:
    class Forgetful:
        def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
            yield sum_range(job, next(iter(indices)))

    with pytest.raises(errors.StateError, match="1 of 3 ranges"):
        add(flashe, lay(updates("flashe"), tmp_path), tmp_path / "sum", pool=Forgetful(), shards=3)
    assert not (tmp_path / "sum").exists()


def test_a_job_travels_to_other_processes(flashe: Signed, tmp_path: Path) -> None:
    jobs: list[SumJob] = []
    add(flashe, lay(updates("flashe"), tmp_path), tmp_path / "sum", began=jobs.append)
    again = pickle.loads(pickle.dumps(jobs[0]))
    assert again == jobs[0]
    assert b"sum" in pickle.dumps(jobs[0])


def test_kernels(kernels: str, tmp_path: Path) -> None:
    signed, given = federation("seal-BGV"), updates("seal-BGV")
    add(signed, lay(given, tmp_path), tmp_path / "sum")
    assert (tmp_path / "sum").read_bytes() == summed(signed, given)


def test_a_name_is_no_pattern_unless_it_has_a_star(flashe: Signed, tmp_path: Path) -> None:
    given = updates("flashe")
    urls = [str(tmp_path / name) for name in ("a [1].secagg", "b%20#é?.secagg", "c\n.secagg")]
    for update, url in zip(given, urls, strict=True):
        update.save(url)
    assert add(flashe, urls, tmp_path / "s[0-9]um?").header.sites == tuple(flashe.names)
    assert (tmp_path / "s[0-9]um?").read_bytes() == summed(flashe, given)
    assert len(list(tmp_path.iterdir())) == 4
    report = add(flashe, str(tmp_path / "*.secagg"), tmp_path / "again")
    assert report.left_out == {}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_target_that_is_no_file_is_found_before_anything_is_added(flashe: Signed, kind: str, tmp_path: Path) -> None:
    urls = lay(updates("flashe"), tmp_path)
    (os.mkdir if kind == "folder" else os.mkfifo)(tmp_path / "sum")
    with pytest.raises(errors.StorageError, match=r"cannot write .*sum: it is no file"):
        add(flashe, urls, tmp_path / "sum", began=pytest.fail)
    assert len(list(tmp_path.iterdir())) == 4
    assert not (tmp_path / "sum").is_file()


def lost(signed: Signed, urls: Sequence[str], target: Path, ranges: int, shards: int) -> SumJob:
    """A sum whose driver is lost after some ranges."""
    jobs: list[SumJob] = []
    with pytest.raises(errors.TransportError, match="lost"):
        add(signed, urls, target, pool=Stopping(ranges), shards=shards, began=jobs.append)
    return jobs[0]


def test_what_a_killed_process_has_half_written_goes_with_the_next(flashe: Signed, tmp_path: Path) -> None:
    urls = lay(updates("flashe"), tmp_path)
    job = lost(flashe, urls, tmp_path / "sum", 1, 3)
    for number, url in enumerate((job.part_url(1), job.digests_url(1))):
        (tmp_path / f".{Path(url).name}.abcdef_{number}").write_bytes(b"half")
    (tmp_path / ".sum.notes").write_bytes(b"not ours")
    add(flashe, urls, tmp_path / "sum", shards=3)
    assert sorted(path.name for path in tmp_path.iterdir() if "sum" in path.name) == [".sum.notes", "sum"]


def test_digests_that_somebody_else_has_put_there_blame_no_site(flashe: Signed, tmp_path: Path) -> None:
    given = updates("flashe")
    urls = lay(given, tmp_path)
    job = lost(flashe, urls, tmp_path / "sum", 2, 3)
    path = Path(job.digests_url(1))
    blob = bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:-32]
    path.write_bytes(blob + digest(job.name.encode(), (1).to_bytes(8, "little"), blob))
    report = add(flashe, urls, tmp_path / "sum", shards=3)
    assert (report.left_out, report.passes) == ({}, 2)
    assert (tmp_path / "sum").read_bytes() == summed(flashe, given)


def test_sites_refuse_a_partial_sum_that_somebody_else_has_put_there(flashe: Signed, tmp_path: Path) -> None:
    """All digests are right, for they need no key: nobody but a site can tell, by the tags."""
    urls = lay(updates("flashe"), tmp_path)
    job = lost(flashe, urls, tmp_path / "sum", 2, 3)
    path, start = Path(job.part_url(1)), next(job.frames(1)).offset
    data = bytearray(path.read_bytes())
    for frame in job.frames(1):
        at, end = frame.offset - start, frame.offset - start + frame.nbytes
        data[at] ^= 1
        data[end : end + 32] = frame_digest(job.head, frame.index, memoryview(data)[at:end])
    path.write_bytes(data)
    assert add(flashe, urls, tmp_path / "sum", shards=3).left_out == {}
    with secagg.Update.open(tmp_path / "sum") as aggregate, pytest.raises(errors.DecryptionError):
        flashe.site().decrypt(aggregate)


def test_another_call_that_ends_first(flashe: Signed, tmp_path: Path) -> None:
    """Of the same updates, both are right; of others, the second is told, and replaces nothing."""
    urls, target = lay(updates("flashe"), tmp_path), tmp_path / "sum"

    class Late(ThreadPool):
        def __init__(self, first: Sequence[str]) -> None:
            super().__init__(1)
            self._first = first

        def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
            yield from super().run(job, indices)
            add(flashe, self._first, target, shards=2)  # and with it, all partial sums are gone

    assert add(flashe, urls, target, pool=Late(urls), shards=2).header.sites == tuple(flashe.names)
    assert target.read_bytes() == summed(flashe, updates("flashe"))
    target.unlink()
    with pytest.raises(errors.StateError, match="something else"):
        add(flashe, urls, target, pool=Late(urls[:2]), shards=2)
    assert target.read_bytes() == summed(flashe, updates("flashe")[:2])
    target.unlink()
    with pytest.raises(errors.StateError, match="a partial sum is gone .*start again"):
        add(flashe, urls, target, pool=Clearing(), shards=2)
    assert add(flashe, urls, target, shards=2).passes == 1


class Clearing(ThreadPool):
    """A pool after which somebody removes a partial sum."""

    def run(self, job: SumJob, indices: Iterable[int]) -> Iterator[RangeDone]:
        yield from super().run(job, indices)
        objects.remove([job.part_url(0)])
