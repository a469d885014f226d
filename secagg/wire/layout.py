"""The ordered names, shapes, dtypes and offsets of the tensors of a model, and which of them are encrypted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import FormatError, LayoutError
from ..scheme.aggregation import Aggregation
from ..scheme.metric_names import is_metric
from ..scheme.patterns import matches
from ..scheme.sharing import shared
from ..scheme.tensors import FLOAT_DTYPES, LOCAL_DTYPES, describe, held, held_dtype, to_vector
from .cached import cached_property
from .choice import Described, choose
from .container import digest, fields_alone

#: What becomes of a tensor: its sum is encrypted, its sum is in the clear, or it never leaves the site.
ROLES = ("encrypted", "clear", "local")

MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 512
MAX_DIMENSIONS = 32
MAX_VALUES = 1 << 40

#: What wrappers put in front of all names of a network: DataParallel and the like, Opacus, torch.compile.
_WRAPPERS = ("module.", "_module.", "_orig_mod.")


@dataclass(frozen=True)
class TensorSpec:
    """What a layout says of one tensor.

    Parameters
    ----------
    names : tuple of str
        Its names, in the model's order: several where it is one tensor in memory under all of them (tied weights).
    dtype : str
        Such as ``"float32"``.
    shape : tuple of int
        Its shape.
    role : str
        One of `ROLES`.
    nonnegative : bool
        Whether it stays at or above 0 in the global model.
    """

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    role: str
    nonnegative: bool = False

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        floor = ", never negative" if self.nonnegative else ""
        tied = f", one tensor with {', '.join(map(repr, self.names[1:]))}" if len(self.names) > 1 else ""
        return f"{self.dtype}{list(self.shape)} {self.role}{floor}{tied}"


@dataclass(frozen=True)
class Layout:
    """An immutable description of a model; build it with `of` or `from_json`.

    Tensors that stay at the site by the configuration's ``stay`` are not in it: they may differ from site to site.
    """

    tensors: tuple[TensorSpec, ...]

    __getstate__ = fields_alone

    @classmethod
    def of(cls, state: Mapping[str, Any], config: Config | None = None) -> Layout:
        """Describe the tensors of a state dict.

        Tensors that share all their memory are one tensor. It stays at the site if any of its names is to stay, else it
        is encrypted if any of its names is to be encrypted.

        Parameters
        ----------
        state : mapping of str to torch.Tensor or numpy.ndarray
            In the order in which values are laid out.
        config : Config, optional
            Which float tensors are encrypted, and which tensors stay. Integer and bool tensors are local. Without it,
            all float tensors are encrypted.

        Raises
        ------
        LayoutError
            If the state is no mapping of names to dense tensors of a supported dtype, tensors share a part of their
            memory, names are those of a wrapped network, or no float tensor would be sent.
        ConfigError
            If a pattern of the configuration matches no tensor, or its ``encrypt`` encrypts nothing.
        """
        if not isinstance(state, Mapping):
            raise LayoutError(f"a state dict is needed, a mapping of names to tensors; got {type(state).__name__}")
        if len(state) > MAX_TENSORS:
            raise LayoutError(f"{len(state)} tensors; the format allows {MAX_TENSORS}")
        tensors = dict(state)  # of a mapping that makes them when asked, two must not be made at one place
        for name in tensors:
            if not _is_name(name):
                raise LayoutError(f"tensor name {name!r}: use printable text of 1 to {MAX_NAME_LENGTH} characters")
        refuse_wrapper(tensors)
        stays = () if config is None else config.stay
        at_home = {
            name
            for name, found in zip(tensors, matches(stays, tuple((name,) for name in tensors)), strict=True)
            if found
        }
        described: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, value in tensors.items():
            try:
                described[name] = describe(name, value)
            except LayoutError as error:
                if name in at_home:  # it may be anything
                    continue
                raise LayoutError(f"{error}; {_remedy(tensors, name)}") from error
            shape = described[name][1]
            if len(shape) > MAX_DIMENSIONS or not all(extent <= MAX_VALUES for extent in shape):
                raise LayoutError(
                    f"tensor {name!r} has shape {list(shape)}; the format allows {MAX_DIMENSIONS} dimensions"
                )
        if sum(math.prod(shape) for _, shape in described.values()) > MAX_VALUES:
            raise LayoutError(f"the model has more than {MAX_VALUES} values")
        floats = {name for name, (dtype, _) in described.items() if dtype in FLOAT_DTYPES}
        groups = shared({name: value for name, value in tensors.items() if name in floats or name in at_home})
        names = {group[0]: group for group in groups}
        tied = {name for group in groups for name in group[1:]}
        items = [Described(names.get(name, (name,)), *found) for name, found in described.items() if name not in tied]
        return cls._chosen(items, config, tuple((name,) for name in tensors))

    def under(self, config: Config) -> Layout:
        """Return what this layout must be under a configuration; the errors are those of `of`."""
        items = [Described(spec.names, spec.dtype, spec.shape) for spec in self.tensors]
        return self._chosen(items, config, None)

    @classmethod
    def _chosen(
        cls, items: Sequence[Described], config: Config | None, names: tuple[tuple[str, ...], ...] | None
    ) -> Layout:
        return cls(
            tuple(
                TensorSpec(item.names, item.dtype, item.shape, role, nonnegative)
                for item, role, nonnegative in choose(items, config, names)
            )
        )

    def widened(self) -> Layout:
        """Return the layout in which `secagg.site.GlobalModel` holds and sends the model: 16-bit floats as float32."""
        return Layout(tuple(replace(spec, dtype=held_dtype(spec.dtype)) for spec in self.tensors))

    def role(self, role: str) -> tuple[TensorSpec, ...]:
        """Return the tensors of one role, in order."""
        return tuple(spec for spec in self.tensors if spec.role == role)

    @cached_property
    def sent(self) -> tuple[TensorSpec, ...]:
        """The tensors that are sent, in order: the float tensors."""
        return tuple(spec for spec in self.tensors if spec.role != "local")

    @cached_property
    def names(self) -> frozenset[str]:
        """All names of all tensors."""
        return frozenset(name for spec in self.tensors for name in spec.names)

    def size(self, role: str) -> int:
        """Return the number of values of one role."""
        return sum(spec.size for spec in self.role(role))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the encrypted tensors, in order."""
        return [spec.shape for spec in self.role("encrypted")]

    def bounds(self, aggregation: Aggregation) -> dict[str, float]:
        """Return ``max_abs`` of each tensor that is sent, by its first name; errors as of `Aggregation.bounds_of`."""
        numbers = aggregation.bounds_of(tuple(spec.names for spec in self.sent))
        return {spec.name: number for spec, number in zip(self.sent, numbers, strict=True)}

    def base(self, state: Mapping[str, Any], context: str = "") -> bytes:
        """Return the digest of a global model, which says what training began from; 32 bytes. It needs no key.

        Meant for the model that a federation begins with; `Update.next_base` of each aggregate has those after it. Its
        integer and bool tensors, which are each site's own, do not count, nor do metrics.

        Parameters
        ----------
        state : mapping of str to torch.Tensor or numpy.ndarray
            The tensors of this layout; 16-bit floats are cast where it is `widened`.
        context : str
            What tells this run from others that begin with the same model under the same key: the run's id, say.

        Raises
        ------
        LayoutError
            If a tensor is missing, or `context` is no text.
        """
        model = tuple(spec for spec in self.tensors if not is_metric(spec.name))
        if len(model) < len(self.tensors):
            return Layout(model).base(state, context)
        missing = next((spec for spec in self.sent if spec.name not in state), None)
        if missing is not None:
            raise LayoutError(f"tensor {missing.name!r} ({missing}) is missing: give the state that the layout is of")
        if not isinstance(context, str):
            raise LayoutError(f"the context of a base is {context!r}; give text, such as the id of the run")
        run = context.encode("utf-8", "surrogatepass")
        vectors = (self._vector(spec, state[spec.name]) for spec in self.sent)
        parts = (memoryview(vector.view(np.uint8)) for vector in vectors)  # type: ignore[arg-type]
        where = len(run).to_bytes(8, "little") + run
        return digest(b"secagg model v2", bytes.fromhex(self.fingerprint), where, parts)

    @staticmethod
    def _vector(spec: TensorSpec, value: Any) -> NDArray[Any]:
        """Return the values of a tensor in the dtype of the layout."""
        dtype, _ = describe(spec.name, value)
        widens = dtype != spec.dtype and held_dtype(dtype) == spec.dtype
        return to_vector(held(spec.name, value) if widens else value)

    def difference(self, other: Layout) -> str | None:
        """Return in one line which tensor of `other` differs, and how; None if none does."""
        if self == other:
            return None
        orders = [[(spec.names, spec.dtype, spec.shape) for spec in layout.tensors] for layout in (self, other)]
        if orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]):
            expected, name = next((one[0][0], two[0][0]) for one, two in zip(*orders, strict=True) if one != two)
            return (
                f"only the order differs: {name!r} stands where {expected!r} is expected; give tensors in the order of "
                "the network's state_dict()"
            )
        mine, theirs = ({spec.name: spec for spec in layout.tensors} for layout in (self, other))
        aliases = {name: spec for spec in self.tensors for name in spec.names}
        for name, spec in theirs.items():
            if name not in mine:
                expected = f"it is one tensor with {aliases[name].name!r}" if name in aliases else "there is none"
                return f"tensor {name!r} is {spec}, expected: {expected}"
            if spec != mine[name]:
                return f"tensor {name!r} is {spec}, expected {mine[name]}"
        for name, spec in mine.items():
            if name not in theirs:
                return f"tensor {name!r} is missing, expected {spec}"
        raise AssertionError("layouts differ in nothing")

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE3 of the layout's JSON form, 64 hexadecimal digits."""
        return digest(json.dumps(self.to_json(), separators=(",", ":")).encode()).hex()

    def to_json(self) -> list[list[Any]]:
        """Return the JSON form: a list of ``[names, dtype, shape, role, nonnegative]``."""
        return [[list(spec.names), spec.dtype, list(spec.shape), spec.role, spec.nonnegative] for spec in self.tensors]

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        """Read the JSON form from the wire; anything unexpected raises `FormatError`."""
        if not isinstance(data, list) or len(data) > MAX_TENSORS:
            raise FormatError(f"the header's layout is no list of at most {MAX_TENSORS} tensors")
        tensors = tuple(_read_spec(item) for item in data)
        names = [name for spec in tensors for name in spec.names]
        if len(names) > MAX_TENSORS:
            raise FormatError(f"the header's layout has {len(names)} names; the format allows {MAX_TENSORS}")
        if len(set(names)) != len(names):
            raise FormatError("the header's layout names a tensor twice")
        if sum(spec.size for spec in tensors) > MAX_VALUES:
            raise FormatError(f"the header's layout has more than {MAX_VALUES} values")
        return cls(tensors)


def refuse_wrapper(names: Mapping[str, Any]) -> None:
    """Raise `LayoutError` if names are those of a wrapped network: other sites do not wrap it, or otherwise."""
    inner = [name for name in names if name != "n_averaged"]  # a counter of torch's AveragedModel
    prefix = next((prefix for prefix in _WRAPPERS if inner and all(name.startswith(prefix) for name in inner)), None)
    compiled = next((name for name in inner if "_orig_mod" in name.split(".")), None)
    if prefix is None and compiled is None:
        return
    fault = f"tensor {compiled!r} is named" if prefix is None else f"all names begin with {prefix!r},"
    raise LayoutError(
        f"{fault} as a wrapper does it (DataParallel, DistributedDataParallel, AveragedModel, torch.compile, Opacus): "
        "sites that wrap their network differ from those that do not. Give the state dict of the network inside, which "
        "secagg.site.network_state(network) returns; a network's own child of that name needs another one"
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()


def _remedy(values: Mapping[str, Any], name: str) -> str:
    """Return what to do about a value that is no tensor: leave it at home, unless all of it is a checkpoint."""
    blocks = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    inner = [key for key, block in blocks.items() if any(hasattr(value, "shape") for value in block.values())]
    if blocks:
        return f"this looks like a checkpoint: give the state dict in it, checkpoint[{(inner or list(blocks))[0]!r}]"
    return f"or keep it at the site: stay: [{name!r}] in the configuration"


def _read_spec(item: Any) -> TensorSpec:
    if not isinstance(item, list) or len(item) != 5:
        raise FormatError("a tensor of the header's layout is not [names, dtype, shape, role, nonnegative]")
    names, dtype, shape, role, nonnegative = item
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise FormatError("the header's layout has a name that is empty, too long or not printable")
    name = names[0]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_extent(extent) for extent in shape):
        raise FormatError(f"tensor {name!r} of the header's layout has no valid shape")
    if math.prod(extent or 1 for extent in shape) > MAX_VALUES:  # what NumPy refuses even where an extent is 0
        raise FormatError(f"tensor {name!r} of the header's layout has no valid shape: more than {MAX_VALUES} values")
    floating = isinstance(dtype, str) and dtype in FLOAT_DTYPES
    if not floating and not (isinstance(dtype, str) and dtype in LOCAL_DTYPES):
        raise FormatError(f"tensor {name!r} of the header's layout has no known dtype")
    if role not in ROLES or (role == "local") == floating:
        raise FormatError(f"tensor {name!r} of the header's layout has no valid role")
    if not isinstance(nonnegative, bool) or (nonnegative and not floating):
        raise FormatError(f"tensor {name!r} of the header's layout is neither nonnegative nor not")
    if len(names) > 1 and not floating:
        raise FormatError(f"tensor {name!r} of the header's layout is local, and has several names")
    return TensorSpec(tuple(names), dtype, tuple(shape), role, nonnegative)


def _is_extent(extent: object) -> bool:
    return isinstance(extent, int) and not isinstance(extent, bool) and 0 <= extent <= MAX_VALUES
