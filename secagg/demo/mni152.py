"""White-matter segmentation in the MNI152 brain: a small, real task for a federation, without a download.

Data: the T1-weighted template of the Montreal Neurological Institute (ICBM152 2009a, nonlinear, symmetric, skull
stripped) and its map of white matter, both of 197 × 233 × 189 voxels of 1 mm³, from nilearn's wheel. A voxel is white
matter where the map says so with more than one half.

Who gets what. The volume is cut into a grid of disjoint cubes of 32³ voxels; those with brain in at least a quarter of
their voxels take part (69 cubes). The held-out part is one horizontal slab, third of the grid's five layers of height:
z in [78, 110), 20 cubes through all of the brain at the height of the ventricles, on which no site trains. The other
49 cubes, above and below it, are put in order from the back of the head to its front, and cut into as many consecutive
parts as there are sites, equal to within one cube. So site 0 has the occipital, the last site the frontal end. The
template is exactly mirror symmetric: a held-out hemisphere would be no test, but a slab contains its own mirror image.

Everything is a pure function of its seed, as long as ``torch.set_num_threads`` is the same, in separate processes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscreted, Compose
from numpy.typing import NDArray

from ..errors import ConfigError

#: Edge of a cube in voxels.
EDGE = 32

#: Layer of height, counted in cubes from below, that is held out.
HELD_OUT_LAYER = 2

#: Largest number of sites: each has at least one batch of two patches.
MAX_SITES = 24

LEARNING_RATE = 5e-3
BATCH_SIZE = 2

_LEAST_BRAIN = 0.25
_BRAIN_INTENSITY = 0.2  # nilearn's own threshold for the brain mask

Patch = dict[str, torch.Tensor]
Corner = tuple[int, int, int]


@lru_cache(maxsize=1)
def load_volume() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Load the brain.

    Returns
    -------
    image : ndarray of float32, shape (197, 233, 189)
        T1 intensity with zero mean and unit variance over the brain. Axes are left to right, back to front and bottom
        to top, 1 mm a voxel. Read-only.
    label : ndarray of float32, same shape
        1 in white matter, else 0. Read-only.
    brain : ndarray of bool, same shape
        The whole brain. Read-only.
    """
    from nilearn.datasets import load_mni152_template, load_mni152_wm_template

    intensity = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    brain = intensity > _BRAIN_INTENSITY
    image = (intensity - intensity[brain].mean()) / intensity[brain].std()
    label = (load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32) > 0.5).astype(np.float32)
    for array in (image, label, brain):
        array.flags.writeable = False
    return image, label, brain


def validation_cubes() -> list[Corner]:
    """Return the corners (x, y, z), in voxels, of the held-out cubes."""
    return [corner for index, corner in _cubes() if index[2] == HELD_OUT_LAYER]


def site_cubes(site: int, n_sites: int) -> list[Corner]:
    """Return the corners (x, y, z), in voxels, of the cubes of a site.

    Parameters
    ----------
    site : int
        From 0 to ``n_sites - 1``.
    n_sites : int
        From 1 to `MAX_SITES`.

    Raises
    ------
    ConfigError
        If there cannot be so many sites, or no such site.
    """
    if not 1 <= n_sites <= MAX_SITES:
        raise ConfigError(f"{n_sites} sites cannot share this brain; use 1 to {MAX_SITES}")
    if not 0 <= site < n_sites:
        raise ConfigError(f"site {site} is not one of {n_sites} sites, counted from 0")
    cubes = [(index, corner) for index, corner in _cubes() if index[2] != HELD_OUT_LAYER]
    cubes.sort(key=lambda cube: (cube[0][1], cube[0][2], cube[0][0]))
    part = np.array_split(np.arange(len(cubes)), n_sites)[site]
    return [cubes[position][1] for position in part]


def site_patches(site: int, n_sites: int) -> list[Patch]:
    """Return what a site trains on; parameters and errors as of `site_cubes`.

    Returns
    -------
    list of dict
        Each with ``image`` and ``label``, float32 tensors of shape (1, 32, 32, 32). Its length is the site's weight.
    """
    return _patches(site_cubes(site, n_sites))


def validation_patches() -> list[Patch]:
    """Return the held-out patches, in the form of `site_patches`."""
    return _patches(validation_cubes())


def make_network(seed: int) -> SegResNet:
    """Make a SegResNet of 108,346 parameters; one seed gives the same network everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegResNet(
            spatial_dims=3,
            init_filters=8,
            in_channels=1,
            out_channels=2,
            norm=("GROUP", {"num_groups": 4}),
            blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
        )


def make_trainer(
    network: torch.nn.Module,
    patches: Sequence[Patch],
    *,
    seed: int | Sequence[int],
    epochs: int = 2,
    handlers: Iterable[Any] = (),
    device: str | torch.device = "cpu",
) -> SupervisedTrainer:
    """Make the trainer of one round: Dice and cross-entropy loss, a new Adam optimiser, batches of two.

    In a round of n iterations no element moves by more than ``3.2 * n * LEARNING_RATE`` (Kingma and Ba 2015, section
    2.1); about ``n * LEARNING_RATE`` is usual.

    Parameters
    ----------
    network : torch.nn.Module
        As from `make_network`; trained in place.
    patches : sequence of dict
        As from `site_patches`.
    seed : int or sequence of int
        Of the order of the patches. Give each site and round its own: ``(seed, round, site)``, say.
    epochs : int
        Passes over the patches.
    handlers : iterable
        Passed on as ``train_handlers``: a `SecAggHandler`, say.
    device : str or torch.device
        Where to train.
    """
    device = torch.device(device)
    network.to(device)
    order = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    return SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(patches), batch_size=BATCH_SIZE, shuffle=True, generator=order),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), LEARNING_RATE),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        train_handlers=list(handlers),
    )


def dice(network: torch.nn.Module, patches: Sequence[Patch], *, device: str | torch.device = "cpu") -> float:
    """Return the mean over patches of the Dice coefficient of white matter, from 0 to 1."""
    device = torch.device(device)
    one_hot = AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2)
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(Dataset(patches), batch_size=4),
        network=network.to(device),
        postprocessing=Compose([one_hot]),
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))},
    )
    evaluator.run()
    return cast(float, evaluator.state.metrics["dice"])


@lru_cache(maxsize=1)
def _cubes() -> list[tuple[Corner, Corner]]:
    """Return index in the grid and corner in voxels of every cube with enough brain; the grid is centred."""
    _, _, brain = load_volume()
    counts = [size // EDGE for size in brain.shape]
    margins = [size % EDGE // 2 for size in brain.shape]
    cubes = []
    for i, j, k in product(*map(range, counts)):
        corner = (margins[0] + i * EDGE, margins[1] + j * EDGE, margins[2] + k * EDGE)
        if brain[_cube(corner)].mean() >= _LEAST_BRAIN:
            cubes.append(((i, j, k), corner))
    return cubes


def _cube(corner: Corner) -> tuple[slice, ...]:
    return tuple(slice(start, start + EDGE) for start in corner)


def _patches(corners: Iterable[Corner]) -> list[Patch]:
    image, label, _ = load_volume()
    return [
        {
            "image": torch.from_numpy(image[_cube(corner)].copy())[None],
            "label": torch.from_numpy(label[_cube(corner)].copy())[None],
        }
        for corner in corners
    ]
