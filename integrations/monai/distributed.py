"""Several processes that train one network, as ``DistributedDataParallel`` does: rank 0 is the site, others follow it.

Whatever fails at one rank is raised at all of them, so that none waits for another that is gone. In one process all of
this is plain calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import distributed

import secagg.errors
from secagg.errors import LayoutError, SecAggError, StateError
from secagg.site import GlobalModel, load_network, network_state

_Result = TypeVar("_Result")


def several() -> bool:
    """Return whether there are other ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Return the number of this process."""
    return distributed.get_rank() if several() else 0


def together(action: Callable[[], _Result]) -> list[_Result]:
    """Do something at each rank, and return at all of them what has come out, by rank.

    Raises
    ------
    Exception
        If it has failed at a rank: there what it raised, and at the others the same if it is a `SecAggError`, else a
        `StateError` that names it.
    """
    if not several():
        return [action()]
    result, failed = None, None
    try:
        result = action()
    except Exception as error:  # noqa: BLE001  raised when the others know of it
        failed = error
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, (result, _telling(failed)))
    if failed is not None:
        raise failed
    for number, (_, told) in enumerate(every):
        if told is not None:
            told.add_note(f"raised at rank {number}")
            raise told
    return [result for result, _ in every]


def load_first(network: torch.nn.Module) -> None:
    """Copy into the network of each rank all tensors that the network of rank 0 holds.

    Raises
    ------
    LayoutError
        At all ranks, if one has another network.
    """
    if not several():
        return
    every = together(lambda: _described(network))
    for number, described in enumerate(every):
        for theirs, ours in zip_longest(described, every[0], fillvalue="nothing"):
            if theirs != ours:
                raise LayoutError(
                    f"rank {number} trains another network than rank 0: it has {theirs} in the place of {ours}"
                )
    first = dict(_of_first(_tensors(network)))
    together(lambda: load_network(network, network_state(network) | first) if rank() else None)


def differs(network: torch.nn.Module, model: GlobalModel | None) -> tuple[int, str, float] | None:
    """Return the rank, the tensor and the largest difference from the global model; None if all ranks hold that.

    Parameters
    ----------
    network : torch.nn.Module
        That of this rank.
    model : GlobalModel or None
        At rank 0; the others are held against what is there.
    """

    def at_first() -> tuple[tuple[str, float] | None, list[str]]:
        if model is None:
            return None, []
        return model.differs(network), [name for spec in model.layout.sent for name in spec.names]

    found, names = together(at_first)[0]
    if found is not None or not several():
        return None if found is None else (0, *found)
    mine = _tensors(network)
    largest = {
        name: float((mine[name].double() - value.double()).abs().max())
        for name, value in _of_first({name: mine[name] for name in names if name in mine})
        if not torch.equal(mine[name], value)
    }
    farthest = max(largest.items(), key=lambda item: (item[1] != item[1], item[1]), default=None)  # NaN before all
    every = together(lambda: farthest)
    return next(((number, *there) for number, there in enumerate(every) if there is not None), None)


def _telling(error: Exception | None) -> SecAggError | None:
    """Return what other ranks raise, in a form that travels."""
    if error is None or type(error) is getattr(secagg.errors, type(error).__name__, None):
        return error  # type: ignore[return-value]
    return StateError(f"rank {rank()}: {type(error).__name__}: {error}")


def _tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in network_state(network).items() if isinstance(value, torch.Tensor)}


def _described(network: torch.nn.Module) -> list[str]:
    return [f"{name} {value.dtype}{list(value.shape)}" for name, value in _tensors(network).items()]


def _of_first(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors as rank 0 has them; to be read to the end, at all ranks."""
    for name, value in tensors.items():
        first = value.detach().clone(memory_format=torch.contiguous_format)
        if first.numel():  # as bytes, which every backend carries, whatever the dtype
            distributed.broadcast(first.reshape(-1).view(torch.uint8), src=0)
        yield name, first
