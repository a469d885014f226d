"""A site's session with its server: joins, calibrates, uploads, downloads; waits, retries, and gives up in the end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import secagg

from ..errors import (
    ConfigError,
    DuplicateError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    SecAggError,
    StateError,
    TransportError,
)
from ..protocol.chunks import Progress
from ..protocol.expected import Expected
from ..protocol.messages import MAX_TIMEOUT_SECONDS, BusyError, DownloadRequest, ServerStatus, SkipRequest
from ..trust.agreement import check_first_base
from ..wire.header import check_round, check_site
from .catching_up import catch_up, model_to_load, stores_model
from .deposit import Depositor
from .global_model import GlobalModel
from .link import Link
from .replies import Joined, Uploaded, read_joined, read_receipt, read_status
from .retry import pauses, persist
from .transfer import Check, Sender, fetch

T = TypeVar("T")

_MAX_EXCHANGES = 5
#: How often in a row the calibration of a round may lack sites: the others may have done all rounds, and left.
_MAX_CALIBRATIONS = 10
_LEAVE_SECONDS = 5.0

log = logging.getLogger(__name__)


def _log_again(error: QuorumError) -> None:
    log.warning("waiting again for the calibrations of others: %s", error)


class Session:
    """A site's session with the server, over any transport. A context manager, or use `close`; for one thread.

    A call that finds the server away or breaks off is tried again, with growing pauses, until it has taken `timeout`
    seconds. That is safe: an update is known by its nonce and added once. An upload goes on from the last frame that
    the server has, also when it is tried again by another session, hours later.

    Parameters
    ----------
    link : Link
        The connection; the session closes it.
    site_name : str
        The site's name in its updates.
    timeout : float
        Seconds that one call may take, retries included. Waiting for the other sites in `calibrate` and `download`
        comes on top: up to the server's round timeout, which `join` learns, or two of them in a `download` of who has
        given nothing to the round; `calibrate` may wait that long 10 times.
    project : secagg.Project, optional
        The site's project manifest. With it, the server must show the same one or a later one of the same authority,
        and sign a receipt for each update.
    layout : secagg.Layout, optional
        The model, as of `secagg.Client.layout`: no download that is of another is written to the disk. Without it, that
        of the project, or of the update that was uploaded last; while there is none, 4 GiB are the most.

    Raises
    ------
    ConfigError
        For an unusable name or timeout.
    """

    def __init__(
        self,
        link: Link,
        site_name: str,
        *,
        timeout: float = 600.0,
        project: secagg.Project | None = None,
        layout: secagg.Layout | None = None,
    ) -> None:
        if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
            raise ConfigError(f"the timeout is {timeout} s; use more than 0 and at most {MAX_TIMEOUT_SECONDS:g} s")
        self.site_name = check_site(site_name)
        self._link = link
        self.timeout = timeout
        self._project = project
        self._expected = Expected(layout)
        if project is not None:
            self._expected = Expected(layout or project.layout, project.config.params, project.config.aggregation)
        self._hosts: tuple[str, ...] = ()  # to which updates go by the server's bucket; none: to the server
        self._round_timeout = 0.0
        self._nonces: dict[int, bytes] = {}
        self._sent = b""  # nonce of what the server has had last: who sends that again asks whether it is there
        self._receipts: dict[int, secagg.Receipt] = {}

    def join(self) -> Joined:
        """Join the federation: the open round now waits for this site.

        From now on the session goes by the server's project manifest, if it has one of its own.

        Raises
        ------
        IdentityError
            If the server does not accept the certificate, or it bears another name; if the manifest has expired, has
            revoked this site, or the server shows none.
        SignatureError, VerificationError, FormatError
            If the server's manifest is not the session's own or a later one of the same authority.
        KeyMismatchError
            If the server's key is not that of its manifest.
        CapacityError
            If the federation is full.
        TransportError
            If the server cannot be reached in time.
        """
        reply = self._call("joining", lambda seconds: self._link.join(self.site_name, seconds))
        joined = read_joined(reply, self._project, self.site_name)
        self._project, self._round_timeout = joined.project, joined.round_timeout
        self._hosts = joined.project.storage if joined.deposits and joined.project is not None else ()
        return joined

    def status(self) -> ServerStatus:
        """Ask how the open round and the server stand.

        Raises
        ------
        TransportError
            If the server cannot be reached in time.
        """
        return read_status(self._call("asking for the status", self._link.status))

    def upload(self, update: secagg.Update | str | os.PathLike[str], progress: Progress | None = None) -> Uploaded:
        """Upload an update; returns once it is on the server's disk and in the sum.

        What an earlier, broken upload of this very update has left on the server is not sent again. If `join` has said
        that updates go by the server's bucket, it is put there, and the server verifies it there.

        Parameters
        ----------
        update : Update or path
            An update, or the file of one.
        progress : callable, optional
            Called with the bytes that the server has and in all. It runs in another thread.

        Returns
        -------
        Uploaded
            Whether this very update had been added before, and the receipt, which `receipt` returns later, too.

        Raises
        ------
        ManifestMismatchError
            If the round is under a later manifest by now, since a site was revoked in it, say: join again, keep the
            manifest (`SiteKit.store_manifest`), and encrypt the same again, by a `Client` of the kit that has it.
        SecAggError
            Whatever makes the update unfit for the open round: `RoundMismatchError`, `KeyMismatchError`,
            `LayoutError`, `FormatError`, `DuplicateError`, `IdentityError` …; nothing was added.
        SignatureError, VerificationError, FormatError
            If the session has a manifest and the server acknowledges the update without a receipt that fits.
        TransportError
            If it could not be sent in time; another call goes on where this one broke off.
        """
        if not isinstance(update, secagg.Update):
            with secagg.Update.open(update) as opened:
                return self.upload(opened, progress)
        header = _check_kind(update, "update")
        self._expected = Expected.like(header)
        already_added, blob = self._give("the upload", update, progress)
        receipt = None if self._project is None else read_receipt(blob, update, self._project)
        if receipt is not None:
            self._receipts[header.round] = receipt
        self._nonces = {header.round: header.contributions[0].nonce}
        return Uploaded(already_added, receipt)

    def calibrate(
        self,
        calibration: secagg.Update | str | os.PathLike[str],
        path: str | os.PathLike[str],
        progress: Progress | None = None,
        again: Callable[[QuorumError], None] = _log_again,
    ) -> secagg.Update:
        """Upload a calibration, wait for those of the others, and download the scales of the round to `path`.

        If fewer than `min_clients` sites have sent theirs at the round timeout, this waits again, 10 times in a row at
        most: what has been trained is in no update yet, and is not to be lost for others that are late.

        If the server has lost the calibration in between, it is uploaded again. If another one of this site is in the
        sum, because the site was restarted, that one counts; if all of them come too late, a warning is logged, and the
        scales are those of the others. What is too large for the scales is clipped, and due in the next round.

        Parameters
        ----------
        calibration : Update or path
            What `GlobalModel.calibrate` or `secagg.Client.calibrate` returned, or the file of it.
        path : path
            File to write; it appears whole or not at all.
        progress : callable, optional
            As in `upload` and `download`.
        again : callable, optional
            Called with the error of an attempt that lacked sites, before the next one. By default that is logged, as a
            warning.

        Returns
        -------
        Update
            The scales, opened from the file, for ``encrypt(…, calibration=…)``; close it after use.

        Raises
        ------
        QuorumError
            If 10 attempts in a row lacked sites. What was sent counts: call this again when they are there.
        RoundMismatchError
            If the round has ended, and its scales are not kept any more; else they are returned, and it is the update
            that is refused.
        SecAggError
            Whatever else it is refused for, as of `upload`. After a `ManifestMismatchError`, do as said there.
        TransportError
            If the server cannot be reached, or does not answer, in time.
        """
        if not isinstance(calibration, secagg.Update):
            with secagg.Update.open(calibration) as opened:
                return self.calibrate(opened, path, progress, again)
        failures, waits = 0, pauses()
        while True:
            try:
                return self._calibrate(calibration, path, progress)
            except QuorumError as error:
                failures += 1
                if failures == _MAX_CALIBRATIONS:
                    raise QuorumError(
                        f"{error}; so it was {failures} times in a row: start again when the other sites are there"
                    ) from error
                again(error)
            time.sleep(next(waits))

    def skip(self, round: int) -> None:
        """Say that this site has nothing to give to a round: it ends without waiting for this site.

        The site still takes part: the next round waits for it, and `download` waits for the aggregate of this one,
        which `GlobalModel.apply` takes all the same. Until then the site may upload after all.

        Parameters
        ----------
        round : int
            The open round. If it has ended since, nothing happens.

        Raises
        ------
        RoundMismatchError
            If the round has not begun, or ended long ago.
        DuplicateError
            If an update of this site is in the sum of the round already, which counts.
        IdentityError, CapacityError
            As of `join`.
        TransportError
            If the server cannot be reached in time.
        """
        request = SkipRequest(self.site_name, check_round(round))
        self._call(f"skipping round {round}", lambda seconds: self._link.skip(request, seconds))

    def leave(self, round: int) -> None:
        """Say, after this site's last round, that it gives nothing to the one that is open now.

        Without it the server waits for this site to the round timeout, and says then that the round has failed. One try
        of a few seconds, and no error if it fails: whoever has all rounds needs the server no more, which may have been
        stopped by now. What this site has given to the round counts, and it may join again later.

        Parameters
        ----------
        round : int
            The open round: that which the global model is at.
        """
        request = SkipRequest(self.site_name, check_round(round))
        with suppress(SecAggError, BusyError):
            self._link.skip(request, min(self.timeout, _LEAVE_SECONDS))

    def receipt(self, round: int) -> secagg.Receipt | None:
        """Return the server's receipt for the update that this session uploaded for a round; None if there is none.

        Hand it to `secagg.Client.decrypt` with the aggregate: one that does not hold the update is refused then. When a
        round is voided, because a site was revoked in it, the receipt is void, too: what is encrypted again under the
        later manifest (see `upload`), and uploaded, has another one, which takes its place.
        """
        return self._receipts.get(round)

    def download(self, round: int, path: str | os.PathLike[str], progress: Progress | None = None) -> secagg.Update:
        """Wait for the end of a round and download its aggregate.

        Parameters
        ----------
        round : int
            Which round. If this session uploaded an update for it, the aggregate waited for is the one with it.
        path : path
            File to write; it appears whole or not at all. What a download that broke off leaves beside it, another one
            goes on with.
        progress : callable, optional
            Called with the bytes that are there and in all.

        Returns
        -------
        Update
            The aggregate, opened from the file; close it after use.

        Raises
        ------
        QuorumError
            If the round had fewer than `min_clients` updates at its timeout. It is open again, and what was added
            stays in its sum.
        StateError
            If the update that this session uploaded is not in the sum any more: upload it again.
        RoundMismatchError
            If the round has not begun, or its aggregate is not kept any more.
        LayoutError, MismatchError
            If what the server sends is of another model, or another configuration.
        TransportError
            If the server cannot be reached, or the round does not end, in time.
        """
        return self._download(round, path, progress)

    def exchange(
        self,
        update: secagg.Update | str | os.PathLike[str],
        path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> secagg.Update:
        """Upload an update, wait for the round, and download its aggregate to `path`.

        If the server has lost the update in between, it is uploaded again. If another update of this site is in the
        sum already, also of a round that has ended since, because the site was restarted and encrypted anew when the
        first one had just been added, then that one counts, a warning is logged, and its aggregate is returned; a
        `GlobalModel` applies it after `withdraw`. `catch_up` finds such an update before anything is trained.
        Parameters, result and other errors are those of `upload` and `download`. A `ManifestMismatchError` may come at
        any time until the round has ended: do as `upload` says, and exchange what was encrypted again.
        """
        if not isinstance(update, secagg.Update):
            with secagg.Update.open(update) as opened:
                return self.exchange(opened, path, progress)
        round = update.header.round
        for _ in range(_MAX_EXCHANGES):
            try:
                self.upload(update, progress)
            except (DuplicateError, RoundMismatchError) as error:
                return self._download_earlier(round, path, progress, error)
            try:
                return self.download(round, path, progress)
            except StateError:
                continue
        raise TransportError(
            f"the server lost the update of {self.site_name!r} {_MAX_EXCHANGES} times; is its disk failing?"
        )

    def save_model(self, path: str | os.PathLike[str], progress: Progress | None = None) -> bool:
        """Store the encrypted global model that a round begins from on the server, for sites that come back.

        Parameters
        ----------
        path : path
            File that `secagg.Client.encrypt_model` wrote.
        progress : callable, optional
            As in `upload`.

        Returns
        -------
        bool
            False if the server had a model of that round already.

        Raises
        ------
        SecAggError
            Whatever makes the model unfit: `MismatchError`, `RoundMismatchError`, `QuotaError` …; nothing was stored.
        TransportError
            If it could not be sent in time; another call goes on where this one broke off.
        """
        with secagg.Update.open(path) as model:
            _check_kind(model, "model")
            return not self._send("storing the model", model, progress)[0]

    def load_model(
        self, path: str | os.PathLike[str], round: int | None = None, progress: Progress | None = None
    ) -> secagg.Update:
        """Download an encrypted global model that a site has stored on the server.

        Parameters
        ----------
        path : path
            As in `download`.
        round : int, optional
            The round that begins from the model; without it, the newest one.
        progress : callable, optional
            As in `download`.

        Returns
        -------
        Update
            The model, opened from the file, for `secagg.Client.decrypt_model`; close it after use.

        Raises
        ------
        RoundMismatchError
            If the server has none.
        LayoutError, MismatchError
            As in `download`.
        TransportError
            If the server cannot be reached in time.
        """
        request = DownloadRequest("model", None if round is None else check_round(round))
        return self._fetch("the download of the model", request, path, progress)

    def has_turn(self, aggregate: secagg.Header) -> bool:
        """Return whether it is this site that stores the model of the round after an aggregate, and it is missing."""
        round = aggregate.round + 1
        return stores_model(self.site_name, round, aggregate.sites) and round not in self.status().models

    def store_model(
        self,
        model: GlobalModel,
        aggregate: secagg.Update,
        path: str | os.PathLike[str],
        progress: Progress | None = None,
    ) -> bool:
        """Store a global model on the server if that is this site's turn, for sites that come later or come back.

        Every site calls this in every round: the sites of an aggregate take turns.

        Parameters
        ----------
        model : GlobalModel
            To which the aggregate has been applied.
        aggregate : Update
            That of the latest round.
        path : path
            File to write the encrypted model to.
        progress : callable, optional
            As in `upload`.

        Returns
        -------
        bool
            Whether this call has stored it.

        Raises
        ------
        StateError
            If the aggregate has not been applied.
        SecAggError
            As of `save_model`. The federation goes on without: another site stores the next one.
        """
        if model.base != aggregate.next_base:
            raise StateError(
                f"the global model is that of round {model.round}: apply the aggregate of round "
                f"{aggregate.header.round} first"
            )
        if not self.has_turn(aggregate.header):
            return False
        model.save_model(path)
        return self.save_model(path, progress)

    def catch_up(self, model: GlobalModel, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Bring a global model to the open round: by a model that a site has stored there, and the aggregates since.

        To be called after `join`; a model that is at the open round stays as it is. If an update of this site is in the
        sum of the open round already, because an earlier process has sent it, that one counts: this waits for the end
        of the round, and applies its aggregate.

        Parameters
        ----------
        model : GlobalModel
            The initial one, or one that this site has kept.
        path : path
            File for what is downloaded.
        progress : callable, optional
            As in `download`.

        Raises
        ------
        StateError
            If the server keeps too little, or is behind this site.
        MismatchError
            If the others train from another global model.
        VerificationError
            If it begins the federation with other values than the project's.
        SecAggError
            Whatever the model or an aggregate is refused for.
        """
        unusable: set[int] = set()  # aggregates with a site that has been revoked since

        def step(status: ServerStatus) -> None:
            models = [number for number in status.models if number <= status.round]
            aggregates = set(status.aggregates) - unusable
            stored = model_to_load(model.round, status.round, models, aggregates, begun=model.round > 0)
            if stored is None:
                with self.download(model.round, path, progress) as aggregate:
                    if self._project is not None and self._project.revoked_since(aggregate.header):
                        unusable.add(model.round)
                    else:
                        model.apply(aggregate)
            else:
                with self.load_model(path, stored, progress) as update:
                    model.load_model(update)

        while True:
            catch_up(model, self.status, step)
            if self._project is not None and model.round == 0:
                check_first_base(self._project, model.base)
            status = self.status()
            if status.round == model.round and (self.site_name not in status.added or status.stage == "calibration"):
                return
            if status.round == model.round:  # an update of an earlier process counts
                with self.download(model.round, path, progress) as aggregate:
                    model.apply(aggregate)

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _calibrate(
        self, calibration: secagg.Update, path: str | os.PathLike[str], progress: Progress | None
    ) -> secagg.Update:
        """Calibrate in one attempt of the round."""
        header = _check_kind(calibration, "calibration")
        self._expected = Expected.like(header)
        nonce, what = header.contributions[0].nonce, f"the calibration of round {header.round}"
        for _ in range(_MAX_EXCHANGES):
            request = DownloadRequest("scales", header.round, nonce)
            try:
                self._send(what, calibration, progress)
            except (DuplicateError, RoundMismatchError):
                request = replace(request, nonce=b"")
            try:
                scales = self._fetch(what, request, path, progress, self._round_timeout)
            except StateError:
                continue
            if self.site_name not in scales.header.sites:
                log.warning(
                    "the scales of round %d are without those of %s: what is too large for them is clipped, and due in "
                    "the next round",
                    header.round,
                    self.site_name,
                )
            return scales
        raise TransportError(
            f"the server lost {what} of {self.site_name!r} {_MAX_EXCHANGES} times: is its disk failing?"
        )

    def _download(
        self, round: int, path: str | os.PathLike[str], progress: Progress | None, check: Check | None = None
    ) -> secagg.Update:
        round = check_round(round)
        nonce = self._nonces.get(round, b"")
        stages = 1 if nonce else 2  # who has given nothing may wait for the others' calibration, too
        request, extra = DownloadRequest("aggregate", round, nonce), stages * self._round_timeout
        return self._fetch(f"the download of round {round}", request, path, progress, extra, check)

    def _download_earlier(
        self, round: int, path: str | os.PathLike[str], progress: Progress | None, refusal: SecAggError
    ) -> secagg.Update:
        """Download an aggregate that holds another update of this site than the refused one, or raise the refusal."""

        def check(header: secagg.Header) -> None:
            if self.site_name not in header.sites:
                raise refusal

        try:
            aggregate = self._download(round, path, progress, check)
        except RoundMismatchError:  # there is no such aggregate
            raise refusal from None
        log.warning("an earlier update of %s is in the sum of round %d and counts (%s)", self.site_name, round, refusal)
        return aggregate

    def _give(self, what: str, update: secagg.Update, progress: Progress | None) -> tuple[bool, bytes]:
        """Give an update to the server, by its bucket if it takes it there."""
        if self._hosts:
            depositor = Depositor(self._link, update, self._hosts, progress)
            try:
                return self._call(what, depositor, progress=lambda: depositor.nbytes)
            except StateError:  # the server has been started again, and has no bucket any more
                self._hosts = ()
        return self._send(what, update, progress)

    def _send(self, what: str, update: secagg.Update, progress: Progress | None) -> tuple[bool, bytes]:
        nonce = update.header.contributions[0].nonce
        sender = Sender(self._link, update, progress, asks=nonce == self._sent)
        reply = self._call(what, sender, progress=lambda: sender.frame)
        self._sent = nonce
        return reply

    def _fetch(
        self,
        what: str,
        request: DownloadRequest,
        path: str | os.PathLike[str],
        progress: Progress | None,
        extra: float = 0.0,
        check: Check | None = None,
    ) -> secagg.Update:
        target = Path(path)

        def check_all(header: secagg.Header) -> None:
            self._expected.check(header)
            if check is not None:
                check(header)

        self._call(what, lambda seconds: fetch(self._link, request, target, seconds, check_all, progress), extra)
        return secagg.Update.open(target)

    def _call(
        self, what: str, call: Callable[[float], T], extra: float = 0.0, progress: Callable[[], int] = lambda: 0
    ) -> T:
        return persist(what, call, self.timeout + extra, progress)


def _check_kind(update: secagg.Update, kind: str) -> secagg.Header:
    if update.header.kind != kind:
        raise MismatchError(f"kind {update.header.kind!r} where {kind!r} belongs: {update!r}")
    return update.header
