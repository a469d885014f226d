"""A site's global model as bytes, from which a fresh process goes on; see `secagg.wire.arrays`.

The header has site, round, base, the layout of what is sent or local, all names in order, dtypes and shapes of what
stays by the configuration, which tensors are torch's or floored, the nonces of the site's updates of the round, scales
that follow from the round before, a byte for each tensor that is sent, whether what was carried is lost, and the
metrics with their latest means.
The arrays are the tensors of the layout, those that stay (bfloat16 as its bits), and the client's carry, which is bytes
of a format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..scheme.metric_names import is_metric
from ..wire.arrays import ArrayFormat
from ..wire.container import DIGEST_NBYTES, read_hex
from ..wire.header import NONCE_NBYTES, check_round, check_site
from ..wire.layout import Layout
from ..wire.metrics import metric_tensors
from .own_tensors import pack_own, unpack_own

_FORMAT = ArrayFormat(
    "global model",
    b"secagg global model v1",
    5,
    frozenset(
        ["site", "round", "base", "layout", "names", "stays", "torch", "floored", "own", "scales", "lost", "metrics"]
    ),
)

#: Of what is held: 16-bit floats are held as float32, and bfloat16 is none of NumPy's.
_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Snapshot:
    """What `to_bytes` writes and `from_bytes` reads.

    Parameters
    ----------
    site : str
        Name of the site.
    round : int
        The round that begins from the model.
    base : bytes
        What training of that round begins from, 32 bytes.
    layout : Layout
        What is sent or local.
    names : tuple of str
        All names of the model, in order.
    arrays : mapping of str to ndarray
        The tensors of the layout, by their first names; floats are float32 or float64.
    stays : mapping of str to torch.Tensor or numpy.ndarray
        What stays at the site by the configuration; each one can be stored (`own_tensors.storable`).
    torch : frozenset of str
        Names of the tensors that are torch's to their user.
    floored : frozenset of str
        First names of the tensors that are floored at 0.
    own : tuple of bytes
        Nonces of this site's updates of the round.
    scales : bytes
        Those of the round, where they follow from the round before; else empty.
    carry : bytes
        What `secagg.Client.carry` returned.
    lost : bool
        Whether there may have been a carry that the site has not any more, as after a restart.
    metrics : mapping of str to pair of (float or None)
        Latest and confirmed means of the metrics, None where there is none.
    """

    site: str
    round: int
    base: bytes
    layout: Layout
    names: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    stays: Mapping[str, Any] = field(repr=False)
    torch: frozenset[str]
    floored: frozenset[str]
    own: tuple[bytes, ...]
    scales: bytes
    carry: bytes = field(repr=False)
    lost: bool
    metrics: Mapping[str, Sequence[float | None]]

    def means(self, index: int) -> dict[str, float]:
        """Return the latest (0) or confirmed (1) means of the metrics."""
        means = {name: pair[index] for name, pair in self.metrics.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    def to_bytes(self) -> bytes:
        """Return the whole of it."""
        stays, own = pack_own(self.stays)
        header = {
            "site": self.site,
            "round": self.round,
            "base": self.base.hex(),
            "layout": self.layout.to_json(),
            "names": self.names,
            "stays": stays,
            "torch": sorted(self.torch),
            "floored": sorted(self.floored),
            "own": [nonce.hex() for nonce in self.own],
            "scales": self.scales.hex(),
            "lost": self.lost,
            "metrics": dict(self.metrics),
        }
        tensors = [self.arrays[spec.name] for spec in self.layout.tensors]
        return _FORMAT.pack(header, [*tensors, *own, np.frombuffer(self.carry, np.uint8)])

    @classmethod
    def from_bytes(cls, blob: bytes) -> Snapshot:
        """Read it again.

        Raises
        ------
        FormatError
            If it is something else, or of another version (`DigestError` if it is damaged).
        StateError
            If what stays at the site are tensors of torch's, which this process has not imported.
        """
        return _FORMAT.unpack(blob, cls._build)

    @classmethod
    def _build(cls, header: dict[str, Any], arrays: list[NDArray[Any]]) -> Snapshot:
        layout = Layout.from_json(header["layout"])
        specs = layout.tensors
        if any(spec.role != "local" and spec.dtype not in _FLOATS for spec in specs):
            raise FormatError(f"the stored global model has floats that are none of {', '.join(_FLOATS)}")
        if len(arrays) <= len(specs):
            raise FormatError("the stored global model has other files than its header says")
        tensors, own, carry = arrays[: len(specs)], arrays[len(specs) : -1], arrays[-1]
        for spec, array in zip(specs, tensors, strict=True):
            if (array.shape, array.dtype) != (spec.shape, np.dtype(spec.dtype)):
                raise FormatError(f"tensor {spec.name!r} of the stored global model is not what its header says")
        if carry.ndim != 1 or carry.dtype != np.uint8:
            raise FormatError("the carry in the stored global model is no bytes")
        stays = unpack_own(header["stays"], own)
        state = {spec.name: array for spec, array in zip(specs, tensors, strict=True)}
        torch, names, floored = frozenset(header["torch"]), tuple(header["names"]), frozenset(header["floored"])
        metrics = header["metrics"]
        if not isinstance(metrics, dict) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(mean is None or type(mean) is float for mean in pair)
            for pair in metrics.values()
        ):
            raise FormatError("the stored global model has metrics that are no numbers")
        if metric_tensors(list(metrics)).keys() != {spec.name for spec in specs if is_metric(spec.name)}:
            raise FormatError("the stored global model has other metrics than its layout")
        known = [name for spec in specs if not is_metric(spec.name) for name in spec.names] + list(stays)
        if len(set(known)) != len(known) or not torch | set(known) <= set(names) or len(set(names)) != len(names):
            raise FormatError("the stored global model has tensors that its list of names has not, or one twice")
        if not floored <= {spec.name for spec in layout.sent}:
            raise FormatError("the stored global model floors tensors that are not sent")
        base = read_hex(header["base"], DIGEST_NBYTES, "the base")
        nonces = tuple(read_hex(nonce, NONCE_NBYTES, "a nonce") for nonce in header["own"])
        scales = read_hex(header["scales"], len(layout.sent), "the scales") if header["scales"] else b""
        round = check_round(header["round"])
        site = check_site(header["site"])
        if type(header["lost"]) is not bool:
            raise FormatError("the stored global model does not say whether its carry is lost")
        sent = nonces, scales, carry.tobytes(), header["lost"], metrics
        return cls(site, round, base, layout, names, state, stays, torch, floored, *sent)


def carry_of(blob: bytes) -> bytes:
    """Return the client's carry in a stored global model, empty if there is none, whatever libraries its tensors need.

    Raises
    ------
    FormatError
        If it is something else, or of another version (`DigestError` if it is damaged).
    """
    return _FORMAT.unpack(blob, lambda header, arrays: arrays[-1].tobytes())
