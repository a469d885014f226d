"""The model that all peers send: MONAI's SegResNet, as shapes."""

from __future__ import annotations

from math import prod
from typing import Any

from ...errors import BackendUnavailableError
from .job import BOUND

Shapes = dict[str, tuple[int, ...]]

_SMALL = 10**6


def segresnet(small: bool = False) -> Shapes:
    """Return the tensors of SegResNet: those of MONAI's default, 4.7 million values, or of a small one, 10⁵.

    Raises
    ------
    BackendUnavailableError
        If MONAI is not installed.
    """
    try:
        import torch
        from monai.networks.nets import SegResNet
    except ImportError as error:
        raise BackendUnavailableError(f"the model needs MONAI: pip install 'secagg[bench]' ({error})") from error
    options: dict[str, Any] = {"init_filters": 16}
    if small:
        options = {
            "init_filters": 8,
            "blocks_down": (1, 1, 1),
            "blocks_up": (1, 1),
            "norm": ("GROUP", {"num_groups": 4}),
        }
    with torch.device("meta"):  # shapes, no values
        network = SegResNet(out_channels=2, **options)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def describe(shapes: Shapes) -> dict[str, Any]:
    """Return what results say of the model."""
    parameters = sum(map(prod, shapes.values()))
    return {
        "name": "SegResNet" if parameters > _SMALL else "SegResNet, small",
        "parameters": parameters,
        "tensors": len(shapes),
        "raw_nbytes": 4 * parameters,
        "max_abs": BOUND,
    }
