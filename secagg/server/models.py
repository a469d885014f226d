"""Stored global models: encrypted by sites for sites that come back. The server cannot read them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import secagg

from ..errors import MismatchError, RoundMismatchError, SecAggError
from .run_folder import RunFolder

#: How many are kept.
KEPT_MODELS = 2

_NONE = object()

log = logging.getLogger(__name__)


class ModelStore:
    """The models of the run folder. The first one of a round stays: all sites have the same. Safe for threads.

    Parameters
    ----------
    folder : RunFolder
        Where they lie.
    project : callable
        Returns the manifest whose sites must have signed them; None: anybody may.
    """

    def __init__(self, folder: RunFolder, project: Callable[[], secagg.Project | None]) -> None:
        self._folder = folder
        self._project = project
        self._lock = threading.Lock()
        self._bases: dict[int, bytes | None] = {}
        signers = project()
        for round, path in folder.stored("model").items():
            try:
                with secagg.Update.open(path) as model:
                    if (model.header.kind, model.header.round) != ("model", round):
                        raise MismatchError(f"this is not the model of round {round}")
                    if signers is not None:
                        signers.site(model.header.site)  # sites refuse it otherwise, and another one can store it
                    self._bases[round] = model.header.base
            except SecAggError as error:
                log.error(
                    "%s is left out: %s",
                    path.name,
                    error,
                    extra={"event": "model_left_out", "round": round, "error": type(error).__name__},
                )
                path.unlink()

    @property
    def rounds(self) -> tuple[int, ...]:
        """The rounds whose models are there."""
        with self._lock:
            return tuple(sorted(self._bases))

    def wants(self, header: secagg.Header, open_round: int, bases: Mapping[int, bytes | None]) -> bool:
        """Return whether a model is wanted; False if there is one of its round.

        Parameters
        ----------
        header : secagg.Header
            Of the model.
        open_round : int
            The open round.
        bases : mapping of int to (bytes or None)
            What the open round and the one before it began from, where it is known.

        Raises
        ------
        RoundMismatchError
            If it is neither of the open round nor of the one before it.
        MismatchError
            If it is not the model that its round began from.
        """
        round = header.round
        if round not in (open_round, open_round - 1):
            raise RoundMismatchError(f"the model of {header.site!r} is of round {round}; round {open_round} is open")
        expected = bases.get(round)
        if expected is not None and header.base != expected:
            raise MismatchError(f"round {round} began from another global model than that of {header.site!r}")
        with self._lock:
            return round not in self._bases or self._bases[round] != header.base

    def keep(self, part: Path, header: secagg.Header) -> bool:
        """Verify a received model, store it, and remove the oldest; return False if there is one of its round by now.

        Raises
        ------
        FormatError
            If it is damaged.
        SignatureError
            If its site has not signed it.
        StorageError
            If it could not be stored.
        """
        with secagg.Update.open(part) as model:
            project = self._project()
            if project is not None:
                project.check_signature(model)
            for _ in model.frames():
                pass
        with self._lock:
            if self._bases.get(header.round, _NONE) == header.base:
                part.unlink(missing_ok=True)
                return False
            self._folder.keep_model(part, header.round)
            self._bases[header.round] = header.base
            for stale in sorted(self._bases)[:-KEPT_MODELS]:
                del self._bases[stale]
            self._folder.prune("model", self._bases)
        log.info(
            "the model of round %d is stored, from %s",
            header.round,
            header.site,
            extra={"event": "model_stored", "site": header.site, "round": header.round},
        )
        return True

    def open(self, round: int | None) -> secagg.Update:
        """Return the model of a round, or the newest one, opened from its file.

        Raises
        ------
        RoundMismatchError
            If it is not there.
        """
        rounds = self.rounds
        wanted = max(rounds, default=0) if round is None else round
        if wanted not in rounds:
            kept = ", ".join(map(str, rounds)) or "none"
            which = "any round" if round is None else f"round {round}"
            raise RoundMismatchError(f"no model of {which} is stored; stored are: {kept}")
        return secagg.Update.open(self._folder.path_of("model", wanted))
