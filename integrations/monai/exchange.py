"""How a handout, and what a site returns for it, travel as the weights of MONAI's ``ExchangeObject``: arrays by name.

Nothing of MONAI's is needed for it, so that the server's program needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.errors import FormatError, show
from secagg.protocol import Handout

#: Names of what travels; the tensors of the first global model keep their own.
UPDATE = FACTS = "secagg"
_BLOB = "secagg."
STORED = f"{_BLOB}model"


def to_weights(handout: Handout, first: Mapping[str, Any] | None = None) -> dict[str, NDArray[Any]]:
    """Return a handout as weights of an ``ExchangeObject``, for the server's program.

    Parameters
    ----------
    handout : Handout
        As `secagg.server.Relay.handout` returns it.
    first : mapping of str to torch.Tensor or numpy.ndarray, optional
        The first global model, which goes with it in the clear if the site may need it (``handout.first``).

    Returns
    -------
    dict of str to ndarray
        ``"secagg"`` and names that begin with ``"secagg."`` are of uint8; the others are the tensors of `first`.
    """
    facts = {FACTS: to_array(json.dumps(handout.facts()).encode())}
    blobs = {f"{_BLOB}{name}": to_array(blob) for name, blob in handout.blobs().items()}
    model = {name: np.asarray(value) for name, value in (first or {}).items()} if handout.first else {}
    return {**model, **facts, **blobs}


def from_weights(weights: Any) -> tuple[Handout, dict[str, NDArray[Any]]]:
    """Return what `to_weights` was given; `FormatError` if it is something else, such as a model in the clear."""
    if not isinstance(weights, Mapping) or FACTS not in weights:
        raise FormatError(
            "the server hands out no round of secagg's, so nothing is trained and nothing sent: its program must make "
            "weights by to_weights(relay.handout(…))"
        )
    try:
        facts = json.loads(_to_bytes(FACTS, weights[FACTS]))
    except ValueError as error:
        raise FormatError(f"facts of a handout are no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise FormatError(f"facts of a handout are {show(facts)}")
    blobs = {
        name.removeprefix(_BLOB): _to_bytes(name, value) for name, value in weights.items() if name.startswith(_BLOB)
    }
    first = {name: np.asarray(value) for name, value in weights.items() if name != FACTS and not name.startswith(_BLOB)}
    return Handout.from_parts(facts, blobs), first


def to_array(data: bytes) -> NDArray[np.uint8]:
    """Return bytes as they travel."""
    return np.frombuffer(data, np.uint8)


def _to_bytes(name: str, value: Any) -> bytes:
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 1:
        raise FormatError(f"{show(name)} of a handout is {array.dtype}{list(array.shape)}, where bytes are due")
    return array.tobytes()
