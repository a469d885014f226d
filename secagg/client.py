"""The client: what a site does. It encrypts its own update and decrypts aggregates."""

from __future__ import annotations

import copy
import math
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from .agreement import check_header, check_key
from .backends.registry import load_backend
from .clear_codec import FixedPointCodec
from .codec import Encoder, codec_for
from .config import Config
from .errors import DecryptionError, LayoutError, QuorumError, RangeError, show
from .feedback import Feedback
from .files import replace_file
from .flat import FlatVector
from .header import NONCE_NBYTES, Contribution, Header, check_round, check_site
from .key import ClientKey, check_role
from .layout import Layout
from .params import QuantisedParams
from .ring import CLEAR_RING, Ring
from .tensors import FLOAT_DTYPES, from_vector, to_vector
from .update import Update, UpdateWriter

_Stream = TypeVar("_Stream", bound=BinaryIO)


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
        self._backend = load_backend(config.lib)(config.params, key)
        self._lock = threading.Lock()  # a backend's buffers serve one block at a time
        self._ring = Ring.of_update(config.params, key.server.primes)
        self._codec = codec_for(config.params, config.aggregation)
        self._clear = FixedPointCodec(config.aggregation) if config.encrypt.leaves_clear else None
        params = config.params
        self._clips = isinstance(params, QuantisedParams) and params.overflow == "clip"
        self._feedback = Feedback() if isinstance(params, QuantisedParams) and params.error_feedback else None
        self._clipped = 0
        # What one update drops is due to the next: with error feedback, updates are made one after another.
        self._turn: AbstractContextManager[object] = threading.Lock() if self._feedback else nullcontext()

    @property
    def name(self) -> str:
        """Name of the site."""
        return self._name

    @property
    def clipped(self) -> int:
        """How many values of the last update were beyond ``max_abs`` and were clipped (``overflow: clip``)."""
        return self._clipped

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
        self._codec.check_fraction(fraction)
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
        with self._turn:
            # Zeros that nobody has touched cost nothing; a stream that grows is copied again and again.
            stream = self._write(lambda header: BytesIO(bytes(header.nbytes)), state, weight, round)
        return Update.from_bytes(stream.getvalue())

    def encrypt_to(
        self, path: str | os.PathLike[str], state: Mapping[str, Any], weight: float = 1.0, round: int = 0
    ) -> None:
        """Encrypt into a file, a frame at a time; the file appears whole or not at all. See `encrypt`."""
        with self._turn, replace_file(path) as file:
            self._write(lambda header: file, state, weight, round)

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

    def _write(
        self, open_stream: Callable[[Header], _Stream], state: Mapping[str, Any], weight: float, round: int
    ) -> _Stream:
        fraction = self.check_weight(weight)
        check_round(round)
        layout = self.layout(state)
        vectors, bounds = self._sources(layout, "encrypted", state)
        residuals = (
            self._feedback.begin(layout.fingerprint, round, [vector.size for vector in vectors])
            if self._feedback
            else None
        )
        encoders: dict[str, Encoder] = {"encrypted": self._codec.encoder(vectors, bounds, fraction, residuals)}
        if self._clear:
            encoders["clear"] = self._clear.encoder(*self._sources(layout, "clear", state), fraction)
        header = Header(
            kind="update",
            round=round,
            epoch=self._key.epoch,
            key=self._key.fingerprint,
            params=self._config.params,
            aggregation=self._config.aggregation,
            layout=layout,
            contributions=(Contribution(self._name, secrets.token_bytes(NONCE_NBYTES)),),
        )
        cipher = self._backend.cipher(round, header.contributions)
        stream = open_stream(header)
        writer = UpdateWriter(stream, header)
        for frame in header.frames:
            encoder, encrypted = encoders[frame.section], frame.section == "encrypted"
            plain = encoder.encode(frame.first_block, frame.blocks)
            if encoder.clipped and not (self._clips and encrypted):
                raise RangeError("a tensor changed to a value out of range while it was encrypted; nothing was sent")
            if encrypted:
                with self._lock:
                    plain = cipher.encrypt(frame.first_block, plain)
            packed = (self._ring if encrypted else CLEAR_RING).to_bytes(plain)
            writer.write(frame, memoryview(packed))  # type: ignore[arg-type]  # an ndarray is a buffer
        self._clipped = encoders["encrypted"].clipped
        if self._feedback and residuals is not None:
            self._feedback.commit(layout.fingerprint, round, residuals)
        return stream

    def _sources(self, layout: Layout, role: str, state: Mapping[str, Any]) -> tuple[list[NDArray[Any]], list[float]]:
        """Return the tensors of a role as vectors, every value checked, and the ``max_abs`` of each."""
        specs = layout.role(role)
        vectors = [to_vector(state[spec.name]) for spec in specs]
        bounds = [self._config.aggregation.bound(spec.name) for spec in specs]
        clips = self._clips and role == "encrypted"
        limits = [sys.float_info.max] * len(bounds) if clips else bounds  # NaN and infinity are no values to clip
        fault = FlatVector(vectors, limits).first_out_of_range()
        if fault:
            spec, index = specs[fault[0]], fault[1]
            value = float(from_vector(vectors[fault[0]][index : index + 1], spec.dtype, (1,))[0])
            where = ", ".join(map(str, np.unravel_index(index, spec.shape)))
            advice = "raise max_abs, or find out why the value is so large"
            if not math.isfinite(value):
                advice = "find out why training diverged"
            raise RangeError(
                f"tensor {spec.name!r} has {value:g} at [{where}], beyond aggregation.max_abs {bounds[fault[0]]:g}: "
                f"{advice}; nothing was encrypted"
            )
        return vectors, bounds

    def _decrypt_vectors(self, aggregate: Update) -> dict[str, NDArray[Any]]:
        """Return the mean of every float tensor of an aggregate, which has been held against the configuration."""
        header, aggregation = aggregate.header, self._config.aggregation
        specs = {role: header.layout.role(role) for role in ("encrypted", "clear")}
        vectors = {spec.name: np.empty(spec.size, FLOAT_DTYPES[spec.dtype]) for role in specs for spec in specs[role]}
        targets = {role: [vectors[spec.name] for spec in specs[role]] for role in specs}
        bounds = [aggregation.bound(spec.name) for spec in specs["encrypted"]]
        sites = len(header.contributions)
        decoder = self._codec.decoder(targets["encrypted"], bounds, sites)
        clear = FlatVector(targets["clear"])
        cipher = self._backend.cipher(header.round, header.contributions)
        for frame, payload in aggregate.frames():
            if frame.section == "encrypted":  # these frames come first, and the weight first in them
                words = self._ring.from_bytes(payload)
                with self._lock:
                    plain = cipher.decrypt(frame.first_block, words)
                decoder.decode(frame.first_block, plain)
            elif self._clear:
                self._clear.decode(frame.first_block, CLEAR_RING.from_bytes(payload), clear, decoder.weight_sum)
        for name, vector in vectors.items():
            self._check_mean(vector, aggregation.bound(name), sites, decoder.weight_sum)
        return vectors

    def _check_mean(self, vector: NDArray[Any], bound: float, sites: int, weight_sum: float) -> None:
        """Raise `DecryptionError` if a mean is beyond what honest sites can have sent."""
        error = self._codec.mean_error(sites, weight_sum, bound)
        largest = bound * (1 + 2.0**-7) + error  # 2**-7: rounding to bfloat16
        if FlatVector([vector], [largest]).first_out_of_range():
            raise DecryptionError
