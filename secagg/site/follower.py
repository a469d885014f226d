"""A site's side of a federation whose messages a framework carries: one exchange a round."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from ..client import Client
from ..errors import MismatchError, RoundMismatchError, StateError
from ..protocol.handout import Handout
from ..storage.files import replace_file
from ..trust.agreement import check_first_model, check_one_exchange
from ..trust.kit import SiteKit, site_kit
from ..wire.update import Update
from .global_model import GlobalModel

log = logging.getLogger(__name__)


class Follower:
    """Keeps a global model in step with what a server hands out, and encrypts what is trained from it. For one thread.

    Files of the kit are read and, but for the newest manifest and the count of failures, not written.

    Parameters
    ----------
    kit : path or SiteKit
        The site's kit.
    state : bytes
        What `to_bytes` returned to an earlier process in this run. Empty: there was none, or it is lost.

    Raises
    ------
    ConfigError
        If the configuration needs two exchanges a round (``precision: auto``).
    KeyFileError, IdentityError
        If the kit is damaged, or not that of a site; if the site has been revoked.
    FormatError, MismatchError
        If `state` is something else, or another site's.

    Attributes
    ----------
    model : GlobalModel or None
        The global model, once there is one.
    """

    def __init__(self, kit: SiteKit | str | os.PathLike[str], state: bytes = b"") -> None:
        self._kit = site_kit(kit)
        check_one_exchange(self._kit.config)
        self._client = Client.load(self._kit)
        self.model = GlobalModel.from_bytes(self._client, state) if state else None

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a follower holds a secret key and is not pickled; use to_bytes(), and make it from the kit")

    @property
    def name(self) -> str:
        """Name of the site."""
        return self._kit.name

    @property
    def means(self) -> dict[str, float]:
        """Weighted means of the metrics that all sites of the latest aggregate have given: for this site alone."""
        return {} if self.model is None else self.model.metrics

    @property
    def confirmed(self) -> dict[str, float]:
        """What of them may be told to the server: those of the aggregate before. See `GlobalModel`."""
        return {} if self.model is None else self.model.confirmed

    def receive(self, handout: Handout, first: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Verify what the server hands out, and take over what is new; each aggregate counts once.

        Parameters
        ----------
        handout : Handout
            What the server hands out for the current round.
        first : mapping of str to torch.Tensor or numpy.ndarray, optional
            The first global model, which the framework has brought; needed where there is none yet.

        Returns
        -------
        dict
            The global model with the site's own tensors, as of `GlobalModel.state`: to train or to evaluate.

        Raises
        ------
        StateError
            If there is no global model yet, and none was brought.
        RoundMismatchError
            If all that was handed out does not lead to the round that it says, as what is played back does not.
        VerificationError
            If the first global model is not the project's, a sum is not that of what is listed, or lists another
            update under this site's name than this one has made.
        MismatchError
            If the metrics are others than those that the run began with.
        SecAggError
            Whatever else manifest, model or aggregates are refused for. The global model is then where it was, or
            nearer to the current round.
        """
        self._take(handout.manifest)
        self._kit.project.check_time()
        if self._kit.config.metrics not in ((), handout.metrics):
            raise MismatchError(
                f"metrics of the run are {', '.join(handout.metrics) or 'none'}; the configuration has "
                f"{', '.join(self._kit.config.metrics)}"
            )
        if self.model is None:
            if not handout.first or first is None:
                raise StateError(
                    f"site {self.name!r} has no global model, as after a restart, and the server hands out only what "
                    f"follows round {handout.round - 1}: it must hand out all"
                )
            check_first_model(self._kit.project, first)
            begun = GlobalModel(self._client, first, context=handout.run, metrics=handout.metrics)
            self._advance(begun, handout)
            self.model = begun
        else:
            if handout.metrics != self.model.metric_names:
                raise MismatchError(
                    f"metrics of the run are {', '.join(handout.metrics) or 'none'} by now; it began with "
                    f"{', '.join(self.model.metric_names) or 'none'}"
                )
            self._advance(self.model, handout)
        return self.model.state

    def encrypt(self, local: Mapping[str, Any], weight: float, metrics: Mapping[str, float] | None = None) -> bytes:
        """Return the site's update of the round, encrypted; see `GlobalModel.encrypt`.

        Parameters
        ----------
        local : mapping of str to torch.Tensor or numpy.ndarray
            What has been trained from the global model.
        weight : float
            The site's number of examples.
        metrics : mapping of str to float, optional
            Values of some or all of the metrics of the run.
        """
        return self._begun().encrypt(local, weight, metrics=metrics).to_bytes()

    def stored(self) -> bytes:
        """Return the global model that the round begins from, encrypted, for the server to hand to others."""
        stream = io.BytesIO()
        self._begun().save_model(stream)
        return stream.getvalue()

    def to_bytes(self) -> bytes:
        """Return what the next process of this site needs. It tells the model, and stays at the site."""
        return self._begun().to_bytes()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_bytes` to a file that nobody else may read, in place of the one before; `StorageError` if not."""
        state = self.to_bytes()
        with replace_file(path, 0o600) as file:
            file.write(state)

    def _begun(self) -> GlobalModel:
        if self.model is None:
            raise StateError(f"site {self.name!r} has no global model yet: receive what the server hands out first")
        return self.model

    def _take(self, manifest: bytes) -> None:
        """Keep the server's manifest, if it is later than the own one."""
        kit = self._kit.store_manifest(manifest)
        if kit.project == self._kit.project:
            return
        client = Client.load(kit)
        if self.model is not None:
            if self._client.begun:  # else the next update says that a carry may be lost
                client.restore_carry(self._client.carry())
            self.model.site = client
        self._kit, self._client = kit, client

    def _advance(self, model: GlobalModel, handout: Handout) -> None:
        """Bring a global model to the round of a handout."""
        if handout.model:
            stored = Update.from_bytes(handout.model)
            if stored.header.round > model.round:
                sent, trained = model.round, model.trained
                model.load_model(stored)
                if trained:
                    log.warning("whether what %s has sent is in the sum of round %d, nobody can tell", self.name, sent)
        for blob in handout.aggregates:
            aggregate = Update.from_bytes(blob)
            header = aggregate.header
            if header.round < model.round - 1:
                continue  # it was applied long ago
            trained, listed = model.trained, self.name in header.sites
            if not model.apply(aggregate, may_lack_own=True):  # what was sent may be refused, too late, or lost
                continue
            if trained and not listed:
                log.warning(
                    "the sum of round %d is of %s, without what %s has sent: refused, lost, or left out",
                    header.round,
                    ", ".join(header.sites),
                    self.name,
                )
            elif listed and not trained:
                log.warning(
                    "the sum of round %d has an update of %s that it does not know of: made before a restart, or by "
                    "another process under its name",
                    header.round,
                    self.name,
                )
        if model.round != handout.round:
            raise RoundMismatchError(
                f"the server hands out round {handout.round}, and what it hands out leads site {self.name!r} to round "
                f"{model.round}: it plays back an earlier round, or keeps something back"
            )
