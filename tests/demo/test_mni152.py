"""The demo's task: who gets which part of the brain, and that training on it is deterministic and works."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from secagg.demo import mni152
from secagg.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

EDGE = mni152.EDGE


def voxels(corners: list[mni152.Corner]) -> NDArray[np.int8]:
    """How often each voxel of the volume is covered."""
    covered = np.zeros(mni152.load_volume()[0].shape, dtype=np.int8)
    for x, y, z in corners:
        covered[x : x + EDGE, y : y + EDGE, z : z + EDGE] += 1
    return covered


def test_volume() -> None:
    image, label, brain = mni152.load_volume()
    assert image.shape == label.shape == brain.shape == (197, 233, 189)
    assert image.dtype == label.dtype == np.float32
    assert abs(float(image[brain].mean())) < 1e-3
    assert abs(float(image[brain].std()) - 1) < 1e-3
    assert set(np.unique(label)) == {0, 1}
    # 1 mm³ a voxel: an adult brain has 1.2 to 2 litres, a third to a half of it white matter.
    assert 1.2e6 < brain.sum() < 2.0e6
    assert 0.3 < label[brain].mean() < 0.5
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 0


@pytest.mark.parametrize("n_sites", [1, 2, 3, 4, 5, mni152.MAX_SITES])
def test_no_voxel_is_given_twice(n_sites: int) -> None:
    held_out = voxels(mni152.validation_cubes())
    sites = [voxels(mni152.site_cubes(site, n_sites)) for site in range(n_sites)]
    assert max(int(covered.max()) for covered in (held_out, *sites)) == 1
    total = held_out + np.sum(sites, axis=0, dtype=np.int8)
    assert total.max() == 1
    assert total.sum() == 69 * EDGE**3
    sizes = [len(mni152.site_cubes(site, n_sites)) for site in range(n_sites)]
    assert sum(sizes) == 49
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= mni152.BATCH_SIZE


def test_the_held_out_slab_has_no_mirror_image_at_a_site() -> None:
    """The template is mirror symmetric in x, so that a mirrored voxel is the same voxel."""
    image, _, _ = mni152.load_volume()
    np.testing.assert_allclose(image, image[::-1], atol=1e-5)
    held_out, site = voxels(mni152.validation_cubes()), voxels(mni152.site_cubes(0, 1))
    for covered in (held_out, held_out[::-1]):
        assert not (covered & site).any()
    assert set(np.flatnonzero(held_out.any(axis=(0, 1)))) == set(range(78, 110))
    assert not site[:, :, 78:110].any()


def test_sites_lie_one_before_the_other() -> None:
    centres = [np.mean(mni152.site_cubes(site, 3), axis=0)[1] for site in range(3)]
    assert centres[0] < centres[1] < centres[2]


def test_patches() -> None:
    patches = [*mni152.site_patches(0, 3), *mni152.validation_patches()]
    assert len(patches) == 17 + 20
    for patch in patches:
        assert patch["image"].shape == patch["label"].shape == (1, EDGE, EDGE, EDGE)
        assert patch["image"].dtype == patch["label"].dtype == torch.float32
        assert set(patch["label"].unique().tolist()) == {0, 1}
        assert 0.01 < float(patch["label"].mean()) < 0.75
    x, y, z = mni152.site_cubes(0, 3)[4]
    image, label, _ = mni152.load_volume()
    cube = slice(x, x + EDGE), slice(y, y + EDGE), slice(z, z + EDGE)
    np.testing.assert_array_equal(patches[4]["image"][0].numpy(), image[cube])
    np.testing.assert_array_equal(patches[4]["label"][0].numpy(), label[cube])
    for one, other in combinations(patches, 2):
        assert one["image"].data_ptr() != other["image"].data_ptr()


@pytest.mark.parametrize(("site", "n_sites"), [(0, 0), (0, mni152.MAX_SITES + 1), (3, 3), (-1, 3)])
def test_there_is_no_such_site(site: int, n_sites: int) -> None:
    with pytest.raises(ConfigError, match="sites"):
        mni152.site_patches(site, n_sites)


def test_one_seed_gives_one_network() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (mni152.make_network(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)  # the caller's generator is left alone
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    assert sum(value.numel() for value in first.values()) == 108_346


TRAIN = """
import hashlib, torch
torch.set_num_threads(1)
from secagg.demo import mni152
network = mni152.make_network(3)
mni152.make_trainer(network, mni152.site_patches(1, 24), seed=(3, 0, 1)).run()
digest = hashlib.sha256()
for value in network.state_dict().values():
    digest.update(value.numpy().tobytes())
print(digest.hexdigest())
"""


def test_training_is_the_same_in_two_processes() -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", TRAIN]
    processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(digests) == 1


def test_another_order_gives_another_network() -> None:
    patches = mni152.site_patches(1, 12)
    states = []
    for seed in ((0, 0, 1), (0, 1, 1), (0, 0, 1)):
        network = mni152.make_network(0)
        mni152.make_trainer(network, patches, seed=seed, epochs=1).run()
        states.append(torch.cat([value.flatten() for value in network.state_dict().values()]))
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[1])


def test_training_learns_white_matter_that_it_has_not_seen() -> None:
    network = mni152.make_network(1)
    held_out = mni152.validation_patches()
    start = mni152.dice(network, held_out)
    mni152.make_trainer(network, mni152.site_patches(1, 3), seed=1).run()
    end = mni152.dice(network, held_out)
    assert 0 <= start < 0.5
    assert 0.75 < end <= 1


def test_dice_is_that_of_white_matter() -> None:
    class Oracle(torch.nn.Module):
        """Says white matter wherever the image is above a threshold."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            white = (image > 0.5).float()
            return torch.cat([1 - white, white], dim=1)

    patches = mni152.site_patches(0, 5)
    scores = []
    for patch in patches:
        predicted, label = patch["image"] > 0.5, patch["label"] > 0
        scores.append(2 * float((predicted & label).sum()) / float(predicted.sum() + label.sum()))
    assert mni152.dice(Oracle(), patches) == pytest.approx(np.mean(scores), abs=1e-6)
