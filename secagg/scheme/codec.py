"""Codecs: a model's tensors as plaintext blocks and back, with the proof that sums fit.

The encrypted section of an update begins with the weight, as a fraction of ``max_weight``; all values behind it are
multiplied by that fraction before they are encoded, so that sums divide to the weighted mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, show
from .aggregation import Aggregation
from .integer_codec import IntegerCodec
from .params import CKKSParams, Params, QuantisedParams
from .real_codec import RealCodec

Array = NDArray[Any]


class Encoder(Protocol):
    """One update on its way in."""

    clipped: int
    """Values so far that were beyond their ``max_abs``, or became so since they were checked."""
    seed: int
    """Of the randomness with which values are rounded, below 2**64; 0 where nothing is drawn."""

    def encode(self, block: int, blocks: int) -> Array:
        """Return `blocks` whole plaintext blocks from the one of index `block`."""


class Decoder(Protocol):
    """One aggregate on its way out."""

    weight_sum: float
    """Sum of the weights as fractions of ``max_weight``; known once block 0, which comes first, is decoded."""

    def decode(self, block: int, plain: Array) -> None:
        """Write the mean of whole plaintext blocks from the one of index `block` to the targets.

        Raises
        ------
        DecryptionError
            If the block cannot be a sum of what honest sites encoded.
        """


class Codec(Protocol):
    """What `RealCodec` and `IntegerCodec` have in common. Construction proves that sums fit."""

    block_values: int
    """Values a block."""
    weight_values: int
    """Values before those of the tensors, which hold the weight."""

    def check_moduli(self, primes: tuple[int, ...], plain_modulus: int) -> None:
        """Raise `ConfigError` if what was proved from the moduli's bits does not hold for the moduli themselves."""

    def check_fraction(self, fraction: float) -> None:
        """Raise `RangeError` if a weight, as a fraction of ``max_weight``, is too small to be encoded."""

    def encoder(
        self,
        vectors: Sequence[Array],
        bounds: Sequence[float],
        fraction: float,
        residuals: Sequence[NDArray[np.float32]] | None = None,
    ) -> Encoder:
        """Begin an update of `vectors`, each with its ``max_abs``, and the weight `fraction`."""

    def decoder(self, targets: Sequence[Array], bounds: Sequence[float], sites: int) -> Decoder:
        """Begin the mean of `sites` updates into `targets`, each with its ``max_abs``."""

    def mean_error(self, sites: int, weight_sum: float, bound: float | None = None) -> float:
        """Return a bound on the absolute error of any value of the mean.

        Parameters
        ----------
        sites : int
            Number of updates in the sum.
        weight_sum : float
            Sum of ``weight / max_weight``, in (0, sites].
        bound : float, optional
            ``max_abs`` of the tensor; without it the largest one.
        """


def codec_for(params: Params, aggregation: Aggregation) -> Codec:
    """Return the codec of params.

    Raises
    ------
    ConfigError
        If sums of ``max_clients`` updates would not fit.
    """
    if isinstance(params, CKKSParams):
        return RealCodec(params, aggregation)
    if isinstance(params, QuantisedParams):
        return IntegerCodec(params, aggregation)
    raise ConfigError(f"no codec for {show(params)}")
