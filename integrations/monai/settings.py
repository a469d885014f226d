"""What the sites of a segmentation agree on: the ``task:`` block of ``project.yaml``, signed with the manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from monai.networks.nets import SegResNet

from secagg.errors import ConfigError, show

from .decathlon import MAX_CHANNELS, MAX_CLASSES, SPACINGS, Decathlon, is_ct

#: The network halves its patch so often that each edge is a multiple of this many voxels.
EDGE_STEP = 8

_MAX_EDGE = 512
_GROUPS = 4  # of GroupNorm


@dataclass(frozen=True)
class Settings:
    """The block, checked. Its names are those of the parameters.

    Parameters
    ----------
    modality : tuple of str
        Names of the channels, as ``dataset.json`` has them. ``CT`` is cut to `window`, all else gets zero mean and unit
        variance over its voxels other than 0.
    labels : tuple of str
        Names of the classes, the background first.
    spacing : tuple of float
        Of the voxels that images are resampled to, in mm: left to right, back to front, bottom to top.
    patch : tuple of int
        Voxels along these axes that the network sees at once, multiples of 8.
    window : tuple of float, optional
        Of CT: the intensities that become 0 and 1.
    filters : int
        Of the first layer of the SegResNet, a multiple of 4: its size grows with the square.
    epochs : int
        Passes over the training cases in a round.
    samples : int
        Patches that are drawn of each case in a pass, half of them around a voxel that is not background.
    learning_rate : float
        Of Adam.
    seed : int
        Of the initial network and of what is drawn.

    Raises
    ------
    ConfigError
        If a value cannot be.
    """

    modality: tuple[str, ...]
    labels: tuple[str, ...]
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    window: tuple[float, ...] | None = None
    filters: int = 16
    epochs: int = 1
    samples: int = 4
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        _check("modality", self.modality, _is_text, 1, MAX_CHANNELS, "names of the channels: [CT]")
        _check("labels", self.labels, _is_text, 2, MAX_CLASSES, "names of the classes: [background, spleen]")
        _check("spacing", self.spacing, _is_spacing, 3, 3, "mm: [1, 1, 2]")
        _check("patch", self.patch, _is_edge, 3, 3, f"multiples of {EDGE_STEP} up to {_MAX_EDGE}: [96, 96, 64]")
        names = self.metrics
        if len(set(names)) != len(names):
            raise ConfigError(
                f"task: labels {show(list(self.labels))} has two names that are one as metrics; rename one"
            )
        ct = any(map(is_ct, self.modality))
        if self.window is None and ct:
            raise ConfigError("task: window is missing; give the intensities of CT that become 0 and 1: [-57, 164]")
        if self.window is not None:
            if not ct:
                raise ConfigError(f"task: window is {show(self.window)}, and no channel is CT; leave it out")
            _check("window", self.window, _is_number, 2, 2, "the lower end first: [-57, 164]")
            if not self.window[0] < self.window[1]:
                raise ConfigError(f"task: window is {show(list(self.window))}; give the lower end first: [-57, 164]")
        for name, least, most in (("filters", 4, 256), ("epochs", 1, 1000), ("samples", 1, 64), ("seed", 0, 2**31 - 1)):
            value = getattr(self, name)
            if not _is_int(value) or not least <= value <= most:
                raise ConfigError(f"task: {name} is {show(value)}; give a whole number from {least} to {most}")
        if self.filters % _GROUPS:
            raise ConfigError(f"task: filters is {self.filters}; give a multiple of {_GROUPS}")
        if not _is_number(self.learning_rate) or not 0 < self.learning_rate <= 1:
            raise ConfigError(f"task: learning_rate is {show(self.learning_rate)}; give a number up to 1, as 0.001")

    @classmethod
    def of_block(cls, block: Mapping[str, Any]) -> Settings:
        """Read the block of a manifest; `ConfigError` if it lacks a name, has another one, or a value cannot be."""
        known = [field.name for field in fields(cls)]
        for name in block:
            if name not in known:
                raise ConfigError(f"task has an unknown name {name!r}; a segmentation knows {', '.join(known)}")
        for name in ("modality", "labels", "spacing", "patch"):
            if name not in block:
                raise ConfigError(f"task lacks {name!r}; `secagg inspect FOLDER/dataset.json` prints a whole block")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in block.items()
        }
        return cls(**values)

    @property
    def block(self) -> dict[str, Any]:
        """The block that `of_block` reads back to the same; without a window where there is none."""
        block = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in block.items() if value is not None}

    @property
    def metrics(self) -> list[str]:
        """Names of what sites measure: the mean Dice, and that of each class but the background: dice_left_atrium."""
        return ["dice", *("dice_" + re.sub(r"\W+", "_", label.strip()) for label in self.labels[1:])]

    def check_data(self, data: Decathlon) -> None:
        """Raise `ConfigError` if a data set has other channels or classes than all sites agreed on."""
        for key in ("modality", "labels"):
            agreed, found = list(getattr(self, key)), list(getattr(data, key))
            if agreed != found:
                raise ConfigError(
                    f"{data.folder} has the {key} {show(found)}, the project's manifest {show(agreed)}: bring the data "
                    "into that form (order and spelling count), or have the federation provisioned anew with "
                    f"`{key}: {found}` in the `task:` block of its project.yaml"
                )

    def make_network(self) -> SegResNet:
        """Make the network; the same at all sites."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return SegResNet(
                spatial_dims=3,
                init_filters=self.filters,
                in_channels=len(self.modality),
                out_channels=len(self.labels),
                norm=("GROUP", {"num_groups": _GROUPS}),
            )


def _check(name: str, value: object, fits: Callable[[Any], bool], least: int, most: int, what: str) -> None:
    if not isinstance(value, tuple) or not least <= len(value) <= most or not all(map(fits, value)):
        value = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"task: {name} is {show(value)}; list {what}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_spacing(value: Any) -> bool:
    return _is_number(value) and SPACINGS[0] <= value <= SPACINGS[1]


def _is_edge(value: Any) -> bool:
    return _is_int(value) and EDGE_STEP <= value <= _MAX_EDGE and value % EDGE_STEP == 0
