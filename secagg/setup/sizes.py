"""How many bytes a configuration means for a model: from headers alone, to the byte, without a key."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config
from ..wire.container import DIGEST_NBYTES
from ..wire.header import NONCE_NBYTES, Contribution, Header
from ..wire.layout import Layout


@dataclass(frozen=True)
class Sizes:
    """What a round means for one model and configuration, with calibrations and their sum where there are some.

    Parameters
    ----------
    up_nbytes, down_nbytes : int
        What a site sends, and receives.
    blocks : int
        Encrypted blocks that a site sends.
    sum_nbytes : int
        What the server allocates for the sum of the updates; that of calibrations, gone by then, is not in it.
    """

    up_nbytes: int
    down_nbytes: int
    blocks: int
    sum_nbytes: int


def sizes_of(config: Config, layout: Layout, sites: int) -> Sizes:
    """Return the sizes of a round in which so many sites take part.

    Exact for round 0 of sites that are called ``site-1`` and so on, where nothing names a base or a project: each of
    these two makes a header 62 bytes longer, and each digit of a round or name that is more one byte.

    Parameters
    ----------
    config : Config
        The configuration.
    layout : Layout
        The model; what becomes of its tensors, the configuration says.
    sites : int
        How many updates are in the sum.

    Raises
    ------
    ConfigError
        If a sum of ``max_clients`` does not fit the params, or a pattern of the configuration matches no tensor.
    FormatError
        If the list of tensors and sites does not fit a header.
    """
    layout = layout.under(config)
    sent, sums = ["update"], ["aggregate"]
    if config.aggregation.precision == "auto":
        sent, sums = [*sent, "calibration"], [*sums, "scales"]
    ups = [header(kind, 1, config, layout) for kind in sent]
    return Sizes(
        up_nbytes=sum(each.nbytes for each in ups),
        down_nbytes=sum(header(kind, sites, config, layout).nbytes for kind in sums),
        blocks=sum(each.blocks("encrypted") for each in ups),
        sum_nbytes=ups[0].sum_nbytes,
    )


def header(kind: str, sites: int, config: Config, layout: Layout) -> Header:
    """Return the header of what sites send, or of a sum of it, whose sites are called ``site-1`` and so on."""
    contributions = [Contribution(f"site-{number}", bytes(NONCE_NBYTES)) for number in range(1, sites + 1)]
    scaled = config.aggregation.calibrated and kind in ("update", "aggregate")
    return Header(
        kind=kind,
        round=0,
        epoch=0,
        key="0" * 64,
        params=config.params,
        aggregation=config.aggregation,
        layout=layout,
        contributions=tuple(contributions),
        calibration=bytes(DIGEST_NBYTES) if scaled else None,
    )
