"""Filters of a ``MonaiAlgo``: the global model comes out of what the server hands out, and only ciphertext leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NoReturn

import numpy as np
from monai.fl.utils.constants import ExtraItems, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from numpy.typing import NDArray

import secagg
from secagg.errors import ConfigError, FormatError, LayoutError, MismatchError, StateError, StorageError, show
from secagg.protocol import Handout
from secagg.site import Follower
from secagg.trust import SiteKit, load_site_kit

from .exchange import STORED, UPDATE, from_weights, to_array

log = logging.getLogger(__name__)

Extra = Mapping[str, Any] | None


class SecureSite:
    """One object behind all filters of a ``MonaiAlgo``, in the bundle's file of filters.

    ::

        {"site": {"_target_": "secagg.integrations.monai.SecureSite", "kit": "/etc/secagg/site-1", "weight": 42},
         "pre_filters": ["$@site.open"],
         "post_weight_filters": ["$@site.seal"],
         "post_evaluate_filters": ["$@site.metrics"],
         "post_statistics_filters": ["$@site.statistics"]}

    ``train`` and ``evaluate`` take an ``ExchangeObject`` whose weights `to_weights` has made of the server's handout,
    and see the global model. ``get_weights`` returns one whose weights are ``{"secagg": …}``, the encrypted update as
    an array of uint8, and, where the server has asked for it, the encrypted global model as ``"secagg.model"``.

    What the next process of this site needs is kept in the kit's folder. It tells the model, and stays there.

    Parameters
    ----------
    kit : path
        Folder of the site's kit. The server must have no say in it, nor in the bundle: both are code or keys.
    weight : float
        The private weight of this site in the mean: its number of training examples, which no filter is told.

    Raises
    ------
    ConfigError
        If the configuration needs two exchanges a round (``precision: auto``).
    KeyFileError, IdentityError
        If the kit is damaged, or not that of a site; if the site has been revoked.
    RangeError
        If the configuration does not allow that weight.
    """

    def __init__(self, kit: str | os.PathLike[str], weight: float) -> None:
        self._kit: SiteKit = load_site_kit(kit)
        Follower(self._kit)  # what is wrong with kit or configuration must be found out before hours of training
        secagg.Client.load(self._kit).check_weight(weight)
        self._weight = weight
        self._follower: Follower | None = None
        self._handout: Handout | None = None
        self._measured: tuple[int, dict[str, float]] = (-1, {})
        self._sealed: tuple[int, bytes, bytes] = (
            -1,
            b"",
            b"",
        )  # the round, digests of its model and of what was learnt

    def open(self, data: ExchangeObject, extra: Extra = None) -> ExchangeObject:
        """Verify what the server hands out, and return the global model; any number of times in a round.

        Floats are float64, so that the difference which ``MonaiAlgo`` takes is exact, and what was trained comes out of
        it bit for bit.

        Raises
        ------
        FormatError
            If it is no handout, such as a model in the clear.
        MismatchError
            If it is of another run than the one before: for that, the site's program is started again.
        SecAggError
            Whatever `Follower.receive` refuses.
        """
        handout, first = from_weights(data.weights)
        if self._handout is not None and handout.run != self._handout.run:
            raise MismatchError(
                f"the server hands out another run, {show(handout.run)}, than the one that this site takes part in: "
                "start its program again to go through that one"
            )
        follower = self._follower or self._follow(handout.run)
        state = follower.receive(handout, first or None)
        self._follower, self._handout = follower, handout
        if follower.means:
            means = ", ".join(f"{name} {value:.4f}" for name, value in follower.means.items())
            log.info(
                "round %d begins from a model of which the one before had, over all sites: %s", handout.round, means
            )
        opened = {name: _exact(np.asarray(value)) for name, value in state.items()}
        return ExchangeObject(weights=opened, weight_type=WeightType.WEIGHTS)

    def seal(self, data: ExchangeObject, extra: Extra = None) -> ExchangeObject:
        """Encrypt the difference that ``get_weights`` returns; nothing but the ciphertext is in what this returns.

        Raises
        ------
        ConfigError
            If it is a whole model, in the clear: of ``send_weight_diff=False``, or the best or final one of the
            bundle's files, whoever asks for that.
        StateError
            If nothing was opened yet, or nothing trained since an earlier round was sealed.
        SecAggError
            Whatever `Follower.encrypt` refuses.
        """
        if data.weight_type != WeightType.WEIGHT_DIFF or ExtraItems.MODEL_TYPE in (extra or {}) or not data.weights:
            raise ConfigError(
                "a whole model would leave this site in the clear, and is not sent: let MonaiAlgo have "
                "send_weight_diff=True, and ask for no best or final model, which every site has"
            )
        follower, handout = self._opened()
        assert follower.model is not None
        state = follower.model.state
        local, begun, learnt = _local(state, data.weights), _digest(state), _digest(data.weights)
        before, begun_before, learnt_before = self._sealed
        # From the same model, which a round that only measures leaves, training can learn the same.
        if learnt and learnt == learnt_before and begun != begun_before and before != handout.round:
            raise StateError(
                f"what was learnt for round {before} would be sent once more, for round {handout.round}: call "
                "train with what the server hands out before get_weights"
            )
        round, measured = self._measured
        update = follower.encrypt(local, self._weight, measured if round == handout.round else None)
        weights = {UPDATE: to_array(update)} | ({STORED: to_array(follower.stored())} if handout.store else {})
        self._sealed = handout.round, begun, learnt
        path = self._kit.folder / _file_name(handout.run)
        follower.save(path)
        for old in self._kit.folder.glob(_file_name(None)):
            if old != path:  # of a run that has ended
                old.unlink(missing_ok=True)
        return ExchangeObject(weights=weights, weight_type=WeightType.WEIGHT_DIFF)

    def metrics(self, data: ExchangeObject, extra: Extra = None) -> ExchangeObject:
        """Keep the metrics of the run for the next update, in which they travel encrypted; drop all others.

        What this returns are the weighted means of all sites in the latest round that others have confirmed: those may
        be told (`secagg.site.Follower.confirmed`).
        """
        follower, handout = self._opened()
        given = data.metrics or {}
        found = {name: _number(name, given[name]) for name in handout.metrics if name in given}
        assert follower.model is not None
        for name, value in list(found.items()):
            if not follower.model.measurable(name, value, self._weight):  # else the update would be lost for it
                log.warning("the metric %s is %.6g, and not sent: the round has no mean of it", name, value)
                del found[name]
        self._measured = (handout.round, found)
        if missing := [name for name in handout.metrics if name not in given]:
            log.warning("the evaluator has no metric %s; it has %s", ", ".join(missing), ", ".join(given) or "none")
        return ExchangeObject(metrics={name: follower.confirmed[name] for name in found if name in follower.confirmed})

    def statistics(self, data: ExchangeObject, extra: Extra = None) -> NoReturn:
        """Refuse: histograms and counts of patients' images would leave in the clear."""
        raise ConfigError(
            "statistics of this site's data would leave it in the clear, and are not sent: leave out get_data_stats"
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secure site holds a secret key and is not pickled; make it from the kit")

    def _opened(self) -> tuple[Follower, Handout]:
        if self._follower is None or self._handout is None:
            raise StateError(
                "there is no global model yet: let pre_filters have $@site.open, and call train or evaluate first"
            )
        return self._follower, self._handout

    def _follow(self, run: str) -> Follower:
        """Go on from what an earlier process has kept of this run, or begin."""
        path = self._kit.folder / _file_name(run)
        if not path.exists():
            return Follower(self._kit)
        try:
            return Follower(self._kit, path.read_bytes())
        except (FormatError, OSError) as error:
            raise StorageError(
                f"{path}: {error}; move it away, and let the server hand out all: handout(None)"
            ) from error


def _local(state: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return what was trained, given the global model and what has changed since."""
    if missing := [name for name in state if name not in difference]:
        raise LayoutError(f"the network of this bundle lacks tensor {missing[0]!r} of the global model")
    if more := sorted(difference.keys() - state.keys()):
        raise LayoutError(f"the network of this bundle has a tensor {more[0]!r}, which the global model has not")
    starts = {name: np.asarray(value) for name, value in state.items()}
    return {
        name: np.asarray(_exact(start) + np.asarray(difference[name])).astype(start.dtype)
        for name, start in starts.items()
    }


def _digest(tensors: Mapping[str, Any]) -> bytes:
    """Return a digest of the floats of a model, or of what was learnt; of zeros alone, as with a rate of 0, nothing."""
    every = (np.ascontiguousarray(tensors[name]) for name in sorted(tensors))
    arrays = [array for array in every if array.dtype.kind == "f"]  # counts are the site's own
    if not any(array.any() for array in arrays):
        return b""
    found = sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.digest()


def _exact(value: NDArray[Any]) -> NDArray[Any]:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise LayoutError(f"the evaluator's metric {name!r} is no number, but {type(value).__name__}") from None


def _file_name(run: str | None) -> str:
    """Return the name of the file for what is kept of a run; of all runs as a pattern."""
    which = "*" if run is None else sha256(run.encode()).hexdigest()[:16]  # a server's text, which no path is made of
    return f"monai-{which}.secagg"
