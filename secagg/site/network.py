"""The tensors of a network under the names that all sites have for them, whatever wraps it, or a part of it, at one.

``DataParallel``, ``torch.compile`` and their like put a part of their own into the names of what they wrap, such as
``module.`` or ``encoder._orig_mod.``. That part is left out where the module it stands for is such a wrapper, never by
its text alone: a network may have a child called ``module``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..errors import LayoutError

#: Wrappers, by the library and name of their class, and the name of the child that they wrap. Known by name, so that
#: neither library is imported for it.
_WRAPPERS = {
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "OptimizedModule"): "_orig_mod",  # what torch.compile returns
    ("torch", "AveragedModel"): "module",
    (
        "torch",
        "ActivationWrapper",
    ): "_checkpoint_wrapped_module",  # this one and the next leave their part out themselves
    ("torch", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("opacus", "AbstractGradSampleModule"): "_module",
    ("opacus", "GradSampleModule"): "_module",
    ("opacus", "DifferentiallyPrivateDistributedDataParallel"): "module",
}

_SHOWN = 5

#: Characters of what torch says.
_MAX_REASON = 400


def network_state(network: Any) -> dict[str, Any]:
    """Return the state dict of a network without its wrappers: the same at sites that wrap it and at those that do not.

    Parameters
    ----------
    network : torch.nn.Module
        It, and any module in it, may be wrapped, more than once: by ``DataParallel``, ``DistributedDataParallel``,
        ``torch.compile``, ``AveragedModel``, or Opacus' ``GradSampleModule``.

    Returns
    -------
    dict of str to torch.Tensor
        The very tensors of ``network.state_dict()``, of any shapes and dtypes, in the order of the network without
        wrappers, and what else it has there (``_extra_state``). A wrapper's own tensors, such as ``n_averaged``, are
        left out.

    Raises
    ------
    LayoutError
        If it is no network, or two tensors would have the same name.
    """
    state = _state_dict(network)
    return {name: state[wrapped] for name, wrapped in _names(network, state).items()}


def load_network(network: Any, state: Mapping[str, Any]) -> None:
    """Copy the tensors of `network_state` into a network, as its ``load_state_dict`` does: to its dtypes and devices.

    Parameters
    ----------
    network : torch.nn.Module
        Wrapped or not; a wrapper's own tensors stay as they are.
    state : mapping of str to torch.Tensor
        All tensors of the network, in any order, under its names without wrappers.

    Raises
    ------
    LayoutError
        If a tensor is missing, there is one too many, or one is of another shape: then nothing was copied. If
        ``load_state_dict`` refuses one for another reason.
    """
    into = _state_dict(network)
    names = _names(network, into)
    fault = _fault(state, {name: into[wrapped] for name, wrapped in names.items()})
    if fault:
        raise LayoutError(f"the tensors to load are of another network: {fault}")
    for name, wrapped in names.items():
        into[wrapped] = state[name]
    try:
        network.load_state_dict(into)
    except RuntimeError as error:
        if any(getattr(value, "is_inference", bool)() for value in _state_dict(network).values()):
            raise LayoutError(
                "the network was made or loaded under torch.inference_mode, and its tensors cannot be changed outside: "
                "make it outside, and use torch.no_grad() where it is loaded"
            ) from error
        text = " ".join(str(error).split())  # one line a tensor
        raise LayoutError(f"the network refuses its tensors: {text[:_MAX_REASON]}") from error


def _state_dict(network: Any) -> Any:
    if not hasattr(network, "state_dict") or not hasattr(network, "load_state_dict"):
        raise LayoutError(f"a network is needed, a torch.nn.Module; got {type(network).__name__}")
    return network.state_dict()


def _names(network: Any, state: Iterable[str]) -> dict[str, str]:
    """Return the names of a network without wrappers, in order, each with the one that its state dict has."""
    names: dict[str, str] = {}
    for wrapped in state:
        name = _without_wrappers(network, wrapped)
        if name in names:
            raise LayoutError(
                f"tensors {names[name]!r} and {wrapped!r} of the network would both be {name!r} without the wrappers: "
                "rename one"
            )
        if name is not None:
            names[name] = wrapped
    return names


def _without_wrappers(module: Any, name: str) -> str | None:
    """Return the name of a tensor of a module without the parts of wrappers; None if it is a wrapper's own."""
    kept = []
    parts = name.split(".")
    while parts:
        wrapped = _wrapped_child(module)
        if wrapped is None or parts[0] == wrapped:
            part = parts.pop(0)
            if wrapped is None:
                kept.append(part)
            module = _child(module, part)
        elif parts[0] in module._parameters or parts[0] in module._buffers:
            return None
        else:  # it has left its part out itself
            module = _child(module, wrapped)
    return ".".join(kept)


def _wrapped_child(module: Any) -> str | None:
    """Return the name of the child that a module wraps; None if it is no wrapper."""
    for kind in type(module).__mro__:
        child = _WRAPPERS.get((kind.__module__.partition(".")[0], kind.__name__))
        if child is not None and _child(module, child) is not None:
            return child
    return None


def _child(module: Any, name: str) -> Any:
    children: Any = getattr(module, "_modules", ())  # a scripted module's knows no get()
    if name not in children:
        return None
    return children[name]


def _fault(state: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return in one line what a state lacks, has too many, or has in another shape; empty if nothing."""
    shapes = {name: (_shape(state[name]), _shape(value)) for name, value in expected.items() if name in state}
    faults = {
        "it lacks": [repr(name) for name in expected if name not in state],
        "it also has": [repr(name) for name in state if name not in expected],
        "shapes differ:": [
            f"{name!r} {list(given)}, the network has {list(own)}"
            for name, (given, own) in shapes.items()
            if given is not None and own is not None and given != own
        ],
    }
    return "; ".join(f"{what} {_list(items)}" for what, items in faults.items() if items)


def _list(items: Collection[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join([*list(items)[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor; None of what has none, such as a lazy parameter, which takes any."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):
        return None
