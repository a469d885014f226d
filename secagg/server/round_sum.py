"""The sum of the open round: an aggregator that is made again from the stored updates, should it break."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import secagg

from ..errors import FormatError, SecAggError, StorageError
from ..storage.files import os_errors
from .manifests import Manifests
from .run_folder import UPDATE_SUFFIX, RunFolder
from .stored import stored_aggregates

#: Of files that are no part of the sum any more; they go with the folder of their round.
REFUSED_SUFFIX = ".refused"

#: Heads of one layout differ by the name of the site, the round, the base, the epoch: by less than this.
_HEAD_SLACK_NBYTES = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What is the same in all rounds of a server: configuration, key, the kit's manifest, and where the files lie."""

    config: secagg.Config
    key: secagg.ServerKey
    project: secagg.Project | None
    folder: RunFolder


class RoundSum:
    """Adds the updates of one round. Serialise the calls, except `check`. Call `restore` before anything is added.

    Parameters
    ----------
    terms : Terms
        Configuration, key, folder.
    manifests : Manifests
        That of the round, and of the next.
    round : int
        Which round.
    layout, base
        As of `secagg.Aggregator`.

    Attributes
    ----------
    manifests : Manifests
        As given.
    base : bytes or None
        What updates must begin from; None while it is not known.
    layout_known : bool
        Whether the layout of updates is known, and with it their size.
    head_nbytes : int or None
        No head of that layout is longer; None while none has been seen.
    """

    def __init__(
        self, terms: Terms, manifests: Manifests, round: int, layout: secagg.Layout | None, base: bytes | None
    ) -> None:
        self.manifests = manifests
        self._terms = terms
        self._round = round
        self._known = layout, base
        self._gate = self._aggregate(layout, base)  # adds nothing: it judges heads while the other one adds
        self._aggregator: secagg.Aggregator | None = None
        self.base = base
        self.layout_known = self._gate.layout is not None
        self.head_nbytes: int | None = None

    @classmethod
    def after(cls, terms: Terms, manifests: Manifests, aggregate: secagg.Update) -> RoundSum:
        """Return the sum of the round that follows an aggregate, under `manifests`."""
        header = aggregate.header
        following = cls(terms, manifests, header.round + 1, header.layout, aggregate.next_base)
        following.head_nbytes = len(header.of(header.contributions[0]).head) + _HEAD_SLACK_NBYTES
        return following

    @property
    def whole(self) -> bool:
        """Whether every stored update of the round is in the sum; if not, call `restore`."""
        return self._aggregator is not None and not self._aggregator.closed

    def check(self, header: secagg.Header) -> None:
        """Check an update by its header; the errors are those of `secagg.Aggregator.admit`."""
        self._gate.admit(header)

    def add(self, update: secagg.Update, commit: Callable[[], None]) -> None:
        """Verify an update, call `commit`, which stores it, and add it.

        Raises
        ------
        SecAggError
            If it is unfit or could not be stored: then the sum is as before.
        SecAggError, OSError
            If it could not be read a second time: then the sum is not `whole` any more.
        """
        assert self._aggregator is not None
        self._aggregator.add(update, commit)
        self._settle(update.header)

    def restore(self) -> dict[str, bytes]:
        """Make the sum anew from the stored updates; return their nonces by site.

        What cannot be added, because it is damaged, of an old epoch or under another manifest, is put aside.

        Raises
        ------
        StorageError
            If no file can be read at present: there are too many open ones, say.
        """
        self._aggregator = None
        aggregator, added = self._aggregate(*self._known), {}
        for path in self._terms.folder.updates(self._round):
            site = path.name.removesuffix(UPDATE_SUFFIX)
            with os_errors(StorageError, "the server cannot read its updates"):
                path.open("rb").close()
            try:
                with secagg.Update.open(path) as update:
                    header = update.header
                    if header.site != site:
                        raise FormatError(f"it is of site {header.site!r}")
                    aggregator.add(update)
            except (SecAggError, OSError) as error:
                self._leave_out(site, error)
                path.rename(path.with_suffix(REFUSED_SUFFIX))
                if aggregator.closed:
                    return self.restore()
                continue
            added[site] = header.contributions[0].nonce
            self._settle(header)
        self._aggregator = aggregator
        return added

    def conclude(self) -> tuple[secagg.Header, RoundSum]:
        """Store the aggregate; return its header and the sum of the next round, ready for updates.

        After an error go on with `restore`, to add more or to conclude again: nothing was stored.

        Raises
        ------
        SecAggError, OSError
            If the aggregate, or what the next round needs, could not be stored.
        """
        assert self._aggregator is not None
        aggregate = self._aggregator.finish()
        following = RoundSum.after(self._terms, self.manifests.following(), aggregate)
        self._terms.folder.open_round(self._round + 1)
        following.restore()
        self._terms.folder.save_aggregate(aggregate)  # last: from here on the round is over, whatever happens
        return aggregate.header, following

    def _aggregate(self, layout: secagg.Layout | None, base: bytes | None) -> secagg.Aggregator:
        terms, project = self._terms, self.manifests.project
        return secagg.Aggregator(terms.config, terms.key, self._round, layout, base=base, project=project)

    def _settle(self, header: secagg.Header) -> None:
        """Let the first update settle what the others must have."""
        if not self.layout_known or self.base != header.base:
            self._gate = self._aggregate(header.layout, header.base)
            self.base, self.layout_known = header.base, True
        self.head_nbytes = self.head_nbytes or len(header.head) + _HEAD_SLACK_NBYTES

    def _leave_out(self, site: str, error: Exception) -> None:
        kind = type(error).__name__
        log.error(
            "round %d: the stored update of %s is left out: %s: %s",
            self._round,
            site,
            kind,
            error,
            extra={"event": "update_left_out", "site": site, "round": self._round, "error": kind},
        )


def read_aggregates(terms: Terms, manifests: Manifests) -> tuple[dict[int, secagg.Header], RoundSum]:
    """Return the headers of the stored aggregates by their rounds, and the sum, under `manifests`, of the round after.

    Errors as of `secagg.server.stored.check_stored`.
    """
    headers, following = {}, None
    for aggregate in stored_aggregates(terms.folder.path, terms.key, terms.project):
        headers[aggregate.header.round] = aggregate.header
        following = RoundSum.after(terms, manifests, aggregate)
    base = None if terms.project is None else terms.project.base
    return headers, following or RoundSum(terms, manifests, 0, None, base)
