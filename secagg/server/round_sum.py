"""The sum of the open stage: an aggregator that is made again from the stored uploads, should it break."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import secagg

from ..errors import FormatError, ScalesMismatchError, SecAggError, StorageError, TransportError
from ..storage.files import os_errors
from ..trust.agreement import check_header
from .manifests import Manifests
from .pointer import open_upload
from .run_folder import RunFolder
from .stored import stored_sums

#: Of files that are no part of the sum any more; they go with the folder of their round.
REFUSED_SUFFIX = ".refused"

#: Heads of one layout differ by the name of the site, the round, the base, the epoch, the kind, the name of the scales:
#: by less than this.
_HEAD_SLACK_NBYTES = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What is the same in all rounds of a server: configuration, key, the kit's manifest, and where the files lie."""

    config: secagg.Config
    key: secagg.ServerKey
    project: secagg.Project | None
    folder: RunFolder

    @property
    def calibrated(self) -> bool:
        """Whether each round begins with a calibration."""
        return self.config.aggregation.precision == "auto"


class RoundSum:
    """Adds what belongs to one stage of a round. Serialise the calls, except `check`.

    Call `restore` before anything is added.

    Parameters
    ----------
    terms : Terms
        Configuration, key, folder.
    manifests : Manifests
        That of the round, and of the next.
    round : int
        Which round.
    stage : str
        What is added: ``"calibration"`` or ``"update"``.
    layout, base, calibration
        As of `secagg.Aggregator`.

    Attributes
    ----------
    manifests, round, stage : Manifests, int, str
        As given.
    base, calibration : bytes or None
        What updates must begin from, and what names their scales; None while it is not known, or nothing does.
    layout_known : bool
        Whether the layout is known, and with it the size of uploads.
    head_nbytes : int or None
        No head of that layout is longer; None while none has been seen.
    """

    def __init__(
        self,
        terms: Terms,
        manifests: Manifests,
        round: int,
        stage: str,
        layout: secagg.Layout | None,
        base: bytes | None,
        calibration: bytes | None = None,
    ) -> None:
        self.manifests = manifests
        self.stage = stage
        self._terms = terms
        self.round = round
        self._known = layout, base, calibration
        self._gate = self._aggregate(*self._known)  # adds nothing: it judges heads while the other one adds
        self._aggregator: secagg.Aggregator | None = None
        self.base, self.calibration = base, calibration
        self.layout_known = self._gate.layout is not None
        self.head_nbytes: int | None = None

    @classmethod
    def first(cls, terms: Terms, manifests: Manifests) -> RoundSum:
        """Return the sum that round 0 begins with, under `manifests`."""
        base = None if terms.project is None else terms.project.base
        return cls(terms, manifests, 0, _first_stage(terms), None, base)

    @classmethod
    def after(cls, terms: Terms, manifests: Manifests, summed: secagg.Update) -> RoundSum:
        """Return the sum that follows an aggregate or scales, under `manifests`."""
        header = summed.header
        if header.kind == "scales":
            following = cls(terms, manifests, header.round, "update", header.layout, header.base, summed.digest())
        else:
            round, stage = header.round + 1, _first_stage(terms)
            following = cls(terms, manifests, round, stage, header.layout, summed.next_base)
        following.head_nbytes = len(header.of(header.contributions[0]).head) + _HEAD_SLACK_NBYTES
        return following

    @property
    def whole(self) -> bool:
        """Whether all that is stored of the stage is in the sum; if not, call `restore`."""
        return self._aggregator is not None and not self._aggregator.closed

    def check(self, header: secagg.Header) -> None:
        """Check what is uploaded to the stage by its header; the errors are those of `secagg.Aggregator.admit`."""
        self._gate.admit(header)

    def follows_from(self, scales: secagg.Header) -> bool:
        """Return whether these are what this stage, before anything is added, would make: of its terms and manifest."""
        project = self.manifests.project
        if self.stage != "calibration" or (scales.round, scales.base) != (self.round, self.base or scales.base):
            return False
        with suppress(SecAggError):
            check_header(scales, "scales", self._terms.config, self._terms.key)
            return scales.manifest == (None if project is None else project.digest)
        return False

    def check_other(self, header: secagg.Header) -> None:
        """Check all but kind and scales of what is no upload to this stage; errors as of `check`."""
        self.check(replace(header, kind=self.stage, calibration=self.calibration))

    def add(self, update: secagg.Update, commit: Callable[[], None]) -> None:
        """Verify an update or calibration, call `commit`, which stores it, and add it.

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
        """Make the sum anew from what is stored of the stage; return the nonces by site.

        What cannot be added, because it is damaged, of an old epoch, under another manifest or of scales that are not
        there, is put aside.

        Raises
        ------
        StorageError
            If no file can be read at present: there are too many open ones, say.
        TransportError
            If some of it lies in the bucket, which cannot be reached at present.
        """
        self._aggregator = None
        aggregator, added = self._aggregate(*self._known), {}
        folder = self._terms.folder
        if self.stage == "calibration":
            for site, path in folder.uploads(self.round, "update").items():
                self._put_aside(site, path, ScalesMismatchError("the scales that it was made under are not served"))
        for site, path in folder.uploads(self.round, self.stage).items():
            with os_errors(StorageError, f"the server cannot read its {self.stage}s"):
                path.open("rb").close()
            try:
                with open_upload(path) as update:
                    header = update.header
                    if header.site != site:
                        raise FormatError(f"it is of site {header.site!r}")
                    aggregator.add(update)
            except (SecAggError, OSError) as error:
                if type(error) is TransportError:  # of the bucket: that says nothing about what lies there
                    raise
                self._put_aside(site, path, error)
                if aggregator.closed:
                    return self.restore()
                continue
            added[site] = header.contributions[0].nonce
            self._settle(header)
        self._aggregator = aggregator
        return added

    def conclude(self) -> tuple[secagg.Header, RoundSum]:
        """Store aggregate or scales; return their header and the sum of the next stage, ready for uploads.

        After an error go on with `restore`, to add more or to conclude again: nothing was stored.

        Raises
        ------
        SecAggError, OSError
            If the sum, or what the next stage needs, could not be stored.
        """
        assert self._aggregator is not None
        summed, manifests = self._aggregator.finish(), self.manifests
        if self.stage == "update":  # a round is under one manifest
            manifests = manifests.following()
        following = RoundSum.after(self._terms, manifests, summed)
        self._terms.folder.open_round(following.round)
        following.restore()
        self._terms.folder.save_sum(summed)  # last: from here on the stage is over, whatever happens
        return summed.header, following

    def _aggregate(
        self, layout: secagg.Layout | None, base: bytes | None, calibration: bytes | None
    ) -> secagg.Aggregator:
        terms = self._terms
        return secagg.Aggregator(
            terms.config,
            terms.key,
            self.round,
            layout,
            base=base,
            project=self.manifests.project,
            kind=self.stage,
            calibration=calibration,
        )

    def _settle(self, header: secagg.Header) -> None:
        """Let the first upload settle what the others must have."""
        if not self.layout_known or (self.base, self.calibration) != (header.base, header.calibration):
            self._gate = self._aggregate(header.layout, header.base, header.calibration)
            self.base, self.calibration, self.layout_known = header.base, header.calibration, True
        self.head_nbytes = self.head_nbytes or len(header.head) + _HEAD_SLACK_NBYTES

    def _put_aside(self, site: str, path: Path, error: Exception) -> None:
        kind = type(error).__name__
        log.error(
            "round %d: the stored %s of %s is left out: %s: %s",
            self.round,
            path.suffix[1:],
            site,
            kind,
            error,
            extra={"event": f"{path.suffix[1:]}_left_out", "site": site, "round": self.round, "error": kind},
        )
        path.rename(path.with_suffix(REFUSED_SUFFIX))


def read_sums(terms: Terms, manifests: Manifests) -> tuple[dict[str, dict[int, secagg.Header]], RoundSum]:
    """Return the headers of stored aggregates and scales by kind and round, and the sum, under `manifests`, after them.

    Scales of the open round count if its updates can be made under them. Errors as of
    `secagg.server.stored.check_stored`.
    """
    headers: dict[str, dict[int, secagg.Header]] = {"aggregate": {}, "scales": {}}
    following = RoundSum.first(terms, manifests)
    for summed in stored_sums(terms.folder.path, terms.key, terms.project):
        header = summed.header
        headers[header.kind][header.round] = header
        if header.kind == "aggregate" or following.follows_from(header):
            following = RoundSum.after(terms, manifests, summed)
    kept = {*headers["aggregate"], *((following.round,) if following.stage == "update" else ())}
    headers["scales"] = {round: header for round, header in headers["scales"].items() if round in kept}
    return headers, following


def _first_stage(terms: Terms) -> str:
    return "calibration" if terms.calibrated else "update"
