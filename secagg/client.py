"""The client: what a site does. It encrypts its own update and decrypts aggregates."""

from __future__ import annotations

import copy
import math
import os
import secrets
import threading
from collections.abc import Mapping
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .agreement import check_header, check_key
from .backends.base import Backend
from .backends.registry import load_backend
from .codec import FixedPointCodec, RealCodec
from .config import Config
from .errors import DecryptionError, LayoutError, QuorumError, RangeError, show
from .files import replace_file
from .flat import FlatVector
from .header import NONCE_NBYTES, Contribution, Header, check_round, check_site
from .key import ClientKey, check_role
from .layout import Layout
from .ring import Ring
from .tensors import FLOAT_DTYPES, from_vector, to_vector
from .update import Update, UpdateWriter


class Client:
    """One site of a federation. Threads may share it.

    Parameters
    ----------
    config : Config
        The federation's configuration.
    key : ClientKey
        The key that all sites share.
    name : str
        Name of the site: 1 to 64 letters, digits, dots, hyphens or underscores.

    Raises
    ------
    ConfigError
        If the name is invalid, or sums of ``max_clients`` updates would not fit the params.
    BackendUnavailableError
        If the HE library of ``he.lib`` is not installed.
    KeyFileError
        If a server key is given.
    MismatchError
        If the key was made for other params.
    """

    def __init__(self, config: Config, key: ClientKey, name: str) -> None:
        check_role(key, ClientKey)
        check_key(config, key.server)
        self._config = config
        self._key = key.server
        self._name = check_site(name)
        backend = load_backend(config.lib)(config.params, key)
        self._lock = threading.Lock()  # a backend's buffers serve one block at a time
        self._real = RealCodec(config.params, config.aggregation)
        self._codecs: dict[str, _Ciphertexts | FixedPointCodec] = {
            "encrypted": _Ciphertexts(self._real, backend, key.server.ring),
        }
        if config.encrypt.leaves_clear:
            self._codecs["clear"] = FixedPointCodec(config.aggregation)

    @property
    def name(self) -> str:
        """Name of the site."""
        return self._name

    def layout(self, state: Mapping[str, Any]) -> Layout:
        """Return how a state dict would be sent: what is encrypted, what is clear, what stays here.

        Raises
        ------
        LayoutError, ConfigError
            As `encrypt` would, only before hours of training.
        """
        layout = Layout.of(state, self._config.encrypt)
        self._config.aggregation.check_patterns(layout.names)
        for name in layout.names:
            self._config.aggregation.bound(name)
        return layout

    def check_weight(self, weight: float) -> float:
        """Return a weight as a fraction of ``max_weight``, in (0, 1].

        Raises
        ------
        RangeError
            As `encrypt` would, only before hours of training.
        """
        largest = self._config.aggregation.max_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.integer, np.floating)):
            raise RangeError(f"weight is {show(weight)}; give a number above 0")
        number = weight if isinstance(weight, int) else float(weight)
        if not 0 < number < math.inf:
            raise RangeError(f"weight is {show(number)}; it must be above 0 and finite")
        if weight > largest:
            raise RangeError(
                f"weight {show(weight)} is over aggregation.max_weight {largest:g}: set max_weight to the largest "
                "weight of any site (its number of examples, say) in the configuration that all share"
            )
        fraction = float(weight) / largest
        if fraction == 0:
            raise RangeError(f"weight {weight} is nothing beside aggregation.max_weight {largest:g}; lower max_weight")
        return fraction

    def encrypt(self, state: Mapping[str, Any], weight: float = 1.0, round: int = 0) -> Update:
        """Encrypt a state dict, or a difference of two, as this site's update of a round.

        Parameters
        ----------
        state : mapping of str to torch.Tensor or numpy.ndarray
            Float tensors are sent; integer and bool tensors stay here.
        weight : float
            Weight of this site in the mean, above 0 and at most ``max_weight``.
        round : int
            Round of the federation, from 0.

        Returns
        -------
        Update
            In memory. Encrypting again, for the same round too, draws a new nonce and new ciphertexts.

        Raises
        ------
        RangeError
            If a value is NaN or beyond its ``max_abs``, or the weight is not in (0, ``max_weight``]. Nothing is
            encrypted then.
        LayoutError
            If the state holds what cannot be aggregated.
        ConfigError
            If a pattern of the configuration matches no tensor.
        """
        stream = BytesIO()
        self._write(stream, state, weight, round)
        return Update.from_bytes(stream.getvalue())

    def encrypt_to(
        self, path: str | os.PathLike[str], state: Mapping[str, Any], weight: float = 1.0, round: int = 0
    ) -> None:
        """Encrypt into a file, a frame at a time; the file appears whole or not at all. See `encrypt`."""
        with replace_file(path) as file:
            self._write(file, state, weight, round)

    def decrypt(self, aggregate: Update, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Decrypt the weighted mean of an aggregate.

        Parameters
        ----------
        aggregate : Update
            Of kind ``"aggregate"``, from any round; no state is kept between calls.
        like : mapping of str to torch.Tensor or numpy.ndarray, optional
            The result has its names, order, shapes, dtypes and devices, is of its type if that is a dict, holds torch
            tensors (plain ones, also for parameters) or NumPy arrays as it does, and its own integer and bool tensors.
            Without it, the result holds NumPy arrays of the layout's dtypes (bfloat16 as float32).

        Returns
        -------
        dict
            Of the type of `like` if that is a dict.

        Raises
        ------
        MismatchError, KeyMismatchError, LayoutError, CapacityError
            If the aggregate was made under another configuration, key or model.
        QuorumError
            If it has fewer than ``min_clients`` contributions.
        FormatError, DigestError
            If it is damaged.
        DecryptionError
            If the decrypted sum is not plausible.
        """
        header = aggregate.header
        check_header(header, "aggregate", self._config, self._key)
        fewest = self._config.aggregation.min_clients
        if len(header.contributions) < fewest:
            raise QuorumError(f"the aggregate has {len(header.contributions)} contributions, min_clients is {fewest}")
        if like is not None:
            fault = self.layout(like).difference(header.layout)
            if fault:
                raise LayoutError(f"the aggregate is of another model than `like`: {fault}")
        vectors = self._decrypt_vectors(aggregate)
        result: dict[str, Any] = copy.copy(like) if isinstance(like, dict) else {}
        for spec in header.layout.tensors:
            pattern = None if like is None else like[spec.name]
            if spec.role != "local":
                result[spec.name] = from_vector(vectors[spec.name], spec.dtype, spec.shape, pattern)
            elif like is not None:
                result[spec.name] = pattern
        return result

    def _write(self, stream: BinaryIO, state: Mapping[str, Any], weight: float, round: int) -> None:
        fraction = self.check_weight(weight)
        check_round(round)
        layout = self.layout(state)
        sources = {role: self._source(layout, role, state) for role in self._codecs}
        header = Header(
            kind="update",
            round=round,
            key=self._key.fingerprint,
            params=self._config.params,
            aggregation=self._config.aggregation,
            layout=layout,
            contributions=(Contribution(self._name, secrets.token_bytes(NONCE_NBYTES)),),
        )
        writer = UpdateWriter(stream, header)
        for frame in header.frames:
            codec, source = self._codecs[frame.section], sources[frame.section]
            values = np.empty(codec.block_size)
            payload = np.empty(frame.nbytes, dtype=np.uint8)
            for block, packed in enumerate(np.split(payload, frame.blocks)):
                if source.read((frame.first_block + block) * codec.block_size, values, fraction) >= 0:
                    raise RangeError(
                        "a tensor changed to a value out of range while it was encrypted; nothing was sent"
                    )
                with self._lock:
                    codec.ring.pack(codec.encode(values), packed)
            writer.write(frame, memoryview(payload))  # type: ignore[arg-type]  # an ndarray is a buffer

    def _source(self, layout: Layout, role: str, state: Mapping[str, Any]) -> FlatVector:
        """Return the tensors of a role as one vector, every value checked.

        The encrypted vector begins with a constant 1, which the weight turns into the weight itself.
        """
        specs = layout.role(role)
        vectors = [to_vector(state[spec.name]) for spec in specs]
        bounds = [self._config.aggregation.bound(spec.name) for spec in specs]
        fault = FlatVector(vectors, bounds).first_out_of_range()
        if fault:
            spec, index = specs[fault[0]], fault[1]
            value = float(from_vector(vectors[fault[0]][index : index + 1], spec.dtype, (1,))[0])
            where = ", ".join(map(str, np.unravel_index(index, spec.shape)))
            raise RangeError(
                f"tensor {spec.name!r} has {value:g} at [{where}], beyond aggregation.max_abs {bounds[fault[0]]:g}: "
                "raise max_abs, or find out why the value is so large; nothing was encrypted"
            )
        if role == "encrypted":
            return FlatVector([np.ones(1), *vectors], [1.0, *bounds])
        return FlatVector(vectors, bounds)

    def _decrypt_vectors(self, aggregate: Update) -> dict[str, NDArray[Any]]:
        """Return the mean of every float tensor of an aggregate, which has been held against the configuration."""
        header = aggregate.header
        specs = {role: header.layout.role(role) for role in self._codecs}
        vectors = {
            spec.name: np.empty(spec.size, FLOAT_DTYPES[spec.dtype]) for role in self._codecs for spec in specs[role]
        }
        targets = {role: [vectors[spec.name] for spec in specs[role]] for role in self._codecs}
        targets["encrypted"].insert(0, np.empty(1))  # the weight
        means = {role: FlatVector(targets[role]) for role in self._codecs}
        weight_sum = math.nan
        for frame, payload in aggregate.frames():
            codec = self._codecs[frame.section]
            words = np.empty(codec.ring.block_size, dtype=np.uint64)
            for block, packed in enumerate(np.split(np.frombuffer(payload, np.uint8), frame.blocks)):
                codec.ring.unpack(packed, words)
                with self._lock:
                    values = codec.decode(words)
                if frame.index == 0 and block == 0:  # the encrypted frames come first, and the weight first in them
                    weight_sum = self._check_weight_sum(float(values[0]), len(header.contributions))
                start = (frame.first_block + block) * codec.block_size
                means[frame.section].write(start, values, 1 / weight_sum)
        self._check_means(header, vectors, weight_sum)
        return vectors

    def _check_weight_sum(self, weight_sum: float, sites: int) -> float:
        """Raise `DecryptionError` unless so many sites can give this sum of weights, and noise is small beside it."""
        if not weight_sum <= sites + self._real.sum_error(sites) or not self._real.is_precise(sites, weight_sum):
            raise DecryptionError
        return weight_sum

    def _check_means(self, header: Header, vectors: dict[str, NDArray[Any]], weight_sum: float) -> None:
        """Raise `DecryptionError` if a mean is beyond what honest sites can have sent."""
        error = self._real.mean_error(len(header.contributions), weight_sum)
        for name, vector in vectors.items():
            largest = self._config.aggregation.bound(name) * (1 + 2.0**-7) + error  # 2**-7: rounding to bfloat16
            if FlatVector([vector], [largest]).first_out_of_range():
                raise DecryptionError


class _Ciphertexts:
    """Real codec and backend as one codec: values of a block to words, and back."""

    def __init__(self, codec: RealCodec, backend: Backend, ring: Ring) -> None:
        self._codec, self._backend = codec, backend
        self.ring = ring
        self.block_size = codec.block_size

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.uint64]:
        return self._backend.encrypt(self._codec.encode(values))

    def decode(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        return self._codec.decode(self._backend.decrypt(words))
