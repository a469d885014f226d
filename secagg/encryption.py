"""The way between a state dict and an update: values, codec, backend, ring and tag, a frame at a time."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .backends.registry import load_backend
from .config import Config
from .errors import DecryptionError, ImplausibleSumError, PrecisionWarning, RangeError, warn
from .scheme.calibration import CalibrationCodec
from .scheme.clear_codec import HEADROOM_BITS, FixedPointCodec
from .scheme.codec import Encoder, codec_for
from .scheme.feedback import Feedback
from .scheme.flat_vector import FlatVector, weigh
from .scheme.integer_encoder import IntegerEncoder
from .scheme.metric_names import is_metric, withhold
from .scheme.params import LatticeParams, QuantisedParams
from .scheme.report import PrecisionReport, TensorReport, clipping_loss, rounding_loss
from .scheme.ring import CLEAR_RING, Ring
from .scheme.scales import LARGEST, Scales, one_hot
from .scheme.tensors import FLOAT_DTYPES, to_vector
from .storage.files import Writable
from .storage.mutex import Mutex
from .trust.identity import Identity
from .trust.key import ClientKey
from .trust.nonces import with_nonce
from .trust.tags import Authenticator
from .wire.header import Frame, Header
from .wire.layout import TensorSpec
from .wire.state_dict import check_values
from .wire.update import Update, UpdateWriter

_Stream = TypeVar("_Stream", bound=Writable)


@dataclass(frozen=True)
class Mean:
    """What an aggregate decrypts to.

    Parameters
    ----------
    vectors : dict of str to ndarray
        The mean of every float tensor, by first names.
    following : Scales or None
        The scales of the next round, where they follow from this one.
    """

    vectors: dict[str, NDArray[Any]]
    following: Scales | None


class Encryption:
    """Encrypts updates and calibrations and decrypts their sums under one configuration and key.

    Threads may share it, and so may a forked process, at whatever its threads are then.

    Parameters
    ----------
    config : Config
        The configuration.
    key : ClientKey
        The key; it was made for this configuration.

    Attributes
    ----------
    report : PrecisionReport or None
        How precisely the latest update was sent; None without one, if it has only measured, and in schemes that do not
        round.
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
        self.report: PrecisionReport | None = None
        self._key = key
        self._lattice = isinstance(params, LatticeParams)
        self._params, self._aggregation = params, config.aggregation
        self._backend = load_backend(config.lib)(params, key)
        self._native = Mutex(whole=True)  # a backend's buffers serve one block at a time
        self._ring = Ring.of_update(params, key.server.primes)
        self._codec = codec_for(params, config.aggregation)
        self._clear = FixedPointCodec(config.aggregation)
        self._clips = isinstance(params, QuantisedParams) and params.overflow == "clip"
        self._calibrated = config.aggregation.calibrated
        self.feedback = Feedback() if isinstance(params, QuantisedParams) and params.error_feedback else None
        # What one update drops is due to the next: with error feedback, updates are made one after another.
        self.turn = Mutex().held if self.feedback else nullcontext

    @property
    def clipped(self) -> int:
        """How many values of the last update were clipped."""
        return self.report.overall.clipped if self.report else 0

    def check_weight(self, weight: float) -> None:
        """Raise `RangeError` if a weight is too small to be encoded."""
        self._codec.check_weight(weight)

    def encrypt(
        self,
        draft: Header,
        state: Mapping[str, Any],
        weight: float,
        scales: Scales | None,
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
        weight : float
            Of the site.
        scales : Scales or None
            Where they are measured: those of the round.
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
            due = self._due(draft, state, weight, sends=True)
            limits = layout.bounds(self._aggregation)
            named = dict(zip(limits, scales.bounds, strict=True)) if scales else limits
            encrypted, clear = layout.role("encrypted"), layout.role("clear")
            metrics = {spec.name: place for place, spec in enumerate(encrypted) if is_metric(spec.name)}
            sent = withhold(
                {name: due.vectors[place] for name, place in metrics.items()},
                {name: named[name] / (weight if scales else 1.0) for name in metrics},
            )
            for name, vector in sent.items():
                due.vectors[metrics[name]] = vector
            counts = one_hot(due.largest) if self._aggregation.precision == "previous" else None
            seed = self._codec.draw()
            decides = struct.pack("<dQ", weight, seed or 0) + (scales.to_bytes() if scales else b"")
            header = with_nonce(self._key, draft, [decides, *due.vectors, *due.in_clear, *(due.residuals or ())])
            encoder = self._codec.encoder(
                due.vectors,
                layout.shapes,
                [named[spec.name] for spec in encrypted],
                weight,
                scales,
                counts,
                due.residuals,
                seed,
            )
            largest = self._aggregation.largest_weight
            weighted = {name: bound if scales else bound * largest for name, bound in named.items()}
            encoders: dict[str, Encoder] = {
                "encrypted": encoder,
                "clear": self._clear.encoder(
                    due.in_clear,
                    [limits[spec.name] for spec in clear],
                    [weighted[spec.name] for spec in clear],
                    weight,
                ),
            }
            if scales and scales.known:
                self._warn_of_clear(draft, due, weighted)
            stream = open_stream(header)
            self._write(header, encoders, identity, stream)
            if isinstance(encoder, IntegerEncoder):
                # What measures only sends nothing that could be more or less precise.
                self.report = None if scales and not scales.known else self._report(draft, due, weight, encoder)
            if self.feedback and due.residuals is not None:
                for place in metrics.values():  # a measurement of one model is nothing to add to that of the next
                    due.residuals[place][:] = 0
                self.feedback.commit(layout.fingerprint, round, due.residuals)
            return header, stream

    def calibrate(
        self,
        draft: Header,
        state: Mapping[str, Any],
        weight: float,
        identity: Identity | None,
        open_stream: Callable[[Header], _Stream],
    ) -> tuple[Header, _Stream]:
        """Write a calibration for an update that is to come to a stream; parameters and errors as of `encrypt`."""
        with self.turn():
            due = self._due(draft, state, weight, sends=False)
        codec = CalibrationCodec(self._params, self._aggregation, len(draft.layout.sent))
        counts = one_hot(due.largest)
        header = with_nonce(self._key, draft, [counts])
        stream = open_stream(header)
        self._write(header, {"encrypted": codec.encoder(counts)}, identity, stream)
        return header, stream

    def decrypt(self, aggregate: Update) -> Mean:
        """Return what an aggregate decrypts to, which has been held against the configuration.

        Raises
        ------
        FormatError, DigestError
            If it is damaged.
        DecryptionError
            If the sum is not that of the updates listed: then none of it has been decrypted in a lattice scheme.
        ImplausibleSumError
            If it is, and not what sites send that share a configuration.
        """
        header, aggregation = aggregate.header, self._aggregation
        sent = header.layout.sent
        places = [index for index, spec in enumerate(sent) if spec.role == "encrypted"]
        vectors = {spec.name: np.empty(spec.size, FLOAT_DTYPES[spec.dtype]) for spec in sent}
        limits = header.layout.bounds(aggregation)
        decoder = self._codec.decoder(
            [vectors[sent[place].name] for place in places],
            header.layout.shapes,
            places,
            list(limits.values()),
            len(header.contributions),
        )
        clear = [index for index, spec in enumerate(sent) if spec.role == "clear"]
        in_clear = self._clear.decoder([vectors[sent[place].name] for place in clear])

        def take(frame: Frame, plain: NDArray[Any]) -> None:
            if frame.section == "encrypted":  # these frames come first, and the weight first in them
                decoder.decode(frame.first_block, plain)
            else:
                bounds = [decoder.bounds[place] for place in clear]
                in_clear.decode(frame.first_block, plain, bounds, decoder.weight_sum)

        self._read(aggregate, take)
        decoder.finish()
        if self._calibrated:  # a step may be large beside what is left of a float16 above its values
            for vector in vectors.values():
                if vector.dtype == np.float16:
                    np.clip(vector, np.finfo(np.float16).min, np.finfo(np.float16).max, out=vector)
        fault = decoder.fault or self._fault(vectors, limits, len(header.contributions), decoder.weight_sum)
        if fault:
            raise ImplausibleSumError(
                f"the aggregate of round {header.round} is the sum of the updates that it lists, and cannot be used: "
                f"{fault}. Compare the versions, configurations and weights of all sites"
            )
        return Mean(vectors, decoder.following())

    def decrypt_scales(self, summed: Update) -> Scales:
        """Return the scales that a sum of calibrations gives, which has been held against the configuration.

        Errors are those of `decrypt`.
        """
        header = summed.header
        codec = CalibrationCodec(self._params, self._aggregation, len(header.layout.sent))
        parts: list[NDArray[np.uint64]] = []
        self._read(summed, lambda frame, plain: parts.append(plain.copy()))
        counts = codec.decode(np.concatenate(parts), len(header.contributions))
        if counts is None:
            raise ImplausibleSumError(
                f"the sum of the calibrations of round {header.round} has counts that so many sites cannot have: a "
                "site calibrates otherwise than the others. Compare the versions and configurations of all sites"
            )
        return Scales.measured(counts)

    def _due(self, draft: Header, state: Mapping[str, Any], weight: float, *, sends: bool) -> _Due:
        """Return what a site has to send: its values, checked, and what its earlier updates have left.

        Residuals are copies, which may be changed, if it `sends`, and does not only measure.
        """
        layout = draft.layout
        encrypted, clear = layout.role("encrypted"), layout.role("clear")
        bounds = layout.bounds(self._aggregation)
        vectors, in_clear = ([to_vector(state[spec.name]) for spec in specs] for specs in (encrypted, clear))
        anything = dict.fromkeys(bounds, sys.float_info.max)
        weighs = isinstance(self._params, QuantisedParams)
        once = weighs and not self.feedback  # one reading says how large values are, and whether they are in bounds
        weighed = self._weigh(encrypted, vectors, weight, None) if once else {}
        if not self._calibrated:  # else what is no number is found when it is weighed
            limits = anything if self._clips else bounds  # NaN is no value to clip
            # Products are rounded in the order of their factors: below that of the bound, no value is beyond it.
            rest = [
                (spec, vector)
                for spec, vector in zip(encrypted, vectors, strict=True)
                if not (once and weighed[spec.name][0] < limits[spec.name] * weight)
            ]
            check_values([spec for spec, _ in rest], [vector for _, vector in rest], limits)
            check_values(clear, in_clear, bounds)
        if not weighs:
            return _Due(vectors, in_clear, None, [], [])
        residuals = None
        if self.feedback:
            begin = self.feedback.begin if sends else self.feedback.due
            residuals = begin(layout.fingerprint, draft.round, [vector.size for vector in vectors])
            weighed = self._weigh(encrypted, vectors, weight, residuals)
        tops = []
        if self._calibrated:
            weighed |= self._weigh(clear, in_clear, weight, None)
            tops = [weighed[spec.name][0] for spec in layout.sent]
            if not all(map(math.isfinite, tops)):
                check_values(encrypted, vectors, anything)
                check_values(clear, in_clear, anything)
            for spec, top in zip(layout.sent, tops, strict=True):
                if not top <= LARGEST:
                    raise RangeError(
                        f"tensor {spec.name!r} has a value that makes {top:.2g} with weight {weight:g} and what "
                        f"earlier updates have left, beyond {LARGEST:.2g}: give weights in a larger unit, or find out "
                        "why the value is so large; nothing was encrypted"
                    )
        return _Due(vectors, in_clear, residuals, tops, [weighed[spec.name][1] for spec in encrypted])

    @staticmethod
    def _weigh(
        specs: Sequence[TensorSpec],
        vectors: Sequence[NDArray[Any]],
        weight: float,
        residuals: Sequence[NDArray[np.float32]] | None,
    ) -> dict[str, tuple[float, float]]:
        """Return what `weigh` does for each tensor, by its first name."""
        rests: Sequence[NDArray[np.float32] | None] = residuals or [None] * len(vectors)
        return {
            spec.name: weigh(vector, weight, rest) for spec, vector, rest in zip(specs, vectors, rests, strict=True)
        }

    def _warn_of_clear(self, draft: Header, due: _Due, bounds: Mapping[str, float]) -> None:
        """Issue a `PrecisionWarning` if clear values are beyond what the scales take: nothing carries them on."""
        for spec, top in zip(draft.layout.sent, due.largest, strict=True):
            if spec.role == "clear" and top > bounds[spec.name] * 2.0**HEADROOM_BITS:
                warn(
                    f"tensor {spec.name!r}, which is sent in the clear, has values of up to {top:.2g}, times their "
                    f"weight, and the scales of round {draft.round} take {bounds[spec.name] * 2.0**HEADROOM_BITS:.2g}: "
                    "what is beyond is lost. Did this site miss the calibration?",
                    PrecisionWarning,
                )

    def _write(
        self, header: Header, encoders: Mapping[str, Encoder], identity: Identity | None, stream: Writable
    ) -> None:
        """Encode, encrypt and write all frames, then the tail."""
        cipher = self._backend.cipher(header.round, header.contributions)
        writer = UpdateWriter(stream, header)
        authenticator = Authenticator(self._key, header)
        for frame in header.frames:
            encoder, secret = encoders[frame.section], frame.section == "encrypted"
            plain = encoder.encode(frame.first_block, frame.blocks)
            # What error feedback adds may exceed a bound, and what is clipped of it is due again.
            if encoder.clipped and not (secret and (self._clips or self.feedback)):
                raise RangeError("a tensor changed to a value out of range while it was encrypted; nothing was sent")
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

    def _read(self, summed: Update, take: Callable[[Frame, NDArray[Any]], None]) -> None:
        """Verify a sum, and hand the plaintext of each frame on; what has been handed on counts if nothing is raised.

        A fault must not show in the time: whoever learns where it is learns more than that there is one. So `take`
        raises nothing, and in FLASHE, where to take a pad off shows nothing of a key, tags are looked at last.
        """
        header = summed.header
        authenticator = Authenticator(self._key, header)
        if self._lattice:
            self._verify(summed, authenticator)
        cipher = self._backend.cipher(header.round, header.contributions)
        for frame, payload in summed.frames(recheck=self._lattice):  # the words that were verified, and no others
            secret = frame.section == "encrypted"
            plain = (self._ring if secret else CLEAR_RING).from_bytes(payload)
            if secret:
                with self._native.held():
                    plain = cipher.decrypt(frame.first_block, plain)
            take(frame, plain)
            if not self._lattice:
                authenticator.add_integers(plain, signed=not secret)
        if not self._lattice and not authenticator.fits(summed.tail):
            raise DecryptionError

    def _verify(self, summed: Update, authenticator: Authenticator) -> None:
        """Hold all words of a sum of a lattice scheme against its tags, before any of them is decrypted."""
        for frame, payload in summed.frames(recheck=True):
            if frame.section == "encrypted":
                authenticator.add_ciphertext(self._ring.from_bytes(payload))
            else:
                authenticator.add_integers(CLEAR_RING.from_bytes(payload), signed=True)
        if not authenticator.fits(summed.tail):
            raise DecryptionError

    def _fault(
        self, vectors: Mapping[str, NDArray[Any]], limits: Mapping[str, float], sites: int, weight_sum: float
    ) -> str | None:
        """Return what is wrong with a mean: a value that is none, or beyond what honest sites can have sent."""
        for name, vector in vectors.items():
            largest = float(np.finfo(np.float64).max)
            if not self._calibrated:
                error = self._codec.mean_error(sites, weight_sum / self._aggregation.largest_weight, limits[name])
                largest = limits[name] * (1 + 2.0**-7) + error  # 2**-7: rounding to bfloat16
            if FlatVector([vector], [largest]).first_out_of_range() is not None:
                return f"tensor {name!r} has a mean that is no number, or beyond its max_abs"
        return None

    def _report(self, draft: Header, due: _Due, weight: float, encoder: IntegerEncoder) -> PrecisionReport:
        """Return how precisely an update was sent."""
        tensors = []
        for index, (spec, vector, energy, step, clipped) in enumerate(
            zip(
                draft.layout.role("encrypted"),
                due.vectors,
                due.energies,
                encoder.steps,
                encoder.clipped_by_tensor,
                strict=True,
            )
        ):
            signal = math.sqrt(min(energy, sys.float_info.max) / max(spec.size, 1))
            if not math.isfinite(energy):  # squares are no float64, and nothing can be said of them
                left = loss = 0.0
            elif due.residuals is None:
                left, loss = 0.0, rounding_loss(vector, weight, step, signal, stochastic=encoder.is_stochastic(index))
                if clipped:
                    loss += clipping_loss(vector, weight, encoder.bound(index), energy)
            else:
                left = weigh(due.residuals[index], 1.0)[1]
                loss = left / energy if energy else 0.0
            tensors.append(TensorReport(spec.name, spec.size, signal, step, clipped, math.sqrt(left), loss))
        return PrecisionReport(draft.round, tuple(tensors))


@dataclass(frozen=True)
class _Due:
    """What a site has to send: vectors of the encrypted and the clear tensors, and residuals of the former.

    `largest` magnitudes of weighted values are those of all tensors that are sent, in order; none where they are not
    measured. `energies` are sums of squares, of the encrypted ones.
    """

    vectors: list[NDArray[Any]]
    in_clear: list[NDArray[Any]]
    residuals: list[NDArray[np.float32]] | None
    largest: list[float]
    energies: list[float]
