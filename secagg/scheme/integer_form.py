"""Where the numbers of an exact scheme's encrypted section lie, and which ones: what encoder and decoder share.

The section is

    digits of the weight | 1 | digits of the bins of all tensors | counts of bins | small tensors | other tensors

of which the third is there where scales are measured, and the fourth where they follow from the round before; of the
small tensors first the lowest digits of all values, then the next ones. It tells under which scales it was made:
whoever decrypts needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ConfigError
from .aggregation import Aggregation
from .capacity import fitting_lanes
from .digits import Digits, lanes_a_value, small_tensors
from .params import QuantisedParams
from .scales import BINS, UNKNOWN

#: The weight is a whole number of at least so many bits: beside `max_abs`, and where scales are measured, whose
#: precision must not depend on how generous ``max_weight`` is.
WEIGHT_BITS, FREE_WEIGHT_BITS = 40, 80

#: Bits of a bin, or of `UNKNOWN`.
_BIN_BITS = UNKNOWN.bit_length()


class IntegerForm:
    """The numbers of one configuration.

    Parameters
    ----------
    params : BGVParams or FLASHEParams
        ``value_bits`` and the moduli.
    aggregation : Aggregation
        ``max_clients`` is what the capacity is planned for.

    Raises
    ------
    ConfigError
        If the sum could wrap or drown in noise.
    """

    def __init__(self, params: QuantisedParams, aggregation: Aggregation) -> None:
        for bound in aggregation.bounds:
            if not 1e-290 <= bound <= 1e290:  # else steps and their inverses leave the range of float64
                raise ConfigError(f"aggregation.max_abs {bound:g} cannot be quantised: use 1e-290 to 1e290")
        self.calibrated = aggregation.calibrated
        self.counts_bins = aggregation.precision == "previous"
        self.largest_weight = aggregation.largest_weight
        #: What turns a bound of values into one of weighted values.
        self.unit = 1.0 if self.calibrated else self.largest_weight
        if not all(1e-290 <= bound * self.unit <= 1e290 for bound in aggregation.bounds):
            raise ConfigError(
                f"aggregation.max_weight {self.unit:g} times max_abs cannot be quantised: let it be 1e-290 to 1e290"
            )
        self.lanes = fitting_lanes(params, params.limit, aggregation.max_clients)
        self.block_values = self.lanes.block_values
        self.lanes_a_value = lanes_a_value(params.limit)
        self.weight = Digits(FREE_WEIGHT_BITS if self.calibrated else WEIGHT_BITS, params.limit)
        self.bin = Digits(_BIN_BITS, params.limit)

    def whole_weight(self, weight: float) -> int:
        """Return a weight as the whole number that is sent."""
        return min(round(weight / self.largest_weight * self.weight.largest), self.weight.largest)

    def blocks(self, shapes: Sequence[tuple[int, ...]], tensors: int) -> int:
        """Return the number of blocks of a section; see `secagg.scheme.codec.Codec`."""
        values = self.head_values(tensors) + (tensors * BINS if self.counts_bins else 0)
        for shape, small in zip(shapes, small_tensors(shapes), strict=True):
            values += math.prod(shape) * (self.lanes_a_value if small else 1)
        return -(-values // self.block_values)

    def head_values(self, tensors: int) -> int:
        """Return how many values come before counts and tensors."""
        return self.weight.count + 1 + (tensors * self.bin.count if self.calibrated else 0)

    def limit_of(self, small: bool) -> int:
        """Return the largest magnitude of a quantised value."""
        return ((2 * self.lanes.limit + 1) ** self.lanes_a_value - 1) // 2 if small else self.lanes.limit
