"""Codecs: a model's tensors as plaintext blocks and back, with the proof that sums fit.

The encrypted section of an update begins with the weight; all values behind it are multiplied by it before they are
encoded, so that sums divide to the weighted mean.
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
from .scales import Scales

Array = NDArray[Any]


class Encoder(Protocol):
    """One update on its way in."""

    @property
    def clipped(self) -> int:
        """Values so far that were beyond their bound, or became so since they were checked."""

    def encode(self, block: int, blocks: int) -> Array:
        """Return `blocks` whole plaintext blocks from the one of index `block`."""


class Decoder(Protocol):
    """One aggregate on its way out."""

    fault: str | None
    """Why it cannot be a sum of what honest sites encode; None as long as nothing speaks against it."""
    weight_sum: float
    """Sum of the weights; known once the first blocks are decoded, which come first."""
    bounds: list[float]
    """Bounds of the weighted values of all tensors that are sent, known with the weight."""
    scales: Scales | None
    """Those that the updates were made under, where they are measured."""

    def decode(self, block: int, plain: Array) -> None:
        """Write the mean of whole plaintext blocks from the one of index `block` to the targets, in order."""

    def finish(self) -> None:
        """Write what could not be written before all blocks were decoded."""

    def following(self) -> Scales | None:
        """Return the scales of the next round, where they follow from this one."""


class Codec(Protocol):
    """What `RealCodec` and `IntegerCodec` have in common. Construction proves that sums fit."""

    block_values: int
    """Values a block."""

    def check_moduli(self, primes: tuple[int, ...], plain_modulus: int) -> None:
        """Raise `ConfigError` if what was proved from the moduli's bits does not hold for the moduli themselves."""

    def check_weight(self, weight: float) -> None:
        """Raise `RangeError` if a weight is too small to be encoded."""

    def draw(self) -> int | None:
        """Return the seed of the rounding of an update, below 2**64; None where nothing is drawn."""

    def blocks(self, shapes: Sequence[tuple[int, ...]], tensors: int) -> int:
        """Return the number of blocks for encrypted tensors of these shapes, of so many that are sent."""

    def encoder(
        self,
        vectors: Sequence[Array],
        shapes: Sequence[tuple[int, ...]],
        bounds: Sequence[float],
        weight: float,
        scales: Scales | None = None,
        counts: NDArray[np.float64] | None = None,
        residuals: Sequence[NDArray[np.float32]] | None = None,
        seed: int | None = None,
    ) -> Encoder:
        """Begin an update of `vectors`, each with its shape and bound.

        Bounds are ``max_abs``, or of weighted values where scales are measured. `scales` are then those of all tensors
        that are sent, and `counts` what this site has counted in bins, where updates say so. `seed` is what `draw` has
        returned.
        """

    def decoder(
        self,
        targets: Sequence[Array],
        shapes: Sequence[tuple[int, ...]],
        places: Sequence[int],
        bounds: Sequence[float],
        sites: int,
    ) -> Decoder:
        """Begin the mean of `sites` updates into `targets`, each with its shape and its place among all that are sent.

        `bounds` are ``max_abs`` of all that are sent.
        """

    def mean_error(self, sites: int, weight_sum: float, bound: float | None = None) -> float:
        """Return a bound on the absolute error of any value of the mean.

        Parameters
        ----------
        sites : int
            Number of updates in the sum.
        weight_sum : float
            Sum of ``weight / max_weight``, in (0, sites]; of the weights themselves where scales are measured.
        bound : float, optional
            ``max_abs`` of the tensor; without it the largest one. Of weighted values where scales are measured.
        """


def codec_for(params: Params, aggregation: Aggregation) -> Codec:
    """Return the codec of params.

    Raises
    ------
    ConfigError
        If sums of ``max_clients`` updates would not fit, or as of `check_precision`.
    """
    check_precision(params, aggregation)
    if isinstance(params, CKKSParams):
        return RealCodec(params, aggregation)
    if isinstance(params, QuantisedParams):
        return IntegerCodec(params, aggregation)
    raise ConfigError(f"no codec for {show(params)}")


def check_precision(params: Params, aggregation: Aggregation) -> None:
    """Raise `ConfigError` unless params go with where scales come from."""
    if not aggregation.calibrated:
        return
    if not isinstance(params, QuantisedParams):
        raise ConfigError(
            f"aggregation.precision is {aggregation.precision!r}: {params.scheme} has no steps to be measured; leave "
            "it out, or use an exact scheme"
        )
    if params.overflow != "clip":
        raise ConfigError(
            f"overflow is {params.overflow!r}, and with precision {aggregation.precision!r} what is beyond the scales "
            "of a round is clipped, and due in the next: use 'clip', leave it out of he.config, or give "
            "aggregation.max_abs"
        )
