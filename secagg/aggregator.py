"""The aggregator: adds updates that it cannot read. It imports no HE library and holds no secret."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from .admission import Admission
from .config import Config
from .errors import (
    FormatError,
    StateError,
)
from .trust.key import ServerKey
from .trust.kit import ServerKit, server_kit
from .trust.project import Project
from .wire.body import MemoryBody
from .wire.container import DIGEST_NBYTES, frame_digest
from .wire.header import Header
from .wire.layout import Layout
from .wire.update import Update, check_update
from .words import FrameWords


class Aggregator:
    """Adds the updates of one round as they arrive.

    Its memory is one sum, bit-packed as on the wire, and one frame, whatever the number of sites. It is not
    thread-safe: serialise the calls.

    Parameters
    ----------
    config : Config
        The federation's configuration.
    key : ServerKey
        The server's key.
    round : int
        The round whose updates are accepted.
    layout : Layout, optional
        The layout that updates must have; without it, the first update that is added fixes it.
    base : bytes, optional
        The digest of the global model that training must have begun from; without it, the first update fixes it.
    project : Project, optional
        Who may contribute. With it, every update must be signed by its site.
    kind : str
        What is added: ``"update"``, which makes an aggregate, or ``"calibration"``, which makes scales.
    calibration : bytes, optional
        What names the scales of updates, where they are measured: the digest of the scales that this server has made of
        calibrations. Without it, the first update fixes it.

    Raises
    ------
    KeyFileError
        If a client key is given: the server must not hold one; or a key that is not the project's.
    MismatchError
        If the key was made for other params, or the project has another configuration.
    ConfigError
        If `round` is not a whole number from 0, `base` or `calibration` is not 32 bytes, or `kind` or `calibration`
        does not go with the configuration's ``precision``.
    LayoutError
        If `layout` is something else, a state dict say.
    """

    def __init__(
        self,
        config: Config,
        key: ServerKey,
        round: int = 0,
        layout: Layout | None = None,
        *,
        base: bytes | None = None,
        project: Project | None = None,
        kind: str = "update",
        calibration: bytes | None = None,
    ) -> None:
        self._admission = Admission(
            config, key, round, layout, base=base, project=project, kind=kind, calibration=calibration
        )
        self._words = FrameWords(config.params, key.primes)
        self._round = round
        self._total = np.empty(0, dtype=np.uint8)
        self._closed: str | None = None

    @classmethod
    def load(
        cls,
        kit: ServerKit | str | os.PathLike[str],
        round: int = 0,
        layout: Layout | None = None,
        *,
        base: bytes | None = None,
        kind: str = "update",
        calibration: bytes | None = None,
    ) -> Aggregator:
        """Return the aggregator of a round of the federation that a kit is of.

        Parameters
        ----------
        kit : path or ServerKit
            The server's kit: its folder, or what `secagg.trust.load_server_kit` read there.
        round, layout, base, kind, calibration
            As of `Aggregator`.

        Raises
        ------
        ConfigError
            If the kit's configuration is missing or invalid, `round` is not a whole number from 0, `base` or
            `calibration` is not 32 bytes, or `kind` is none.
        LayoutError
            If `layout` is something else.
        KeyFileError
            If another file of the kit is missing or damaged, or `kit` is not one of the server.
        """
        opened = server_kit(kit)
        return cls(
            opened.config,
            opened.key,
            round,
            layout,
            base=base,
            project=opened.project,
            kind=kind,
            calibration=calibration,
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites added so far."""
        return self._admission.sites

    @property
    def closed(self) -> bool:
        """Whether nothing can be added any more: after `finish`, or because adding failed half-way."""
        return self._closed is not None

    @property
    def layout(self) -> Layout | None:
        """The layout that updates must have, once it is known."""
        return self._admission.layout

    def admit(self, header: Header) -> None:
        """Check an update by its header alone, before its frames are received.

        Parameters
        ----------
        header : Header
            Of the update, `Header.from_head` of the first chunk of `Update.chunks`; its ``nbytes`` is how large the
            whole update must be.

        Raises
        ------
        SecAggError
            The error that `add` would raise for this header.
        """
        if not isinstance(header, Header):
            raise FormatError(f"a Header is needed, got {type(header).__name__}: pass the header of an Update to admit")
        self._check(header)

    def add(self, update: Update, commit: Callable[[], None] | None = None) -> None:
        """Verify an update as a whole, then add it: all or nothing.

        Parameters
        ----------
        update : Update
            In memory or in a file, which is read a frame at a time: twice, unless its frames were checked on their way
            into the file and any words can be added.
        commit : callable, optional
            Called once the update is verified and before anything is added, to store it, say. If it raises, the sum
            stays as it was.

        Raises
        ------
        StateError
            After `finish`, or after reading failed between verification and addition.
        MismatchError, KeyMismatchError, ManifestMismatchError, RoundMismatchError
            Made under another configuration, key or manifest, for another round, or from another global model.
        LayoutError
            Another layout, or another set of encrypted tensors.
        IdentityError, SignatureError
            From a site that the project does not list, or no more, or not signed by it.
        DuplicateError
            A site or nonce that is in the sum already.
        CapacityError
            ``max_clients`` updates are in the sum already.
        FormatError, DigestError
            A damaged frame, a word or tag that is not below its modulus, or a plaintext in the form of a ciphertext;
            tensors, or anything else that is no `Update`. The sum stays as it was.
        """
        header, words = check_update(update).header, self._words
        self._check(header)
        tail = update.tail
        self._admission.check_tail(header, tail)
        if not (update.verified and words.takes_any):
            for frame, payload in update.frames():
                words.check(frame, payload)
        if commit is not None:
            commit()
        if not self.sites:
            # Room for the tail of the largest aggregate: memory that nobody touches is never there.
            self._total = np.zeros(header.sum_nbytes, np.uint8)
        total = memoryview(self._total)  # type: ignore[arg-type]  # an ndarray is a buffer
        self._closed = "adding a verified update failed half-way; the sum is lost, run the round again"
        for frame, payload in update.frames():
            words.add(frame, total[frame.offset : frame.offset + frame.nbytes], payload)
        self._closed = None
        self._admission.take(header, tail)

    def finish(self) -> Update:
        """Return the aggregate of all updates added; nothing can be added afterwards.

        Raises
        ------
        QuorumError
            If fewer than ``min_clients`` updates were added; more may still be added then.
        StateError
            If called twice.
        """
        self._refuse_closed()
        header, proven = self._admission.conclude()
        self._closed = f"round {self._round} is finished"
        tail = proven.pack(header.head, header.frame_count)
        end = header.tail_offset + len(tail)
        self._total[header.tail_offset : end] = np.frombuffer(tail, np.uint8)
        view = memoryview(self._total[:end])  # type: ignore[arg-type]  # an ndarray is a buffer
        for frame in header.frames:
            end = frame.offset + frame.nbytes
            digest = frame_digest(header.head, frame.index, view[frame.offset : end])
            self._total[end : end + DIGEST_NBYTES] = np.frombuffer(digest, np.uint8)
        return Update(header, MemoryBody(view))

    def _check(self, header: Header) -> None:
        """Check all that a header can tell."""
        self._refuse_closed()
        self._admission.check(header)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StateError(self._closed)
