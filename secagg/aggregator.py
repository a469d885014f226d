"""The aggregator: adds updates that it cannot read. It imports no HE library and holds no secret."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .config import Config
from .errors import (
    CapacityError,
    ConfigError,
    FormatError,
    LayoutError,
    ManifestMismatchError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    StateError,
    show,
)
from .scheme.params import LatticeParams
from .scheme.ring import CLEAR_RING, Ring
from .trust.agreement import check_header, check_key, check_project
from .trust.key import ServerKey, check_role
from .trust.kit import ServerKit, server_kit
from .trust.project import Project
from .trust.tags import tag_moduli
from .wire.body import MemoryBody
from .wire.container import DIGEST_NBYTES, frame_digest
from .wire.header import SUMS, Contribution, Header, check_base, check_calibration, check_round, refuse_duplicates
from .wire.layout import Layout
from .wire.tail import Proof, Tail, add_tags, check_tags
from .wire.update import Update, check_update


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
        check_role(key, ServerKey)
        check_key(config, key)
        if project is not None:
            check_project(config, key, project)
            layout = layout or project.layout
        if kind not in SUMS:
            raise ConfigError(f"kind is {show(kind)}; use {' or '.join(SUMS)}")
        precision = config.aggregation.precision
        if kind == "calibration" and precision != "auto":
            raise ConfigError(f"kind is 'calibration', and with precision {precision!r} no site calibrates")
        if calibration is not None and (not config.aggregation.calibrated or kind != "update"):
            what = "an update" if kind == "update" else "a calibration"
            raise ConfigError(f"calibration is given, and {what} of precision {precision!r} is under no scales")
        self._config = config
        self._kind = kind
        self._calibration = None if calibration is None else check_calibration(calibration)
        self._key = key
        self._round = check_round(round)
        self._layout = _check_layout(layout)
        self._rings = {"encrypted": Ring.of_update(config.params, key.primes), "clear": CLEAR_RING}
        self._base = None if base is None else check_base(base)
        self._project = project
        self._manifest = None if project is None else project.digest
        self._moduli = tag_moduli(key)
        self._contributions: list[Contribution] = []
        self._proofs: list[Proof] = []
        self._tags = (0,) * len(self._moduli)
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
        return tuple(contribution.site for contribution in self._contributions)

    @property
    def closed(self) -> bool:
        """Whether nothing can be added any more: after `finish`, or because adding failed half-way."""
        return self._closed is not None

    @property
    def layout(self) -> Layout | None:
        """The layout that updates must have, once it is known."""
        return self._layout

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
        header = check_update(update).header
        self._check(header)
        (proof,), tags = update.tail.proofs, update.tail.tags
        check_tags(tags, self._moduli)
        if self._project is not None:
            self._project.check_contribution(header, proof)
        whole = isinstance(header.params, LatticeParams) and not header.params.seeded  # both polynomials are there
        if not (update.verified and all(ring.takes_any for ring in self._rings.values())):
            for frame, payload in update.frames():
                packed = np.frombuffer(payload, np.uint8)
                self._rings[frame.section].check(packed)
                if frame.section == "encrypted" and whole:
                    _refuse_transparent(np.split(packed, frame.blocks))
        if commit is not None:
            commit()
        if not self._contributions:
            # Room for the tail of the largest aggregate: memory that nobody touches is never there.
            self._total = np.zeros(header.sum_nbytes, np.uint8)
        self._closed = "adding a verified update failed half-way; the sum is lost, run the round again"
        for frame, payload in update.frames():
            total = self._total[frame.offset : frame.offset + frame.nbytes]
            self._rings[frame.section].add(total, np.frombuffer(payload, np.uint8))
        self._closed = None
        self._layout, self._base, self._manifest = header.layout, header.base, header.manifest
        self._calibration = header.calibration
        self._contributions += header.contributions
        self._proofs.append(proof)
        self._tags = add_tags(self._tags, tags, self._moduli)

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
        fewest = self._config.aggregation.min_clients
        if len(self._contributions) < fewest or self._layout is None:
            raise QuorumError(
                f"round {self._round} has {len(self._contributions)} {self._kind}s, min_clients is {fewest}: "
                "wait for more sites"
            )
        self._closed = f"round {self._round} is finished"
        header = Header(
            kind=SUMS[self._kind],
            round=self._round,
            epoch=self._key.epoch,
            key=self._key.fingerprint,
            params=self._config.params,
            aggregation=self._config.aggregation,
            layout=self._layout,
            contributions=tuple(self._contributions),
            base=self._base,
            manifest=self._manifest,
            calibration=self._calibration,
        )
        tail = Tail(self._tags, tuple(self._proofs)).pack(header.head, header.frame_count)
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
        check_header(header, self._kind, self._config, self._key)
        if header.round != self._round:
            raise RoundMismatchError(
                f"the {header.kind} from {header.site} is for round {header.round}, this is round {self._round}"
            )
        if self._layout is not None:
            fault = self._layout.difference(header.layout)
            if fault:
                raise LayoutError(f"the {header.kind} from {header.site} has another layout: {fault}")
        if (self._base is not None or self._contributions) and header.base != self._base:
            raise MismatchError(_other_base(header, self._round, self._base))
        if (self._project is not None or self._contributions) and header.manifest != self._manifest:
            raise ManifestMismatchError(self._other_manifest(header))
        if (self._calibration is not None or self._contributions) and header.calibration != self._calibration:
            raise ScalesMismatchError(
                f"the update from {header.site} was made under other scales than those of round {self._round}: "
                "calibrate again, and encrypt again"
            )
        if self._project is not None:
            self._project.site(header.site)
        refuse_duplicates([*self._contributions, *header.contributions])
        if len(self._contributions) == self._config.aggregation.max_clients:
            raise CapacityError(f"max_clients {len(self._contributions)} updates are in the sum already")

    def _other_manifest(self, header: Header) -> str:
        """Return what is wrong with an update whose manifest is not that of its round."""
        if self._manifest is None or header.manifest is None:
            one, others = ("no", "one") if header.manifest is None else ("a", "none")
            return (
                f"the {header.kind} from {header.site} was made under {one} project manifest, those of round "
                f"{self._round} under {others}: give every Client the project (Client.load of a kit does), or none"
            )
        serial = f", of serial {self._project.serial}" if self._project else ""
        return (
            f"the {header.kind} from {header.site} was made under another project manifest than those of round "
            f"{self._round}, which are under {self._manifest.hex()[:16]}…{serial}: join again, and encrypt again"
        )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StateError(self._closed)


def _check_layout(layout: object) -> Layout | None:
    if layout is not None and not isinstance(layout, Layout):
        raise LayoutError(f"layout is a {type(layout).__name__}; give what Client.layout(state) or Layout.of returns")
    return layout


def _refuse_transparent(blocks: list[NDArray[np.uint8]]) -> None:
    """Raise `FormatError` if the second polynomial of a packed ciphertext is zero: anybody could read the first."""
    for block in blocks:
        if not block[block.size // 2 :].any():
            raise FormatError("a block is a plaintext where ciphertext belongs: its second polynomial is zero")


def _other_base(header: Header, round: int, expected: bytes | None) -> str:
    """Return what is wrong with an update whose base is not that of its round."""
    base, who = header.base, f"the {header.kind} from {header.site}"
    if base is None or expected is None:
        names, other = ("names no", "names one") if base is None else ("names a", "names none")
        return (
            f"{who} {names} global model that it began from, and the sum of round {round} {other}: "
            "let all sites give encrypt() a `base`, or none"
        )
    remedy = "load the current global model and train again"
    if round == 0:
        remedy = (
            "the first models differ, or their `context`: give all sites one seed or file, one dtype and one run id"
        )
    return (
        f"{who} began from the global model {base.hex()[:16]}…, those of round {round} begin from "
        f"{expected.hex()[:16]}…: {remedy}"
    )
