"""Adds a round's updates where they lie: admits their heads, hands out ranges, and puts the aggregate together."""

from __future__ import annotations

import glob
import hmac
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from ..errors import (
    ConfigError,
    DigestError,
    DuplicateError,
    FormatError,
    QuorumError,
    SecAggError,
    StateError,
    show,
)
from ..storage import objects
from ..storage.pinned import Pinned, shown
from ..trust.kit import ServerKit, server_kit
from ..wire.header import Header, check_round
from ..wire.tail import body_digest
from ..wire.update import Update
from .heads import HEADS, admit
from .job import Pool, SumJob
from .pool import ThreadPool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What was added.

    Parameters
    ----------
    header : Header
        Of the aggregate; its ``sites`` are those that are in the sum.
    nbytes : int
        Its size.
    left_out : mapping of str to SecAggError
        What is wrong with the updates that are not in the sum, by their URLs.
    passes : int
        How often the updates were read: once, and once more where some turned out to be unfit behind their heads; not
        at all if the aggregate was there already.
    """

    header: Header
    nbytes: int
    left_out: Mapping[str, SecAggError]
    passes: int


def aggregate(
    kit: ServerKit | str | os.PathLike[str],
    urls: str | Iterable[str],
    target: str,
    round: int,
    *,
    pool: Pool | None = None,
    shards: int | None = None,
    began: Callable[[SumJob], None] = lambda job: None,
) -> Report:
    """Add updates that lie in folders or object stores, and write the aggregate: bit for bit what `Aggregator` makes.

    Each head is admitted as `secagg.Aggregator` does it, and must be signed. Then tasks read, check and add ranges of
    frames. What sites have signed is held against what was added: an update that is unfit in any range is left out of
    all, and these are summed anew. Partial sums lie beside the target until it is there, so that another call with the
    same updates goes on with them; nothing else is written.

    Parameters
    ----------
    kit : path or ServerKit
        The server's kit: its folder, or what `secagg.trust.load_server_kit` read there.
    urls : str or iterable of str
        Paths and URLs of updates, or patterns with ``*``. Contributions are listed in this order. Of calibrations, the
        result is the scales.
    target : str
        Path or URL of the aggregate. It appears whole, or not at all.
    round : int
        The round whose updates are added.
    pool : Pool, optional
        Where tasks run; a `ThreadPool` if it is not given.
    shards : int, optional
        Number of ranges; one each 32 MiB if it is not given.
    began : callable, optional
        Called with the job when a pass begins.

    Returns
    -------
    Report
        Who is in the sum, and who was left out, and why.

    Raises
    ------
    ConfigError
        If no update is named, nothing is where a pattern says, or `round` or `shards` is no such number; of the kit as
        `Aggregator.load`.
    KeyFileError
        As of `Aggregator.load`.
    IdentityError
        If the project's manifest is not valid now.
    QuorumError
        If fewer than ``min_clients`` updates are fit.
    StateError
        If there is something else at the target, or ranges are missing in the end.
    TransportError, StorageError
        If a store cannot be reached, or takes nothing.
    """
    opened = server_kit(kit)
    opened.project.check_time()
    check_round(round)
    if shards is not None and (not isinstance(shards, int) or shards < 1):
        raise ConfigError(f"shards is {show(shards)}; give a whole number from 1 on")
    found = _found(urls, target)
    pool, unfit, passes, anew = pool or ThreadPool(), dict[str, SecAggError](), 0, False
    while True:
        refused = dict[str, SecAggError]()
        try:
            job = admit(opened, found, target, round, shards, refused, unfit)
        except QuorumError as few:
            reasons = (f"\n  left out: {shown(url)}: {reason}" for url, reason in (refused | unfit).items())
            raise QuorumError(f"{few}{''.join(reasons)}") from None
        if _is_there(job):
            break
        passes += 1
        began(job)
        wrong, resumed = _sum(job, pool)
        if not wrong:
            _put_together(job)
            break
        _clear(job)
        if resumed and not anew:  # whoever may write there may have put them there: no site is blamed for that
            anew = True
            log.warning("the partial sums that lay beside %s do not fit: all ranges are added anew", shown(target))
            continue
        for place, error in wrong.items():
            url = job.sources[place].pinned.url
            unfit[url] = error
            log.warning("%s is left out of all ranges, which are added anew: %s", shown(url), error)
    _clear(job)
    return Report(job.header, job.header.nbytes, refused | unfit, passes)


def _found(urls: str | Iterable[str], target: str) -> dict[str, Pinned | SecAggError]:
    """Return the objects that are meant, each as it is now, or what is wrong with it, but not the target itself."""
    if not isinstance(target, str):
        raise ConfigError(f"the target is {show(target)}; give a path or a URL as text")
    patterns = [urls] if isinstance(urls, str) else list(urls)
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise ConfigError(f"an update is named {show(wrong[0])}; give paths and URLs as text")
    names = dict[str, None]()
    for pattern in patterns:
        listed = objects.list_objects(pattern)
        if not listed:
            raise ConfigError(f"nothing is at {show(shown(pattern))}: mend the pattern, or leave it out")
        names |= dict.fromkeys(listed)
    names.pop(target, None)
    if not names:
        raise ConfigError("no updates are named: give their paths or URLs, or patterns such as 's3://bucket/round-3/*'")

    def pin(url: str) -> Pinned | SecAggError:
        try:
            return objects.pin(url)
        except FormatError as error:
            return error

    with ThreadPoolExecutor(HEADS) as executor:
        return dict(zip(names, executor.map(pin, names), strict=True))


def _sum(job: SumJob, pool: Pool) -> tuple[dict[int, SecAggError], bool]:
    """Let all ranges be added; return what is wrong with updates, by their places: if nothing is, the sum is there.

    And whether that was concluded from partial sums of earlier calls.
    """
    wrong, digests, found = dict[int, SecAggError](), dict[int, tuple[bytes, ...]](), False
    for done in pool.run(job, range(job.shards)):
        wrong.update(done.unfit)
        digests[done.index] = done.digests
        found |= done.found
    if len(digests) != job.shards:
        raise StateError(f"{len(digests)} of {job.shards} ranges were added; start again, to go on with them")
    if wrong:  # with what was read now
        return wrong, False
    for place, source in enumerate(job.sources):
        body = body_digest(source.head_digest, (digests[index][place] for index in range(job.shards)))
        if not hmac.compare_digest(source.body, body):
            wrong[place] = DigestError("the body is damaged: it is not what its site has signed")
    return wrong, found


def _put_together(job: SumJob) -> None:
    """Make the sum of its parts, unless somebody else has done so meanwhile."""
    if _is_there(job):
        return
    try:
        objects.concatenate([objects.pin(job.part_url(index)) for index in range(job.shards)], job.target)
    except FormatError as error:
        if not _is_there(job):  # by another call, which has then removed the parts
            raise StateError(f"a partial sum is gone ({error}); start again, to go on with the others") from None
    if not _is_there(job):
        raise StateError(f"{shown(job.target)}, which was written a moment ago, is not there")


def _is_there(job: SumJob) -> bool:
    """Return whether the sum lies at the target; `StateError` if something else does."""
    try:
        pinned = objects.pin(job.target)
    except FormatError:
        objects.check_target(job.target)
        return False
    with suppress(FormatError, DuplicateError), Update.open(pinned) as there:
        if (there.header.head, there.tail.pack(job.head, job.header.frame_count)) == (job.head, job.tail):
            return True
    raise StateError(f"there is something else at {shown(job.target)}: remove it, or name another place for the sum")


def _clear(job: SumJob) -> None:
    """Remove partial sums, also those of earlier calls; what cannot be removed is in nobody's way."""
    folder, slash, name = (glob.escape(part) for part in job.target.rpartition("/"))
    partial, random = f"{name}.{'[0-9a-f]' * 16}.*.", "[a-z0-9_]" * 8
    # The hidden ones are of a folder: what a process had half written when it was killed.
    hidden = f"{folder}{slash}.{partial}"
    with suppress(SecAggError):
        for suffix in ("part", "digests"):
            objects.remove(objects.list_objects(f"{folder}{slash}{partial}{suffix}"))
            objects.remove(objects.list_objects(f"{hidden}{suffix}.{random}"))
