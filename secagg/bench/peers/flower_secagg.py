"""Flower's SecAgg+: what a node does by its own functions, and the server's arithmetic in the order of its workflow.

Its four stages are the phases. No node drops out, and all are neighbours, as three are by Flower's rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.common.serde import config_record_from_proto, config_record_to_proto
from flwr.proto.recorddict_pb2 import ConfigRecord as ConfigRecordProto
from numpy.typing import NDArray

from .job import Job, joined, split

#: As `SecAggPlusWorkflow` has them, but for the largest weight, which costs precision.
_CLIPPING_RANGE, _QUANTIZATION_RANGE, _MODULUS_RANGE = 8.0, 2**22, 2**32

_SETUP, _SHARE_KEYS, _COLLECT, _UNMASK = range(4)


class Site:
    """See `roles.Site`: the nodes, whose identifiers are their numbers."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._nodes = [SecAggPlusState(nid=node) for node in range(job.sites)]

    def send(self, phase: int, site: int, answer: bytes | None) -> bytes:
        """See `roles.Site`."""
        state, count = self._nodes[site], self._job.sites
        if phase == _SETUP:
            numbers: dict[str, Any] = {
                Key.SAMPLE_NUMBER: count,
                Key.SHARE_NUMBER: count,
                Key.THRESHOLD: max(2, count - 1),
                Key.CLIPPING_RANGE: _CLIPPING_RANGE,
                Key.TARGET_RANGE: _QUANTIZATION_RANGE,
                Key.MOD_RANGE: _MODULUS_RANGE,
                Key.MAX_WEIGHT: float(max(self._job.weights)),
            }
            return _pack(_setup(state, ConfigRecord(numbers)))
        assert answer is not None
        configs = _unpack(split(answer)[0 if phase in (_SHARE_KEYS, _UNMASK) else site])
        if phase == _SHARE_KEYS:
            return _pack(_share_keys(state, configs))
        if phase == _UNMASK:
            return _pack(_unmask(state, configs))
        parameters = ndarrays_to_parameters(list(self._job.states[site].values()))
        return _pack(_collect_masked_vectors(state, configs, self._job.weights[site], parameters))


class Server:
    """See `roles.Server`."""

    def __init__(self, job: Job) -> None:
        self._nodes = range(job.sites)
        self._records: list[ConfigRecord] = []
        self._total: list[NDArray[Any]] = []

    def add(self, phase: int, message: Path) -> None:
        """See `roles.Server`; in the order of the nodes."""
        record = _unpack(message.read_bytes())
        if phase != _COLLECT:
            self._records.append(record)
            return
        masked = [bytes_to_ndarray(value) for value in _list(record, Key.MASKED_PARAMETERS)]
        self._total = parameters_addition(self._total, masked) if self._total else masked

    def finish(self, phase: int, answer: Path) -> None:
        """See `roles.Server`."""
        answer.write_bytes(joined(self._answers(phase)))

    def _answers(self, phase: int) -> list[bytes]:
        """Return the answer to each node, or one for all."""
        records, self._records = self._records, []
        if phase == _SETUP:
            keys = {
                str(node): [record[Key.PUBLIC_KEY_1], record[Key.PUBLIC_KEY_2]] for node, record in enumerate(records)
            }
            return [_pack(keys)]
        if phase == _SHARE_KEYS:
            return [_pack(self._shares_for(node, records)) for node in self._nodes]
        if phase == _COLLECT:
            self._total = parameters_mod(self._total, _MODULUS_RANGE)
            return [_pack({Key.ACTIVE_NODE_ID_LIST: list(self._nodes), Key.DEAD_NODE_ID_LIST: []})]
        return [ndarray_to_bytes(value) for value in self._unmasked(records)]

    def _shares_for(self, node: int, records: list[ConfigRecord]) -> dict[str, Any]:
        sources, ciphertexts = [], []
        for source, record in enumerate(records):
            pairs = zip(_list(record, Key.DESTINATION_LIST), _list(record, Key.CIPHERTEXT_LIST), strict=True)
            for ciphertext in (ciphertext for target, ciphertext in pairs if target == node):
                sources.append(source)
                ciphertexts.append(ciphertext)
        return {Key.CIPHERTEXT_LIST: ciphertexts, Key.SOURCE_LIST: sources}

    def _unmasked(self, records: list[ConfigRecord]) -> list[NDArray[Any]]:
        """Return the mean, as the workflow's last stage makes it."""
        shares: dict[int, list[bytes]] = {node: [] for node in self._nodes}
        for record in records:
            for owner, share in zip(_list(record, Key.NODE_ID_LIST), _list(record, Key.SHARE_LIST), strict=True):
                shares[owner].append(share)
        total = self._total
        for found in shares.values():
            mask = pseudo_rand_gen(combine_shares(found), _MODULUS_RANGE, get_parameters_shape(total))
            total = parameters_subtraction(total, mask)
        ratio, values = factor_extract(parameters_mod(total, _MODULUS_RANGE))
        mean: list[NDArray[Any]] = list(dequantize(values, _CLIPPING_RANGE, _QUANTIZATION_RANGE))
        for value in mean:
            value += -(len(self._nodes) - 1) * _CLIPPING_RANGE
            value *= _QUANTIZATION_RANGE / ratio
        return mean


class Reader:
    """See `roles.Reader`: the mean comes in the clear."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def read(self, answer: bytes) -> Mapping[str, NDArray[np.floating]]:
        """See `roles.Reader`."""
        return dict(zip(self._job.shapes, map(bytes_to_ndarray, split(answer)), strict=True))


def _pack(values: dict[str, Any]) -> bytes:
    return config_record_to_proto(ConfigRecord(values, False)).SerializeToString()


def _unpack(message: bytes) -> ConfigRecord:
    return config_record_from_proto(ConfigRecordProto.FromString(message))


def _list(record: ConfigRecord, key: str) -> list[Any]:
    value = record[key]
    assert isinstance(value, list)
    return value
