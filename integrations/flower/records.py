"""What travels in Flower's records: a handout to a node, and its update back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from secagg.errors import FormatError, LayoutError, StateError, show
from secagg.protocol import Handout

log = logging.getLogger("flwr.secagg")  # goes where Flower's own messages go

Record = TypeVar("Record", ArrayRecord, MetricRecord)

STYPE = "secagg"  # Flower averages no array of a type that it does not know
WEIGHT = "num-examples"  # the name is settled here: a server that says another one could have this told in the clear
FACTS, BLOBS, FIRST = "secagg", "secagg-blobs", "secagg-first"


def to_array(data: bytes) -> Array:
    """Return bytes of secagg's as they travel."""
    return Array("uint8", (len(data),), STYPE, data)


def to_bytes(array: Array) -> bytes:
    """Return what `to_array` was given; `FormatError` if it is an array of something else."""
    if array.stype != STYPE:
        raise FormatError(f"an array of type {show(array.stype)} has come in the clear, where encrypted bytes are due")
    return array.data


def tensors_of(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return the tensors of a model that is in the clear."""
    return {name: array.numpy() for name, array in record.items()}


def only(kind: type[Record], records: Mapping[str, Any]) -> tuple[str, Record]:
    """Return the one record of a kind in a reply, and its key; `LayoutError` if there is another number of them."""
    # Not by RecordDict.array_records, which keeps arrays in memory until Python collects cycles.
    found = [(key, record) for key, record in records.items() if isinstance(record, kind)]
    if len(found) != 1:
        raise LayoutError(f"a reply has {len(found)} of {kind.__name__}, where exactly one is due")
    return found[0]


def pack(handout: Handout, arrays_key: str) -> tuple[ConfigRecord, ArrayRecord]:
    """Return a handout: what is small, with the key of the app's model; and what is the same for nodes equally far."""
    blobs = {name: to_array(blob) for name, blob in handout.blobs().items()}
    return ConfigRecord({"arrays-key": arrays_key, **handout.facts()}), ArrayRecord(blobs)


def unpack(records: RecordDict) -> tuple[Handout, str, dict[str, NDArray[Any]] | None]:
    """Take out of a message what `pack` has made: the handout, the key, and the first model if it is there."""
    facts, blobs, first = (records.pop(key, None) for key in (FACTS, BLOBS, FIRST))
    if not isinstance(facts, ConfigRecord) or not isinstance(blobs, ArrayRecord):
        raise StateError(
            "the message has nothing of secagg's, so this node sends nothing: let the ServerApp's strategy be "
            "SecAggStrategy, and no mod outside secagg_mod change messages"
        )
    plain = dict(facts)
    arrays_key = str(plain.pop("arrays-key", ""))
    handout = Handout.from_parts(plain, {name: to_bytes(array) for name, array in blobs.items()})
    return handout, arrays_key, tensors_of(first) if isinstance(first, ArrayRecord) else None
