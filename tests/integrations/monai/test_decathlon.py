"""Folders of the Decathlon's shape: what is read of them, what is refused, and what is proposed for them."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from decathlon_folder import CT, MRI, SIZE, SPACING, edit, write_folder, write_nifti

from secagg.errors import ConfigError
from secagg.integrations.monai.decathlon import Decathlon
from secagg.integrations.monai.planning import propose


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("ct") / "Task99_Ball", 3)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "Task99_Ball")


def quiet(done: float, total: float) -> None:
    pass


def test_a_data_set(made: Path) -> None:
    data = Decathlon.load(made)
    assert (data.modality, data.labels) == (("CT",), ("background", "spleen"))
    assert data.files[1] == (made / "imagesTr" / "case_001.nii.gz", made / "labelsTr" / "case_001.nii.gz")
    seen = []
    cases = data.cases(lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {(case.size, case.spacing) for case in cases} == {(SIZE, SPACING)}


def test_several_channels(tmp_path: Path) -> None:
    data = Decathlon.load(write_folder(tmp_path / "mri", 2, kind=MRI))
    assert (data.modality, data.labels) == (("T2", "ADC"), ("background", "PZ", "TZ"))
    assert len(data.cases(quiet)) == 2
    block = propose(data, data.cases(quiet), quiet).block
    assert "window" not in block


def test_sizes_are_told_along_the_body(folder: Path) -> None:
    """Axes of a file may go anywhere: sizes are from left to right, back to front and bottom to top."""
    affine = np.array([[0, 0, -2.0, 0], [1.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    for kind in ("image", "label"):
        volume = nibabel.Nifti1Image(np.zeros((10, 11, 12), np.uint8), affine)
        nibabel.save(volume, folder / f"{kind}sTr" / "case_000.nii.gz")
    case = Decathlon.load(folder).cases(quiet)[0]
    assert (case.size, case.spacing) == ((12, 10, 11), (2.0, 1.0, 3.0))


def test_an_axis_without_direction(folder: Path) -> None:
    for kind in ("image", "label"):
        volume = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
        volume.header.set_sform(np.diag([0.0, 1.0, 1.0, 1.0]), code=1)
        nibabel.save(volume, folder / f"{kind}sTr" / "case_000.nii.gz")
    with pytest.raises(ConfigError, match="case_000.nii.gz does not say in which direction an axis goes"):
        Decathlon.load(folder).cases(quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": None}, "key modality is not in"),
        ({"labels": None}, "key labels is not in"),
        ({"training": None}, "key training is not in"),
        ({"training": []}, r"training is \[\]; list the cases"),
        ({"training": {"image": "a", "label": "b"}}, "training is .*; list the cases"),
        ({"training": ["imagesTr/case_000.nii.gz"]}, "has no image; give the path of one file"),
        ({"training": [{"image": "imagesTr/case_000.nii.gz"}]}, "has no label; give the path of one file"),
        ({"training": [{"image": ["a", "b"], "label": "c"}]}, "has no image; give the path of one file"),
        ({"training": [{"image": "/etc/passwd", "label": "b"}]}, "names /etc/passwd, which is outside its folder"),
        ({"training": [{"image": "a", "label": "x/../../b"}]}, r"names x/\.\./\.\./b, which is outside its folder"),
        ({"training": [{"image": "a", "label": "./a"}]}, "names a twice"),
        ({"training": [{"image": "a", "label": "b" * 5000}]}, "or a file that it names, cannot be read: .* too long"),
        ({"modality": {"1": "CT"}}, "modality is .*; number 1 to 64 names from 0"),
        ({"modality": ["CT"]}, "modality is .*; number 1 to 64 names from 0"),
        ({"labels": {"0": "background", "2": "liver"}}, "labels is .*; number 1 to 256 names from 0"),
        ({"labels": {"background": 0}}, "labels is .*; number 1 to 256 names from 0"),
        ({"labels": {"0": "background", "1": " "}}, "labels has the name ' '; give text"),
        ({"labels": {"0": "background", "1": 1}}, "labels has the name 1; give text"),
    ],
)
def test_a_list_that_is_wrong(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        Decathlon.load(folder)


def test_a_case_that_is_listed_twice(folder: Path) -> None:
    case = {"image": "imagesTr/case_000.nii.gz", "label": "labelsTr/case_000.nii.gz"}
    edit(folder, training=[case, case])
    with pytest.raises(ConfigError, match="names imagesTr/case_000.nii.gz twice"):
        Decathlon.load(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "[" * 100_000, "\xff", '"text"', '"modality labels training"', "5", "null"]
)
def test_a_list_that_is_no_json_object(folder: Path, content: str) -> None:
    (folder / "dataset.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="dataset.json"):
        Decathlon.load(folder)


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    (folder / "labelsTr" / "case_001.nii.gz").unlink()
    with pytest.raises(ConfigError, match="lacks 1 of the 6 files that dataset.json names, such as labelsTr/case_001"):
        Decathlon.load(folder)
    with pytest.raises(ConfigError, match="has no dataset.json: give the folder of a Decathlon task"):
        Decathlon.load(tmp_path)
    with pytest.raises(ConfigError, match="has no dataset.json"):
        Decathlon.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "values", "spacing", "message"),
    [
        ("label", np.full(SIZE, 2, np.uint8), SPACING, r"has the value 2; .* classes 0 to 1 \(background, spleen\)"),
        ("label", np.full(SIZE, -1, np.int16), SPACING, "has the value -1"),
        ("label", np.full(SIZE, 0.5, np.float32), SPACING, "has the value 0.5"),
        ("label", np.full(SIZE, np.nan, np.float32), SPACING, "has the value nan"),
        ("label", np.zeros((20, 18, 21), np.uint8), SPACING, r"has shape \(20, 18, 21\), its image case_000.nii.gz"),
        ("label", np.zeros(SIZE, np.uint8), (1.0, 1.0, 1.4), "has voxels of 1 × 1 × 1.4 mm, its image .* 1 × 1 × 1.5"),
        ("label", np.zeros(SIZE, np.uint8), (-1.0, 1.0, 1.5), "or they are turned"),
        ("image", np.zeros((*SIZE, 2), np.int16), SPACING, r"names 1 channel \(CT\), a 3-D file"),
        ("image", np.zeros(SIZE[:2], np.int16), SPACING, r"names 1 channel \(CT\), a 3-D file"),
        ("label", np.zeros(SIZE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), SPACING, "convert it to one real number"),
        ("label", np.zeros(SIZE, np.complex64), SPACING, "holds complex64 in each voxel"),
        ("image", np.zeros(SIZE, np.complex64), SPACING, "holds complex64 in each voxel"),
    ],
)
def test_files_that_do_not_fit(
    folder: Path, name: str, values: np.ndarray, spacing: tuple[float, ...], message: str
) -> None:
    write_nifti(folder / f"{name}sTr" / "case_000.nii.gz", values, spacing)
    with pytest.raises(ConfigError, match=message):
        Decathlon.load(folder).cases(quiet)


def test_what_is_no_volume(folder: Path) -> None:
    nibabel.save(nibabel.GiftiImage(), folder / "surface.gii")
    case = {"image": "surface.gii", "label": "labelsTr/case_000.nii.gz"}
    edit(folder, training=[case])
    with pytest.raises(ConfigError, match=r"surface\.gii holds no volume"):
        Decathlon.load(folder).cases(quiet)


@pytest.mark.parametrize(
    ("offset", "values", "message"),
    [
        (42, np.array([-20], "<i2"), "its header gives a size that no file has"),
        (280, np.array([np.inf], "<f4"), "its affine is not finite"),
        (280, np.array([1000.0], "<f4"), "edges of 0.01 to 100 mm can be: is its affine in another unit"),
        (280, np.array([0.001], "<f4"), "has voxels of 0.001 × 1 × 1.5 mm"),
    ],
)
def test_headers_that_cannot_be(folder: Path, offset: int, values: np.ndarray, message: str) -> None:
    training = []
    for name in ("image", "label"):
        path = folder / f"{name}sTr" / "case_000.nii"
        write_nifti(path, np.zeros(SIZE, np.uint8))
        head = bytearray(path.read_bytes())
        head[offset : offset + values.nbytes] = values.tobytes()
        path.write_bytes(head)
        training.append((name, str(path.relative_to(folder))))
    edit(folder, training=[dict(training)])
    with pytest.raises(ConfigError, match=message):
        Decathlon.load(folder).cases(quiet)


def test_whole_numbers_may_be_floats(folder: Path) -> None:
    write_nifti(folder / "labelsTr" / "case_000.nii.gz", np.ones(SIZE, np.float64))
    Decathlon.load(folder).cases(quiet)


@pytest.mark.parametrize("name", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("damage", ["text", "empty", "short", "checksum"])
def test_files_that_are_damaged(folder: Path, name: str, damage: str) -> None:
    path = folder / name / "case_000.nii.gz"
    whole = path.read_bytes()
    damaged = {
        "text": gzip.compress(b"no volume" * 100),
        "empty": b"",
        "short": whole[: len(whole) // 2],
        "checksum": whole[:-8] + bytes(4) + whole[-4:],
    }
    path.write_bytes(damaged[damage])
    data = Decathlon.load(folder)
    with pytest.raises(ConfigError, match=r"case_000.nii.gz cannot be read as NIfTI"):
        propose(data, data.cases(quiet), quiet)


def test_what_is_proposed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "ct", 3)
    data = Decathlon.load(folder)
    settings = propose(data, data.cases(quiet), quiet, largest=16)
    assert (settings.spacing, settings.patch) == (SPACING, (16, 16, 16))
    assert settings.window is not None
    low, high = settings.window
    assert 15 < low < 30 < 70 < high < 85  # the ball has 50 ± 10
    write_nifti(folder / "imagesTr" / "case_000.nii.gz", np.zeros((40, 40, 40), np.int16), (0.5, 0.5, 3.0))
    write_nifti(folder / "labelsTr" / "case_000.nii.gz", np.zeros((40, 40, 40), np.uint8), (0.5, 0.5, 3.0))
    assert propose(data, data.cases(quiet), quiet).spacing == SPACING  # the median
    assert propose(data, data.cases(quiet)[:1], quiet).patch == (40, 40, 40)
    assert propose(data, data.cases(quiet)[:1], quiet).window == (-1000, 1000)  # there is nothing but background


def test_a_window_of_voxels_that_are_no_numbers(folder: Path) -> None:
    write_nifti(folder / "imagesTr" / "case_000.nii.gz", np.full(SIZE, np.nan, np.float32))
    data = Decathlon.load(folder)
    with pytest.raises(ConfigError, match=r"case_000\.nii\.gz has voxels of a class that are NaN or infinite"):
        propose(data, data.cases(quiet), quiet)


def test_some_cases_tell_the_window(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secagg.integrations.monai.planning._MOST_CASES", 2)
    data, seen = Decathlon.load(made), []
    propose(data, data.cases(quiet), lambda *now: seen.append(now))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_own_modalities(tmp_path: Path) -> None:
    kind = {**CT, "modality": {"0": "ct", "1": "PET"}}
    data = Decathlon.load(write_folder(tmp_path / "petct", 2, kind=kind))
    assert propose(data, data.cases(quiet), quiet).window is not None
