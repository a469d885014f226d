"""The ordered names, shapes, dtypes and offsets of the tensors of a model, and which of them are encrypted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from ..config import Encrypt
from ..errors import ConfigError, FormatError, LayoutError
from ..scheme.tensors import FLOAT_DTYPES, LOCAL_DTYPES, describe
from .container import digest, fields_alone

#: What becomes of a tensor: its sum is encrypted, its sum is in the clear, or it never leaves the site.
ROLES = ("encrypted", "clear", "local")

MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 512
MAX_DIMENSIONS = 32
MAX_VALUES = 1 << 40


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype, shape and role of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """An immutable description of a model; build it with `of` or `from_json`."""

    tensors: tuple[TensorSpec, ...]

    __getstate__ = fields_alone

    @classmethod
    def of(cls, state: Mapping[str, Any], encrypt: Encrypt) -> Layout:
        """Describe the tensors of a state dict.

        Parameters
        ----------
        state : mapping of str to torch.Tensor or numpy.ndarray
            In the order in which values are laid out.
        encrypt : Encrypt
            Which float tensors are encrypted. Integer and bool tensors are local.

        Raises
        ------
        LayoutError
            If the state is no mapping of names to dense tensors of a supported dtype.
        ConfigError
            If a pattern of `encrypt` matches no float tensor, or the choice encrypts nothing.
        """
        if not isinstance(state, Mapping):
            raise LayoutError(f"a state dict is needed, a mapping of names to tensors; got {type(state).__name__}")
        if len(state) > MAX_TENSORS:
            raise LayoutError(f"{len(state)} tensors; the format allows {MAX_TENSORS}")
        described: list[tuple[str, str, tuple[int, ...]]] = []
        for name, value in state.items():
            if not _is_name(name):
                raise LayoutError(f"tensor name {name!r}: use printable text of 1 to {MAX_NAME_LENGTH} characters")
            dtype, shape = describe(name, value)
            if len(shape) > MAX_DIMENSIONS or not all(extent <= MAX_VALUES for extent in shape):
                raise LayoutError(
                    f"tensor {name!r} has shape {list(shape)}; the format allows {MAX_DIMENSIONS} dimensions"
                )
            described.append((name, dtype, shape))
        if sum(math.prod(shape) for _, _, shape in described) > MAX_VALUES:
            raise LayoutError(f"the model has more than {MAX_VALUES} values")
        return cls._choose(described, encrypt)

    def with_encrypt(self, encrypt: Encrypt) -> Layout:
        """Return what the roles must be under `encrypt`; the errors are those of `of`."""
        return self._choose(((spec.name, spec.dtype, spec.shape) for spec in self.tensors), encrypt)

    @classmethod
    def _choose(cls, described: Iterable[tuple[str, str, tuple[int, ...]]], encrypt: Encrypt) -> Layout:
        described = list(described)
        chosen = _chosen([(name, shape) for name, dtype, shape in described if dtype in FLOAT_DTYPES], encrypt)
        return cls(
            tuple(
                TensorSpec(
                    name,
                    dtype,
                    shape,
                    "local" if dtype not in FLOAT_DTYPES else "encrypted" if name in chosen else "clear",
                )
                for name, dtype, shape in described
            )
        )

    def role(self, role: str) -> tuple[TensorSpec, ...]:
        """Return the tensors of one role, in order."""
        return tuple(spec for spec in self.tensors if spec.role == role)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the float tensors."""
        return tuple(spec.name for spec in self.tensors if spec.role != "local")

    def size(self, role: str) -> int:
        """Return the number of values of one role."""
        return sum(spec.size for spec in self.role(role))

    def difference(self, other: Layout) -> str | None:
        """Return in words the first way in which `other` differs, or None."""
        for mine, theirs in zip(self.tensors, other.tensors, strict=False):
            if mine != theirs:
                return f"tensor {theirs.name!r} {theirs.dtype}{list(theirs.shape)} {theirs.role}, expected " + (
                    f"{mine.name!r} {mine.dtype}{list(mine.shape)} {mine.role}"
                )
        if len(self.tensors) != len(other.tensors):
            return f"{len(other.tensors)} tensors, expected {len(self.tensors)}"
        return None

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE3 of the layout, 64 hexadecimal digits."""
        lines = [f"{spec.name}\0{spec.dtype}\0{list(spec.shape)}\0{spec.role}\n" for spec in self.tensors]
        return digest("".join(lines).encode()).hex()

    def to_json(self) -> list[list[Any]]:
        """Return the JSON form: a list of ``[name, dtype, shape, role]``."""
        return [[spec.name, spec.dtype, list(spec.shape), spec.role] for spec in self.tensors]

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        """Read the JSON form from the wire; anything unexpected raises `FormatError`."""
        if not isinstance(data, list) or len(data) > MAX_TENSORS:
            raise FormatError(f"the header's layout is no list of at most {MAX_TENSORS} tensors")
        tensors = tuple(_read_spec(item) for item in data)
        if len({spec.name for spec in tensors}) != len(tensors):
            raise FormatError("the header's layout names a tensor twice")
        if sum(spec.size for spec in tensors) > MAX_VALUES:
            raise FormatError(f"the header's layout has more than {MAX_VALUES} values")
        return cls(tensors)


def _chosen(floats: list[tuple[str, tuple[int, ...]]], encrypt: Encrypt) -> frozenset[str]:
    """Return the names of the float tensors that `encrypt` chooses."""
    names = [name for name, _ in floats]
    if encrypt.choice == "all":
        return frozenset(names)
    if encrypt.choice == "conv":
        chosen = {name for name, shape in floats if len(shape) >= 3}
    elif encrypt.choice == "first-middle-last":
        modules = list(dict.fromkeys(_module(name) for name in names))
        picked = {modules[0], modules[len(modules) // 2], modules[-1]} if modules else set()
        chosen = {name for name in names if _module(name) in picked}
    else:
        for pattern in (*encrypt.include, *encrypt.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"encrypt: pattern {pattern!r} matches no tensor; `secagg inspect` lists the names")
        include = encrypt.include or ("*",)
        chosen = {
            name
            for name in names
            if any(fnmatchcase(name, pattern) for pattern in include)
            and not any(fnmatchcase(name, pattern) for pattern in encrypt.exclude)
        }
    if not chosen:
        raise ConfigError(f"encrypt {encrypt.to_value()!r} would encrypt no tensor of this model")
    return frozenset(chosen)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()


def _read_spec(item: Any) -> TensorSpec:
    if not isinstance(item, list) or len(item) != 4:
        raise FormatError("a tensor of the header's layout is not [name, dtype, shape, role]")
    name, dtype, shape, role = item
    if not _is_name(name):
        raise FormatError("the header's layout has a name that is empty, too long or not printable")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_extent(extent) for extent in shape):
        raise FormatError(f"tensor {name!r} of the header's layout has no valid shape")
    if math.prod(extent or 1 for extent in shape) > MAX_VALUES:  # what NumPy refuses even where an extent is 0
        raise FormatError(f"tensor {name!r} of the header's layout has no valid shape: more than {MAX_VALUES} values")
    floating = isinstance(dtype, str) and dtype in FLOAT_DTYPES
    if not floating and not (isinstance(dtype, str) and dtype in LOCAL_DTYPES):
        raise FormatError(f"tensor {name!r} of the header's layout has no known dtype")
    if role not in ROLES or (role == "local") == floating:
        raise FormatError(f"tensor {name!r} of the header's layout has no valid role")
    return TensorSpec(name, dtype, tuple(shape), role)


def _is_extent(extent: object) -> bool:
    return isinstance(extent, int) and not isinstance(extent, bool) and 0 <= extent <= MAX_VALUES
