"""The header of an update, aggregate or model, and the frames that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, DuplicateError, FormatError, LayoutError, SecAggError, show
from ..scheme.aggregation import MAX_CLIENTS, Aggregation
from ..scheme.calibration import CalibrationCodec
from ..scheme.codec import codec_for
from ..scheme.params import LatticeParams, Params, as_int
from ..scheme.ring import CLEAR_BLOCK_SIZE
from ..scheme.tensors import FLOAT_DTYPES
from ..scheme.word_tags import element_count
from .cached import cached_property
from .container import (
    DIGEST_NBYTES,
    HEAD_EXTRA_NBYTES,
    MAX_FRAME_NBYTES,
    MAX_HEADER_NBYTES,
    check_keys,
    fields_alone,
    pack_head,
    read_hex,
    unpack_head,
)
from .layout import Layout
from .tail import tail_nbytes

NONCE_NBYTES = 32
MAX_SITE_LENGTH = 64
MAX_ROUND = 1 << 32
MAX_EPOCH = 1 << 32

#: A block of a model: so many bytes of its tensors, encrypted, and the 16 bytes that authenticate them (AES-256-GCM).
MODEL_BLOCK_NBYTES = 1 << 16
MODEL_BLOCK_PLAIN_NBYTES = MODEL_BLOCK_NBYTES - 16

#: What a sum of several is called, by what one site sends.
SUMS = {"update": "aggregate", "calibration": "scales"}
_SENT = {summed: sent for sent, summed in SUMS.items()}

_FIELDS = frozenset(
    [
        "aggregation",
        "base",
        "calibration",
        "contributions",
        "epoch",
        "key",
        "layout",
        "manifest",
        "params",
        "round",
    ]
)
_AGREED = ("max_abs", "max_clients", "max_weight", "precision")


@dataclass(frozen=True)
class Contribution:
    """One site's part of an update or aggregate: its name and the 32 random bytes of this encryption."""

    site: str
    nonce: bytes


@dataclass(frozen=True)
class Frame:
    """Where a frame lies: `blocks` whole blocks from `first_block` of one `section`, `nbytes` of payload.

    `offset` is the place of the payload, counted from the end of the head.
    """

    index: int
    section: str
    first_block: int
    blocks: int
    nbytes: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What an update, aggregate or model says of itself before its frames.

    Parameters
    ----------
    kind : str
        ``"update"`` (one contribution) or ``"aggregate"``, the sum of several; ``"calibration"`` or ``"scales"``, the
        sum of several; or ``"model"``: the global model, stored for sites that come back, by the site of its one
        contribution.
    round : int
        Round of the federation, from 0; of a model the round that begins from it.
    epoch : int
        Epoch of the key, from 0.
    key : str
        Fingerprint of the key, 64 hexadecimal digits.
    params : Params
        Scheme parameters.
    aggregation : Aggregation
        What sites must agree on for a sum to mean anything: `max_abs`, `max_clients`, `max_weight`, `precision`.
        (`min_clients` is each party's own demand and is not sent.)
    layout : Layout
        The tensors and their roles.
    contributions : tuple of Contribution
        Who is in the sum.
    base : bytes, optional
        Digest of the global model that training began from, or of the model itself; 32 bytes, None where none was
        given.
    manifest : bytes, optional
        Digest of the project manifest under which it was made, 32 bytes, None where there is no project. A model has
        none: it outlives manifests.
    calibration : bytes, optional
        Of updates and aggregates whose scales are measured: what names these scales, 32 bytes. The digest of the
        container of kind ``"scales"``, or a keyed one of scales that follow from an earlier round.
    """

    kind: str
    round: int
    epoch: int
    key: str
    params: Params
    aggregation: Aggregation
    layout: Layout
    contributions: tuple[Contribution, ...]
    base: bytes | None = None
    manifest: bytes | None = None
    calibration: bytes | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "aggregation", replace(self.aggregation, min_clients=2))

    __getstate__ = fields_alone

    @property
    def site(self) -> str:
        """Site of the only contribution of an update."""
        return self.contributions[0].site

    @property
    def summed(self) -> bool:
        """Whether it is of a sum."""
        return self.kind in _SENT

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites in the sum."""
        return tuple(contribution.site for contribution in self.contributions)

    @cached_property
    def head(self) -> bytes:
        """The packed head: what is sent first."""
        agreed = self.aggregation.to_dict()
        header = {
            "aggregation": {name: agreed[name] for name in _AGREED},
            "base": None if self.base is None else self.base.hex(),
            "calibration": None if self.calibration is None else self.calibration.hex(),
            "contributions": [[item.site, item.nonce.hex()] for item in self.contributions],
            "epoch": self.epoch,
            "key": self.key,
            "layout": self.layout.to_json(),
            "manifest": None if self.manifest is None else self.manifest.hex(),
            "params": self.params.to_dict(),
            "round": self.round,
        }
        return pack_head(self.kind, header)

    @cached_property
    def common(self) -> bytes:
        """Digest of what a sum has in common with the updates in it: all of their heads but contributions."""
        return replace(self, kind=_SENT.get(self.kind, self.kind), contributions=()).head[-DIGEST_NBYTES:]

    @classmethod
    def from_head(cls, head: bytes) -> Header:
        """Read and validate a head.

        Raises
        ------
        FormatError
            If anything in it is not as docs/wire-format.md says (`DigestError` if a byte changed).
        DuplicateError
            If a site or a nonce is listed twice.
        """
        kind, data = unpack_head(head)
        if kind not in (*SUMS, *_SENT, "model"):
            raise FormatError(f"this is a {kind}, not an update, aggregate, calibration or model")
        check_keys(data, _FIELDS, "the header", f"make the {kind} again with this one")
        try:
            params = Params.from_dict(_mapping(data["params"], "params"))
            agreed = _mapping(data["aggregation"], "aggregation")
            if agreed.keys() != set(_AGREED):
                raise FormatError(f"the header's aggregation has other keys than {', '.join(_AGREED)}")
            aggregation = Aggregation(min_clients=2, **agreed)
            round, epoch = check_round(data["round"]), check_epoch(data["epoch"])
            codec_for(params, aggregation)  # what cannot be summed has no frames either
        except ConfigError as error:
            raise FormatError(f"the header's configuration is invalid: {error}") from error
        header = cls(
            kind=kind,
            round=round,
            epoch=epoch,
            key=read_hex(data["key"], 32, "the header's key fingerprint").hex(),
            params=params,
            aggregation=aggregation,
            layout=Layout.from_json(data["layout"]),
            contributions=_contributions(data["contributions"], kind),
            base=_digest(data["base"], "base"),
            manifest=_digest(data["manifest"], "manifest"),
            calibration=_digest(data["calibration"], "calibration"),
        )
        if (header.calibration is not None) != (kind in ("update", "aggregate") and aggregation.calibrated):
            raise FormatError(f"the header of this {kind} names scales that it has not, or none although it has some")
        if kind in ("calibration", "scales") and aggregation.precision != "auto":
            raise FormatError(f"kind {kind!r} is of precision 'auto', not of {aggregation.precision!r}")
        if kind == "model" and header.manifest is not None:
            raise FormatError("the header of a model names a manifest, which a model outlives")
        if header.head != head:
            raise FormatError("the header is not in canonical form")
        return header

    def check_room(self) -> None:
        """Raise `LayoutError` unless the head of the sum of ``max_clients`` such updates has room for all of them."""
        longest = Contribution("x" * MAX_SITE_LENGTH, bytes(NONCE_NBYTES))
        clients = self.aggregation.max_clients
        most = replace(
            self,
            round=MAX_ROUND - 1,
            epoch=MAX_EPOCH - 1,
            contributions=(longest,),
            base=bytes(DIGEST_NBYTES),
            manifest=bytes(DIGEST_NBYTES),
            calibration=bytes(DIGEST_NBYTES),
        )
        others = (clients - 1) * len(f',["{longest.site}","{longest.nonce.hex()}"]')
        try:
            fits = len(most.head) - HEAD_EXTRA_NBYTES + others <= MAX_HEADER_NBYTES
        except FormatError:  # not even that of one update
            fits = False
        if not fits:
            raise LayoutError(
                f"names and shapes of {len(self.layout.tensors)} tensors, and a list of max_clients {clients} sites,"
                f" do not fit the header of a sum, {MAX_HEADER_NBYTES} bytes: join tensors, shorten their names, keep "
                "some at the site (stay), or lower max_clients"
            )

    def of(self, contribution: Contribution) -> Header:
        """Return the header that what one site has given to this sum must have had; of an update its own."""
        return replace(self, kind=_SENT.get(self.kind, self.kind), contributions=(contribution,))

    @property
    def model_nbytes(self) -> int:
        """Bytes of all float tensors, and of a bin each where the next scales follow from the last ones."""
        bins = len(self.layout.sent) if self.aggregation.precision == "previous" else 0
        return bins + sum(spec.size * np.dtype(FLOAT_DTYPES[spec.dtype]).itemsize for spec in self.layout.sent)

    def blocks(self, section: str) -> int:
        """Return the number of blocks of ``"encrypted"`` (it begins with the weight), ``"clear"`` or ``"model"``."""
        encrypted = section == "encrypted"
        if (section == "model") != (self.kind == "model"):
            return 0
        if section == "model":
            return -(-self.model_nbytes // MODEL_BLOCK_PLAIN_NBYTES)
        if self.kind in ("calibration", "scales"):
            return CalibrationCodec(self.params, self.aggregation, len(self.layout.sent)).blocks if encrypted else 0
        if encrypted:
            return codec_for(self.params, self.aggregation).blocks(self.layout.shapes, len(self.layout.sent))
        return -(-self.layout.size("clear") // CLEAR_BLOCK_SIZE)

    @cached_property
    def _sections(self) -> tuple[_Section, ...]:
        if self.kind == "model":
            return (_Section("model", self.blocks("model"), MODEL_BLOCK_NBYTES),)
        encrypted = _Section("encrypted", self.blocks("encrypted"), self.params.block_nbytes)
        clear = _Section("clear", self.blocks("clear"), 8 * CLEAR_BLOCK_SIZE)
        for section in (encrypted, clear):
            if section.frame_blocks == 0:
                raise FormatError(f"a block of {section.block_nbytes} bytes does not fit a frame of {MAX_FRAME_NBYTES}")
        return encrypted, clear

    @property
    def frame_count(self) -> int:
        """Number of frames."""
        return sum(section.frames for section in self._sections)

    @property
    def frames(self) -> Iterator[Frame]:
        """Every frame, in the order of the file: the encrypted blocks, then the clear ones."""
        index = offset = 0
        for section in self._sections:
            for first in range(0, section.blocks, section.frame_blocks):
                blocks = min(section.frame_blocks, section.blocks - first)
                yield Frame(index, section.name, first, blocks, blocks * section.block_nbytes, offset)
                index += 1
                offset += blocks * section.block_nbytes + DIGEST_NBYTES

    @property
    def nbytes(self) -> int:
        """Exact size in bytes of the whole update, head, digests and tail included."""
        return len(self.head) + self.tail_offset + self.tail_nbytes

    @property
    def tail_offset(self) -> int:
        """Place of the tail, counted from the end of the head."""
        return sum(section.blocks * section.block_nbytes + section.frames * DIGEST_NBYTES for section in self._sections)

    @property
    def tag_count(self) -> int:
        """Number of tags in the tail: that of integers, and those of ciphertext words, a few for each data prime."""
        if self.kind == "model":
            return 0
        bits = self.params.data_bit_sizes if isinstance(self.params, LatticeParams) else ()
        return 1 + sum(map(element_count, bits))

    @property
    def tail_nbytes(self) -> int:
        """Size of the tail."""
        return tail_nbytes(self.tag_count, len(self.contributions))

    @property
    def sum_nbytes(self) -> int:
        """Size of the sum of ``max_clients`` of these but for its head: what is allocated when the first is added."""
        return self.tail_offset + tail_nbytes(self.tag_count, self.aggregation.max_clients)


@dataclass(frozen=True)
class _Section:
    name: str
    blocks: int
    block_nbytes: int

    @property
    def frame_blocks(self) -> int:
        return MAX_FRAME_NBYTES // self.block_nbytes

    @property
    def frames(self) -> int:
        return -(-self.blocks // self.frame_blocks)


def check_epoch(epoch: object) -> int:
    """Return a valid epoch; anything but a whole number from 0 raises `ConfigError`."""
    number = as_int(epoch)
    if number is None or not 0 <= number < MAX_EPOCH:
        raise ConfigError(f"epoch is {show(epoch)}; epochs are whole numbers from 0 to 2**32 - 1")
    return number


def check_round(round: object) -> int:
    """Return a valid number of a round; anything but a whole number from 0 to 2**32 - 1 raises `ConfigError`."""
    number = as_int(round)
    if number is None or not 0 <= number < MAX_ROUND:
        raise ConfigError(f"round is {show(round)}; rounds are whole numbers from 0 to 2**32 - 1")
    return number


def check_base(base: object) -> bytes:
    """Return a valid digest of what training began from; anything but 32 bytes raises `ConfigError`."""
    if not isinstance(base, bytes) or len(base) != DIGEST_NBYTES:
        raise ConfigError(f"base is {show(base)}; give 32 bytes, from Client.base() or Update.next_base")
    return base


def check_calibration(name: object) -> bytes:
    """Return a valid name of scales; anything but 32 bytes raises `ConfigError`."""
    if not isinstance(name, bytes) or len(name) != DIGEST_NBYTES:
        raise ConfigError(f"calibration is {show(name)}; give 32 bytes, from Update.digest() of the scales")
    return name


def check_nonce(nonce: object) -> bytes:
    """Return a valid nonce of an update; anything but 32 bytes raises `ConfigError`."""
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_NBYTES:
        raise ConfigError(f"the nonce of an update is {show(nonce)}; give 32 bytes, from Update.nonce")
    return nonce


def check_site(name: object, what: str = "site") -> str:
    """Return a valid site name: 1 to 64 letters, digits, dots, hyphens or underscores, not dots alone.

    Raises
    ------
    ConfigError
        If it is anything else. The same name stands in the site's certificate.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_SITE_LENGTH or not name.isascii():
        raise ConfigError(f"{what} name {show(name)}: use 1 to {MAX_SITE_LENGTH} letters, digits, '.', '-' or '_'")
    if not all(char.isalnum() or char in ".-_" for char in name) or not name.strip("."):
        raise ConfigError(f"{what} name {show(name)}: use letters, digits, '.', '-' and '_' only, and not dots alone")
    return name


def _contributions(data: Any, kind: str) -> tuple[Contribution, ...]:
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_CLIENTS:
        raise FormatError(f"the header's contributions are no list of 1 to {MAX_CLIENTS}")
    if kind not in _SENT and len(data) != 1:
        raise FormatError(
            f"{'an' if kind == 'update' else 'a'} {kind} has one contribution, this one lists {len(data)}"
        )
    result = []
    for item in data:
        if not isinstance(item, list) or len(item) != 2:
            raise FormatError("a contribution of the header is not [site, nonce]")
        try:
            site = check_site(item[0])
        except SecAggError as error:
            raise FormatError(f"the header's contributions: {error}") from error
        result.append(Contribution(site, read_hex(item[1], NONCE_NBYTES, "the header's nonce")))
    refuse_duplicates(result)
    return tuple(result)


def refuse_duplicates(contributions: list[Contribution]) -> None:
    """Raise `DuplicateError` if a site or a nonce is listed twice."""
    for name, values in (
        ("site", [item.site for item in contributions]),
        ("nonce", [item.nonce.hex() for item in contributions]),
    ):
        if len(set(values)) != len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise DuplicateError(f"{name} {twice} contributes twice to the round; each contributes once")


def _digest(value: Any, name: str) -> bytes | None:
    return None if value is None else read_hex(value, DIGEST_NBYTES, f"the header's {name}")


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"the header's {name} is not an object")
    return value
