"""The task that a site trains: what its own code must have, and how it is called."""

from __future__ import annotations

import inspect
import numbers
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, LayoutError, TaskError, show
from ..setup.progress import Report
from .network import load_network, network_state


class Task(Protocol):
    """What a site trains. A task may also have ``validate() -> dict[str, float]``: metrics of `model`.

    Attributes
    ----------
    model : torch.nn.Module, or dict of str to torch.Tensor or numpy.ndarray
        Holds the global model whenever `train` or ``validate`` is called: that is written into its tensors, so that
        networks and optimisers may hold them, too. It is made anew when a site starts again, and must then be the same
        at all sites: they begin from it. Training changes it in place; the arrays of a dict may be replaced as well.
    examples : float
        Number of training examples: the private weight of this site in the mean. While it is 0, rounds are skipped.
    """

    model: Any
    examples: float

    def train(self, round: int) -> None:
        """Train `model` for one round; rounds count from 0.

        With a second parameter `report` it gets a callable there, to be called with the amount done and the total.
        """


class CheckedTask:
    """A task that has what it needs, and whose own errors are told apart from those of secagg.

    Parameters
    ----------
    name : str
        For messages.
    task : Task
        The task.

    Raises
    ------
    ConfigError
        If it lacks something, or has something else than it must; the message names the attribute.
    """

    def __init__(self, name: str, task: Task) -> None:
        self._name, self._task = name, task
        self._reports = "report" in _parameters(getattr(task, "train", None))
        report = {"report": None} if self._reports else {}
        self._check_method("train", "train(round) or train(round, report) trains its model for one round", 0, **report)
        if hasattr(task, "validate"):
            self._check_method("validate", "validate() returns metrics of its model")
        model = self._model
        # Training may leave other dtypes in a dict, as NumPy's arithmetic does; what the model is of stays.
        self._patterns = {} if _is_module(model) else {name: _pattern(value) for name, value in model.items()}
        _ = self.examples

    @property
    def validates(self) -> bool:
        """Whether it measures anything."""
        return getattr(self._task, "validate", None) is not None

    @property
    def examples(self) -> float:
        """The private weight, 0 to skip rounds; `ConfigError` if it is no number."""
        examples = self._get("examples", "its number of training examples, which is its weight in the mean")
        if isinstance(examples, bool) or not isinstance(examples, numbers.Real):
            raise ConfigError(
                f"the task {self._name} has the attribute examples {show(examples)}; give its number of training "
                "examples"
            )
        return examples  # type: ignore[return-value]  # a float to typing, as an int is

    @property
    def state(self) -> dict[str, Any]:
        """The tensors of its model as they are, in the model's own dtypes, under its names without wrappers."""
        model = self._model
        if _is_module(model):
            return network_state(model)
        patterns = self._patterns
        return {name: _cast(value, patterns[name]) if name in patterns else value for name, value in model.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put a global model into its model.

        Raises
        ------
        LayoutError
            If its model has become another one.
        """
        model = self._model
        if not _is_module(model):
            for name, value in state.items():
                value = _cast(value, self._patterns[name])
                if not _fill(model.get(name), value):
                    model[name] = value
            return
        try:
            load_network(model, state)
        except LayoutError as error:
            raise LayoutError(f"the model of the task {self._name} is another one than before: {error}") from error

    def train(self, round: int, report: Report) -> None:
        """Train for one round, and let it report how far it is; `TaskError` if its code raises anything."""
        with user_code(f"train of the task {self._name}"):
            self._task.train(round, **({"report": report} if self._reports else {}))

    def validate(self) -> dict[str, float]:
        """Return metrics of what its model holds; none if it has none.

        Raises
        ------
        TaskError
            If its code raises anything.
        ConfigError
            If it returns something else.
        """
        validate: Callable[[], Any] | None = getattr(self._task, "validate", None)
        if validate is None:
            return {}
        with user_code(f"validate of the task {self._name}"):
            metrics = validate()
        try:
            return {str(name): float(value) for name, value in metrics.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"validate of the task {self._name} returned {show(metrics)}; return a dict of names to numbers"
            ) from error

    @property
    def _model(self) -> Any:
        model = self._get("model", "a torch.nn.Module, or a dict of names to arrays or tensors")
        if not _is_module(model) and not isinstance(model, MutableMapping):
            raise ConfigError(
                f"the task {self._name} has {type(model).__name__!r} as its model; a torch.nn.Module is needed, or a "
                "dict of names to arrays or tensors"
            )
        return model

    def _get(self, attribute: str, what: str) -> Any:
        with user_code(f"{attribute} of the task {self._name}"):  # which may be a property
            if hasattr(self._task, attribute):
                return getattr(self._task, attribute)
        raise ConfigError(f"the task {self._name} has no attribute {attribute!r}: give it {what}")

    def _check_method(self, method: str, what: str, *arguments: Any, **keywords: Any) -> None:
        function = getattr(self._task, method, None)
        if not callable(function):
            raise ConfigError(f"the task {self._name} has no method {method!r}: {what}")
        try:
            inspect.signature(function).bind(*arguments, **keywords)
        except TypeError as error:
            raise ConfigError(f"the task {self._name} has {method}{inspect.signature(function)}: {what}") from error


@contextmanager
def user_code(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a user's own code raises in this block, also if it exits, into `TaskError`, whose cause it is.

    Parameters
    ----------
    what : str
        What raises it, for the message.
    passing : tuple of type
        What is let through as it is.
    """
    try:
        yield
    except passing:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"{what} raised {type(error).__name__}: {error}; what this site has kept is safe: mend it, and start again"
        ) from error


def _parameters(function: Any) -> Collection[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()


def _is_module(model: Any) -> bool:
    return hasattr(model, "state_dict") and hasattr(model, "load_state_dict")


def _pattern(value: Any) -> Any:
    """Return an empty tensor of the dtype, library and device of `value`, None of what is no tensor."""
    if hasattr(value, "new_empty"):  # torch's only
        return value.detach().new_empty(0)
    return np.empty(0, value.dtype) if isinstance(value, (np.ndarray, np.generic)) else None


def _cast(value: Any, pattern: Any) -> Any:
    """Return a tensor in the dtype and on the device of a pattern, unless it is of another library or kind.

    What is left as it is, such as a fraction where a count was, `GlobalModel` refuses by name.
    """
    if pattern is None or hasattr(value, "new_empty") != hasattr(pattern, "new_empty"):
        return value
    if not isinstance(pattern, np.ndarray):
        fits = sys.modules["torch"].can_cast(value.dtype, pattern.dtype)
        return value.to(pattern.device, pattern.dtype if fits else value.dtype)
    try:
        array = np.asanyarray(value)
    except ValueError:  # a list that is no array
        return value
    return array.astype(pattern.dtype, copy=False) if np.can_cast(array.dtype, pattern.dtype, "same_kind") else array


def _fill(place: Any, value: Any) -> bool:
    """Copy a tensor into one that is like it; return False if that one is not, or cannot be written to."""
    kind = type(value) if isinstance(value, np.ndarray) else sys.modules["torch"].Tensor
    if not isinstance(place, kind) or (place.shape, place.dtype) != (value.shape, value.dtype):
        return False
    if isinstance(place, np.ndarray):
        if place.flags.writeable:
            place[...] = value
        return place.flags.writeable
    try:
        place.detach().copy_(value)
    except RuntimeError:  # an expanded tensor, which has fewer values in memory
        return False
    return True
