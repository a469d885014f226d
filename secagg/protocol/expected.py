"""What a download must be like before any of it is written: no server fills a site's disk with something else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import LayoutError, MismatchError
from ..scheme.aggregation import Aggregation
from ..scheme.params import Params
from ..wire.header import Header
from ..wire.layout import Layout

#: Largest download while model or params are not known.
MAX_UNKNOWN_NBYTES = 4 << 30


@dataclass(frozen=True)
class Expected:
    """A model and the configuration of a federation, from which the size of an aggregate or a stored model follows.

    Parameters
    ----------
    layout : Layout or None
        The model; None while it is not known.
    params : Params or None
        Of the configuration; None while it is not known.
    aggregation : Aggregation or None
        As `params`. Its `min_clients` is each party's own, and is not compared.
    """

    layout: Layout | None
    params: Params | None = None
    aggregation: Aggregation | None = None

    @classmethod
    def like(cls, header: Header) -> Expected:
        """Return what is to be expected after an update of one's own."""
        return cls(header.layout, header.params, header.aggregation)

    def check(self, header: Header) -> None:
        """Refuse what is of another size than expected, or large while nothing is.

        Raises
        ------
        LayoutError, MismatchError
            As said.
        """
        what = f"the {header.kind} of round {header.round}"
        fault = None if self.layout is None else self.layout.difference(header.layout)
        if fault:
            raise LayoutError(f"{what} that the server sends has another layout: {fault}")
        if self.params is not None and self.params != header.params:
            raise MismatchError(f"{what} that the server sends has other params than this federation: {header.params}")
        if self.aggregation is not None and header.aggregation != replace(self.aggregation, min_clients=2):
            raise MismatchError(
                f"{what} that the server sends has another aggregation than this federation: {header.aggregation}"
            )
        if (self.layout is None or self.params is None) and header.nbytes > MAX_UNKNOWN_NBYTES:
            raise MismatchError(
                f"{what} that the server sends has {header.nbytes} bytes; a session that does not know its model takes "
                f"{MAX_UNKNOWN_NBYTES}: give it layout and project"
            )
