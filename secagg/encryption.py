"""The way between a state dict and an update: values, codec, backend, ring and tag, a frame at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .backends.registry import load_backend
from .config import Config
from .errors import DecryptionError, RangeError
from .scheme.clear_codec import FixedPointCodec
from .scheme.codec import Encoder, codec_for
from .scheme.feedback import Feedback
from .scheme.flat_vector import FlatVector
from .scheme.params import LatticeParams, QuantisedParams
from .scheme.ring import CLEAR_RING, Ring
from .scheme.tensors import FLOAT_DTYPES
from .storage.files import Writable
from .storage.mutex import Mutex
from .trust.identity import Identity
from .trust.key import ClientKey
from .trust.nonces import with_nonce
from .trust.tags import Authenticator
from .wire.header import Header
from .wire.state_dict import checked_vectors
from .wire.update import Update, UpdateWriter

_Stream = TypeVar("_Stream", bound=Writable)


class Encryption:
    """Encrypts updates and decrypts aggregates under one configuration and key.

    Threads may share it, and so may a forked process, at whatever its threads are then.

    Parameters
    ----------
    config : Config
        The configuration.
    key : ClientKey
        The key; it was made for this configuration.

    Attributes
    ----------
    clipped : int
        How many values of the last update were clipped.
    feedback : Feedback or None
        What updates leave to the next, where the configuration has error feedback.
    turn : callable
        Returns a context that lets one update, or whoever changes `feedback`, in after another.

    Raises
    ------
    BackendUnavailableError
        If the HE library of ``he.lib`` is not installed.
    """

    def __init__(self, config: Config, key: ClientKey) -> None:
        params = config.params
        self.clipped = 0
        self._key = key
        self._lattice = isinstance(params, LatticeParams)
        self._aggregation = config.aggregation
        self._backend = load_backend(config.lib)(params, key)
        self._native = Mutex(whole=True)  # a backend's buffers serve one block at a time
        self._ring = Ring.of_update(params, key.server.primes)
        self._codec = codec_for(params, config.aggregation)
        self._clear = FixedPointCodec(config.aggregation) if config.encrypt.leaves_clear else None
        self._clips = isinstance(params, QuantisedParams) and params.overflow == "clip"
        self.feedback = Feedback() if isinstance(params, QuantisedParams) and params.error_feedback else None
        # What one update drops is due to the next: with error feedback, updates are made one after another.
        self.turn = Mutex().held if self.feedback else nullcontext

    def check_fraction(self, fraction: float) -> None:
        """Raise `RangeError` if a weight, as a fraction of ``max_weight``, is too small to be encoded."""
        self._codec.check_fraction(fraction)

    def encrypt(
        self,
        draft: Header,
        state: Mapping[str, Any],
        fraction: float,
        identity: Identity | None,
        open_stream: Callable[[Header], _Stream],
    ) -> tuple[Header, _Stream]:
        """Write an update to a stream, which is opened once all values have been checked.

        Parameters
        ----------
        draft : Header
            Of an update of this configuration, key and state, without its nonce.
        state : mapping of str to torch.Tensor or numpy.ndarray
            The tensors of the header's layout.
        fraction : float
            The weight, as a fraction of ``max_weight``.
        identity : Identity or None
            Whoever signs.
        open_stream : callable
            Returns the stream.

        Returns
        -------
        Header
            With its nonce.
        object
            The stream.

        Raises
        ------
        RangeError
            If a value is not finite or beyond its ``max_abs``.
        MismatchError
            If the carry that was restored is of another model.
        """
        with self.turn():
            layout, round = draft.layout, draft.round
            bounds = layout.bounds(self._aggregation)
            encrypted, clear = layout.role("encrypted"), layout.role("clear")
            vectors = checked_vectors(encrypted, state, bounds, clips=self._clips)
            residuals = (
                self.feedback.begin(layout.fingerprint, round, [vector.size for vector in vectors])
                if self.feedback
                else None
            )
            limits = {role: [bounds[spec.name] for spec in layout.role(role)] for role in ("encrypted", "clear")}
            encoders: dict[str, Encoder] = {
                "encrypted": self._codec.encoder(vectors, limits["encrypted"], fraction, residuals)
            }
            if self._clear:
                in_clear = checked_vectors(clear, state, bounds, clips=False)
                encoders["clear"] = self._clear.encoder(in_clear, limits["clear"], fraction)
                vectors = [*vectors, *in_clear]
            decides = struct.pack("<dQ", fraction, encoders["encrypted"].seed)
            header = with_nonce(self._key, draft, [decides, *vectors, *(residuals or ())])
            cipher = self._backend.cipher(round, header.contributions)
            stream = open_stream(header)
            writer = UpdateWriter(stream, header)
            authenticator = Authenticator(self._key, header)
            for frame in header.frames:
                encoder, secret = encoders[frame.section], frame.section == "encrypted"
                plain = encoder.encode(frame.first_block, frame.blocks)
                if encoder.clipped and not (self._clips and secret):
                    raise RangeError(
                        "a tensor changed to a value out of range while it was encrypted; nothing was sent"
                    )
                words = plain
                if not (secret and self._lattice):
                    authenticator.add_integers(plain, signed=not secret)
                if secret:
                    with self._native.held():
                        words = cipher.encrypt(frame.first_block, plain)
                if secret and self._lattice:
                    authenticator.add_ciphertext(words)
                packed = (self._ring if secret else CLEAR_RING).to_bytes(words)
                writer.write(frame, memoryview(packed))  # type: ignore[arg-type]  # an ndarray is a buffer
            writer.finish(lambda body: authenticator.tags([body]), identity.sign if identity else None)
            self.clipped = encoders["encrypted"].clipped
            if self.feedback and residuals is not None:
                self.feedback.commit(layout.fingerprint, round, residuals)
            return header, stream

    def decrypt(self, aggregate: Update) -> dict[str, NDArray[Any]]:
        """Return the mean of every float tensor of an aggregate, which has been held against the configuration.

        Raises
        ------
        FormatError, DigestError
            If it is damaged.
        DecryptionError
            If the sum is not that of the updates listed: then none of it has been decrypted in a lattice scheme. If it
            is, and not plausible.
        """
        header, aggregation = aggregate.header, self._aggregation
        authenticator = Authenticator(self._key, header)
        if self._lattice:
            self._verify(aggregate, authenticator)
        specs = {role: header.layout.role(role) for role in ("encrypted", "clear")}
        vectors = {spec.name: np.empty(spec.size, FLOAT_DTYPES[spec.dtype]) for role in specs for spec in specs[role]}
        targets = {role: [vectors[spec.name] for spec in specs[role]] for role in specs}
        limits = header.layout.bounds(aggregation)
        bounds = [limits[spec.name] for spec in specs["encrypted"]]
        sites = len(header.contributions)
        decoder = self._codec.decoder(targets["encrypted"], bounds, sites)
        clear = FlatVector(targets["clear"])
        cipher = self._backend.cipher(header.round, header.contributions)
        plausible = True
        for frame, payload in aggregate.frames(recheck=self._lattice):  # the words that were verified, and no others
            # A fault must not show in the time: whoever learns where it is learns more than that there is one.
            try:
                if frame.section == "encrypted":  # these frames come first, and the weight first in them
                    plain = self._ring.from_bytes(payload)
                    with self._native.held():
                        plain = cipher.decrypt(frame.first_block, plain)
                    decoder.decode(frame.first_block, plain)
                elif self._clear:
                    plain = CLEAR_RING.from_bytes(payload)
                    self._clear.decode(frame.first_block, plain, clear, decoder.weight_sum)
            except DecryptionError:
                plausible = False
            if not self._lattice:  # to take a pad off shows nothing of a key, and what comes out is dropped
                authenticator.add_integers(plain, signed=frame.section == "clear")
        if not self._lattice and not authenticator.fits(aggregate.tail):
            raise DecryptionError  # before anything looks at values: to find one that is none takes a time of its own
        for name, vector in vectors.items():
            plausible &= self._is_mean(vector, limits[name], sites, decoder.weight_sum)
        if not plausible:
            raise DecryptionError
        return vectors

    def _verify(self, aggregate: Update, authenticator: Authenticator) -> None:
        """Hold all words of an aggregate of a lattice scheme against its tags, before any of them is decrypted."""
        for frame, payload in aggregate.frames(recheck=True):
            if frame.section == "encrypted":
                authenticator.add_ciphertext(self._ring.from_bytes(payload))
            else:
                authenticator.add_integers(CLEAR_RING.from_bytes(payload), signed=True)
        if not authenticator.fits(aggregate.tail):
            raise DecryptionError

    def _is_mean(self, vector: NDArray[Any], bound: float, sites: int, weight_sum: float) -> bool:
        """Return whether a mean is within what honest sites can have sent."""
        error = self._codec.mean_error(sites, weight_sum, bound)
        largest = bound * (1 + 2.0**-7) + error  # 2**-7: rounding to bfloat16
        return FlatVector([vector], [largest]).first_out_of_range() is None
