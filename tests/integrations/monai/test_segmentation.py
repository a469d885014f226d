"""The task on a folder of the Decathlon's shape: what is trained and held out; it learns, and the same each time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from decathlon_folder import CT, CT_BLOCK, MRI, MRI_BLOCK, SIZE, edit, write_folder, write_nifti
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from secagg.errors import ConfigError
from secagg.integrations.monai import Segmentation
from secagg.site.task import CheckedTask

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("ct") / "data", 6)


def quiet(done: float, total: float) -> None:
    pass


def files(cases: Any) -> list[str]:
    return sorted(case["image"].name for case in cases.data)


def state_of(task: Segmentation) -> list[torch.Tensor]:
    return [value.clone() for value in task.model.state_dict().values()]


def test_it_learns(tmp_path: Path) -> None:
    """Two channels and two classes: each has its Dice, and the mean comes first."""
    task = Segmentation(write_folder(tmp_path / "mri", 6, kind=MRI), MRI_BLOCK)
    CheckedTask("segmentation", task)
    before = task.validate()
    assert list(before) == ["dice", "dice_PZ", "dice_TZ"]
    for round in range(6):
        task.train(round, quiet)
    after = task.validate()
    assert after["dice"] == pytest.approx((after["dice_PZ"] + after["dice_TZ"]) / 2, abs=1e-6)
    assert after["dice"] > 0.7 > 0.4 > before["dice"]


def test_it_is_a_function_of_its_seed(ct: Path) -> None:
    """Also where a site is started again in a later round. On a CPU: GPUs add in any order."""
    first, second, again = (Segmentation(ct, CT_BLOCK, device="cpu") for _ in range(3))
    first.train(0, quiet)
    second.train(0, quiet)
    assert all(map(torch.equal, state_of(first), state_of(second)))
    again.model.load_state_dict(first.model.state_dict())
    for task in (first, again):
        task.train(1, quiet)
    assert all(map(torch.equal, state_of(first), state_of(again)))
    second.train(2, quiet)  # of another round
    assert not all(map(torch.equal, state_of(first), state_of(second)))
    assert first.validate() == again.validate()


def test_folds_and_parts(ct: Path) -> None:
    everything = {f"case_{number:03}.nii.gz" for number in range(6)}
    held_out = []
    for fold in ("1/3", "2/3", "3/3"):
        task = Segmentation(ct, CT_BLOCK, fold=fold)
        assert task.examples == 4
        assert {*files(task._training), *files(task._held_out)} == everything
        held_out += files(task._held_out)
    assert sorted(held_out) == sorted(everything)
    parts = [Segmentation(ct, CT_BLOCK, fold="1/2", part=f"{number}/2") for number in (1, 2)]
    mine = [{*files(part._training), *files(part._held_out)} for part in parts]
    assert mine[0] | mine[1] == everything
    assert not mine[0] & mine[1]
    assert [part.examples for part in parts] == [1, 1]
    assert Segmentation(ct, CT_BLOCK).examples == 4  # 1/5 of six: two are held out


def test_progress(ct: Path) -> None:
    seen: list[tuple[float, float]] = []
    task = Segmentation(ct, CT_BLOCK, report=lambda *now: seen.append(now))
    assert seen == [*((done, 6) for done in range(7)), *((done, 6) for done in range(1, 7))]  # labels, then images
    seen.clear()
    task.train(0, lambda *now: seen.append(now))
    assert seen == [(done, 4) for done in range(1, 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": "1"}, "fold is '1': write 2/5"),
        ({"fold": "0/5"}, "fold is '0/5': write 2/5"),
        ({"fold": "6/5"}, "fold is '6/5': write 2/5"),
        ({"fold": "1/1"}, "fold is '1/1': write 2/5"),  # nothing would be left to train with
        ({"fold": 0.2}, "fold is 0.2: write 2/5"),
        ({"fold": "1/7"}, "6 cases are too few for 7 folds; use --fold 1/6"),
        ({"part": "1/7"}, "has 6 cases, too few for 7 parts"),
        ({"part": "3/2"}, "part is '3/2'"),
        ({"part": "1/6"}, "there is one case; one is needed to train with, and one to hold out"),
        ({"threads": 0}, "threads is 0; use 1 or more"),
        ({"threads": "two"}, "threads is 'two'; use 1 or more"),
        ({"device": "tpu9"}, "device is 'tpu9'"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
        ({"block": None}, "the project's manifest has no `task:` block.*`secagg inspect .*dataset.json` prints one"),
        ({"block": MRI_BLOCK}, r"has the modality \['CT'\], the project's manifest \['T2', 'ADC'\]"),
    ],
)
def test_options_that_cannot_be(ct: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Segmentation(ct, **{"block": CT_BLOCK, **options})


@pytest.mark.parametrize("damage", ["short", "checksum"])
@pytest.mark.parametrize("name", ["imagesTr", "labelsTr"])
def test_a_damaged_file_is_found_before_training(tmp_path: Path, name: str, damage: str) -> None:
    folder = write_folder(tmp_path / "data", 2)
    path = folder / name / "case_001.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200] if damage == "short" else whole[:-8] + bytes(4) + whole[-4:])
    with pytest.raises(ConfigError, match=f"{name}/case_001.nii.gz cannot be read as NIfTI"):
        Segmentation(folder, CT_BLOCK, fold="1/2")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_voxels_that_are_no_numbers_are_found_before_training(tmp_path: Path, value: float) -> None:
    """Of CT the window has an end for what is infinite; all else would make the whole network NaN."""
    folder = write_folder(tmp_path / "data", 2)
    image = np.full(SIZE, 7.0, np.float32)
    image[3, 3, 3] = value
    write_nifti(folder / "imagesTr" / "case_001.nii.gz", image)
    if np.isnan(value):
        with pytest.raises(ConfigError, match=r"case_001\.nii\.gz has voxels that are NaN or infinite"):
            Segmentation(folder, CT_BLOCK, fold="1/2")
    else:
        Segmentation(folder, CT_BLOCK, fold="1/2")
    edit(folder, modality={"0": "T2"})
    block = {name: setting for name, setting in CT_BLOCK.items() if name != "window"} | {"modality": ["T2"]}
    with pytest.raises(ConfigError, match=r"case_001\.nii\.gz has voxels that are NaN or infinite"):
        Segmentation(folder, block, fold="1/2")


def test_a_label_lies_where_its_image_lies(tmp_path: Path) -> None:
    """Affines that differ by rounding would be resampled to unlike sizes."""
    folder = write_folder(tmp_path / "data", 2)
    for number in range(2):
        for kind, spacing in (("image", 0.5), ("label", 0.509)):
            path = folder / f"{kind}sTr" / f"case_00{number}.nii.gz"
            write_nifti(path, np.zeros((64, 16, 16), np.uint8), (spacing, 0.5, 0.5))
    task = Segmentation(folder, CT_BLOCK | {"spacing": [0.5, 0.5, 0.5]}, fold="1/2")
    assert [task._held_out[0][name].shape for name in ("image", "label")] == [(1, 64, 16, 16)] * 2


def test_intensities(tmp_path: Path) -> None:
    """CT is cut to its window, and what is no CT has zero mean and unit variance where it is not 0."""
    folder = write_folder(tmp_path / "both", 2, kind={**CT, "modality": {"0": "CT", "1": "PET"}})
    image = np.zeros((*SIZE, 2), np.float32)
    image[..., 0] = np.linspace(-1000, 1000, SIZE[2])
    image[:10, ..., 1] = np.random.default_rng(0).normal(5.0, 3.0, (10, *SIZE[1:]))
    for number in range(2):
        write_nifti(folder / "imagesTr" / f"case_00{number}.nii.gz", image)
    task = Segmentation(folder, CT_BLOCK | {"modality": ["CT", "PET"], "window": [-100, 300]}, fold="1/2")
    (case,) = (task._held_out[number] for number in range(len(task._held_out)))
    found = case["image"].numpy()
    expected = np.clip((image[..., 0] + 100) / 400, 0, 1)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    inside = found[1][:10]
    assert abs(inside.mean()) < 1e-4
    assert abs(inside.std() - 1) < 1e-3
    assert not found[1][10:].any()


def test_all_is_brought_onto_the_grid_of_the_block(tmp_path: Path) -> None:
    """Whatever the axes and voxels of a file are; what is smaller than a patch is padded to train with."""
    folder = write_folder(tmp_path / "data", 2)
    values = np.zeros((12, 40, 10), np.int16)
    values[:6] = 100  # left, as this file goes from right to left
    affine = np.diag([-2.0, 0.5, 3.0, 1.0])
    for kind, data in (("image", values), ("label", (values > 0).astype(np.uint8))):
        for number in range(2):
            path = folder / f"{kind}sTr" / f"case_00{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(data, affine), path)
    task = Segmentation(folder, CT_BLOCK | {"spacing": [1.0, 1.0, 3.0]}, fold="1/2")
    case = task._held_out[0]
    width, depth, height = case["image"].shape[1:]
    assert abs(width - 24) <= 1
    assert abs(depth - 20) <= 1
    assert height == 10
    label = case["label"][0].numpy()
    assert label[-10:].all()  # now from left to right
    assert not label[:10].any()
    patches = task._training[0]
    assert [patch["image"].shape for patch in patches] == [(1, 16, 16, 16)] * 2
    task.train(0, quiet)
    assert 0 <= task.validate()["dice"] <= 1


def test_classes_that_are_not_there(tmp_path: Path) -> None:
    """A case of background alone is trained with, and its Dice is 1 if nothing is found, else 0; never NaN."""
    folder = write_folder(tmp_path / "data", 2)
    for number in range(2):
        write_nifti(folder / "labelsTr" / f"case_00{number}.nii.gz", np.zeros(SIZE, np.uint8))
    task = Segmentation(folder, CT_BLOCK, fold="1/2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.train(0, quiet)
    bias = task.model.conv_final[-1].conv.bias
    for favoured, dice in ((0, 1.0), (1, 0.0)):
        with torch.no_grad():
            bias.copy_(torch.tensor([0.0, 0.0]))
            bias[favoured] = 1e6
        assert task.validate() == {"dice": dice, "dice_spleen": dice}


def test_more_than_memory_takes(ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not kept is read again in each pass, and nothing else changes."""
    kept = Segmentation(ct, CT_BLOCK, device="cpu")
    monkeypatch.setattr("secagg.integrations.monai.prepared._CACHED_SHARE", 0.0)
    read = Segmentation(ct, CT_BLOCK, device="cpu")
    assert (kept._training.cache_num, read._training.cache_num, read._held_out.cache_num) == (4, 0, 0)
    for task in (kept, read):
        task.train(0, quiet)
    assert all(map(torch.equal, state_of(kept), state_of(read)))
    assert kept.validate() == read.validate()


def test_curves(ct: Path, tmp_path: Path) -> None:
    """Losses are counted on over the rounds, also of a site that is started again; each model has its Dice once.

    All of it is there after validation, while the writers are open.
    """
    folder, found = tmp_path / "curves", []
    task = Segmentation(ct, CT_BLOCK, tensorboard=str(folder))
    task.validate()
    for round in (0, 1):
        task.train(round, quiet)
        found.append(task.validate())
        task.validate()
    again = Segmentation(ct, CT_BLOCK, tensorboard=str(folder))
    again.model.load_state_dict(task.model.state_dict())
    again.validate()
    again.train(2, quiet)
    found.append(again.validate())
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "dice", "dice_spleen"}
    losses = events.Scalars("train_loss")
    assert [event.step for event in losses] == list(range(1, 13))  # four cases, three rounds
    assert losses[-1].value < losses[0].value
    for name in ("dice", "dice_spleen"):
        assert [event.step for event in events.Scalars(name)] == [0, 1, 2]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([metrics[name] for metrics in found])
