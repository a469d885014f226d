"""The federated loop without a framework: a site's global model, what it sends for it, and what it makes of the sum."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..client import Client
from ..errors import LayoutError, StateError, VerificationError
from ..scheme.params import QuantisedParams
from ..storage.files import Target
from ..trust.receipt import Receipt
from ..wire.header import check_base, check_round
from ..wire.update import Update, check_update
from .difference import difference, held, is_float
from .snapshot import Snapshot


class GlobalModel:
    """The model that all sites of a federation share, at one site, from round to round. For one thread.

    A round is: train what `state` holds, `encrypt` what has come out, exchange the update for the aggregate, `apply`
    that. What is sent is the difference (local − global) of every float tensor; the site's integer and bool tensors,
    such as BatchNorm's ``num_batches_tracked``, stay its own. The global model is held in main memory, and 16-bit
    floats are held and sent as float32, so that small mean differences are not lost in rounding.

    Each update says which global model its training began from (`base`), and `apply` takes only the sum of updates that
    began from the same one. A site that restarts goes on `from_bytes`, or makes the first global model again and lets
    `load_model` take the encrypted one that a site has stored with `save_model`, and applies the aggregates since.

    Parameters
    ----------
    site : secagg.Client
        Encrypts and decrypts.
    state : mapping of str to torch.Tensor or numpy.ndarray
        The global model, in the order in which all sites have it. It is copied.
    round : int
        Round that comes next, for a site that has kept `state` and `base`.
    base : bytes, optional
        What training of that round begins from: `base` of the object that `state` comes from. Without it, and in round
        0 only, the digest of the global model.

    Raises
    ------
    StateError
        If a round is given without its `base`.
    LayoutError, ConfigError
        If the model cannot be aggregated, or round or base are none.

    Attributes
    ----------
    site : secagg.Client
        Another one may take its place between two calls: the keys of an earlier epoch read what was stored under them.
    layout : secagg.Layout
        How differences are sent: names, shapes, dtypes as they are held, and what is encrypted.
    round : int
        Round of the next, or current, training; `apply` counts it up.
    base : bytes
        What training of that round begins from, 32 bytes: the digest of the initial global model, then
        `secagg.Update.next_base` of each aggregate.
    """

    def __init__(self, site: Client, state: Mapping[str, Any], *, round: int = 0, base: bytes | None = None) -> None:
        round = check_round(round)
        if round != 0 and base is None:
            raise StateError(
                f"round {round} needs its base: give that of the global model which was at this round, or take the "
                "model that is stored on the server with load_model"
            )
        site.layout(state)
        self._held = {name: held(name, value) for name, value in state.items()}
        self._torch = frozenset(name for name, value in state.items() if _is_torch(value))
        self.site = site
        self.layout = site.layout(self._held)
        self.round = round
        self.base = site.base(self._held) if base is None else check_base(base)

    @property
    def state(self) -> dict[str, Any]:
        """The global model with this site's integer and bool tensors: a new dict of copies.

        Tensors are torch's, on the CPU, or NumPy arrays, as in the state that was given; floats are float32 or float64.

        Raises
        ------
        StateError
            If tensors are torch's, and this process, a fresh one, has not imported torch yet.
        """
        return self._as_given({name: value.copy() for name, value in self._held.items()})

    def difference(self, local: Mapping[str, Any]) -> dict[str, Any]:
        """Return (local − global) of every float tensor, and copies of the local integer and bool tensors.

        A model of 16-bit floats started from the global model rounded to its own dtype: that is what is subtracted, or
        training would seem to have made the rounding error.

        Parameters
        ----------
        local : mapping of str to torch.Tensor or numpy.ndarray
            What the site has trained: the tensors of the global model in any order, on any device, of either library.
            Floats may be of another dtype than the one that is held, and are cast.

        Returns
        -------
        dict
            Order, dtypes and libraries are those of `state`.

        Raises
        ------
        LayoutError
            If a tensor is missing, of no use, or of another shape or kind; if there is one too many.
        """
        return self._as_given(self._difference(local))

    def encrypt(self, local: Mapping[str, Any], weight: float) -> Update:
        """Encrypt what training has changed, as this site's update of the round; its integer tensors are kept from now.

        Parameters
        ----------
        local : mapping of str to torch.Tensor or numpy.ndarray
            As of `difference`.
        weight : float
            Weight of this site in the mean: its number of examples.

        Raises
        ------
        LayoutError
            As `difference`.
        SecAggError
            Whatever makes the update unfit; see `secagg.Client.encrypt`.
        """
        sent = self._difference(local)
        update = self.site.encrypt(sent, weight, self.round, base=self.base)
        self._keep_own(sent)
        return update

    def encrypt_to(self, target: Target, local: Mapping[str, Any], weight: float) -> None:
        """Encrypt into a file or a stream, a frame at a time. See `encrypt` and `secagg.Client.encrypt_to`."""
        sent = self._difference(local)
        self.site.encrypt_to(target, sent, weight, self.round, base=self.base)
        self._keep_own(sent)

    def apply(self, aggregate: Update, receipt: Receipt | None = None) -> bool:
        """Check and decrypt the mean difference, apply it to the global model, and count the round up.

        If anything is raised, global model, base and round stay as they were.

        Parameters
        ----------
        aggregate : secagg.Update
            The aggregate of this round. This site need not be in it.
        receipt : secagg.Receipt, optional
            The server's, for this site's update of the round, which must then be in the aggregate.

        Returns
        -------
        bool
            False if it is the very aggregate that was applied last: then nothing happens. It is known by `base`, which
            is a chain of digests over all aggregates: the one of the round before whose `next_base` is `base`.

        Raises
        ------
        RoundMismatchError
            If the aggregate is of another round.
        VerificationError
            If its updates began from another global model, or the one that `receipt` is for is not among them.
        SecAggError
            Whatever makes the aggregate unfit: see `secagg.Client.decrypt`.
        """
        if check_update(aggregate).header.round == self.round - 1 and aggregate.next_base == self.base:
            return False
        mean = self.site.decrypt(aggregate, like=self._held, round=self.round, base=self.base, receipt=receipt)
        base = aggregate.next_base
        assert base is not None  # `decrypt` has compared it
        self._held = {
            name: np.asarray(value + mean[name]) if is_float(value) else value for name, value in self._held.items()
        }
        self.base = base
        self.round += 1
        return True

    def save_model(self, target: Target) -> None:
        """Write the encrypted global model, from which the current round begins, to a file or stream for the server.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        self.site.encrypt_model(target, self._held, round=self.round, base=self.base)

    def load_model(self, model: Update) -> None:
        """Go on from an encrypted global model that any site has saved: take over its tensors, round and base.

        The site's integer tensors stay. If anything is raised, global model, base and round stay as they were.

        Parameters
        ----------
        model : secagg.Update
            Of kind ``"model"``.

        Raises
        ------
        VerificationError
            If it does not say what training from it begins from.
        SecAggError
            Whatever makes it unfit: see `secagg.Client.decrypt_model`.
        """
        held = self.site.decrypt_model(model, like=self._held)
        if model.header.base is None:
            raise VerificationError(
                f"the model of round {model.header.round} was stored without a base, so nobody can tell whether others "
                "train from the same one: store it with GlobalModel.save_model"
            )
        self._held, self.round, self.base = held, model.header.round, model.header.base

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a global model holds a secret key and is not pickled; use to_bytes() and from_bytes()")

    def to_bytes(self) -> bytes:
        """Return all of this object but the client, from which `from_bytes` makes it again, bit for bit.

        The model and the site's integer tensors are in it in the clear: keep it as you keep patients' data. Not in it
        is what the client has: keys, the count of failures where that is in no file, and what error feedback carries to
        the next update. A fresh client begins with nothing to carry, so that what rounding dropped last is lost; with
        ``error_feedback`` in the configuration a `UserWarning` says so.
        """
        params = self.site.config.params
        if isinstance(params, QuantisedParams) and params.error_feedback:
            warnings.warn(
                "what error feedback carries to this site's next update is not stored with its global model: in "
                "another process, what rounding dropped from the last update is lost",
                stacklevel=2,
            )
        return Snapshot(self.round, self.base, self._held, self._torch).to_bytes()

    @classmethod
    def from_bytes(cls, site: Client, blob: bytes) -> GlobalModel:
        """Make the object again that `to_bytes` has stored.

        Parameters
        ----------
        site : secagg.Client
            A client of the same site.
        blob : bytes
            As `to_bytes` returned it.

        Raises
        ------
        FormatError
            If it is something else, or was written by another release that stores more (`DigestError` if it is
            damaged).
        LayoutError, ConfigError
            If the configuration of `site` does not fit the model.
        """
        snapshot = Snapshot.from_bytes(blob)
        model = cls(site, snapshot.arrays, round=snapshot.round, base=snapshot.base)
        model._torch = snapshot.torch
        return model

    def _difference(self, local: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        if not isinstance(local, Mapping):
            raise LayoutError(f"a state dict is needed, a mapping of names to tensors; got {type(local).__name__}")
        missing, extra = self._held.keys() - local.keys(), local.keys() - self._held.keys()
        if missing or extra:
            fault, names = ("lacks", missing) if missing else ("also has", extra)
            raise LayoutError(
                f"what was trained {fault} {', '.join(sorted(map(repr, names)))}: give the tensors of the global model"
            )
        return {name: difference(name, local[name], value) for name, value in self._held.items()}

    def _keep_own(self, sent: Mapping[str, NDArray[Any]]) -> None:
        """Take over the local integer and bool tensors."""
        self._held = {name: value if is_float(value) else sent[name] for name, value in self._held.items()}

    def _as_given(self, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Return arrays, which become the caller's, as tensors of the libraries of the state that was given."""
        torch = sys.modules.get("torch")
        if self._torch and torch is None:
            raise StateError("the global model has tensors of torch: import torch first")
        return {
            name: torch.from_numpy(array) if torch is not None and name in self._torch else array
            for name, array in arrays.items()
        }


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
