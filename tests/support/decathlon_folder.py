"""Small folders in the shape of the Medical Segmentation Decathlon: a bright ball in noise, to be found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

#: Of each case: larger than a patch of 16³, and not cubic.
SIZE = (20, 18, 22)
SPACING = (1.0, 1.0, 1.5)

CT = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
MRI = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}

#: Settings that are trained in a second.
SMALL = {"spacing": [1.0, 1.0, 1.5], "patch": [16, 16, 16], "filters": 4, "samples": 2, "learning_rate": 0.01}
CT_BLOCK: dict[str, Any] = {"modality": ["CT"], "labels": ["background", "spleen"], "window": [-160, 240], **SMALL}
MRI_BLOCK: dict[str, Any] = {"modality": ["T2", "ADC"], "labels": ["background", "PZ", "TZ"], **SMALL}


def write_folder(folder: Path, cases: int, *, kind: dict[str, Any] = CT, seed: int = 0) -> Path:
    """Write a data set, and return its folder."""
    random = np.random.default_rng(seed)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    training = []
    for number in range(cases):
        image, label = volume(random, channels=len(kind["modality"]), classes=len(kind["labels"]))
        case = {key: f"./{key}sTr/case_{number:03}.nii.gz" for key in ("image", "label")}
        write_nifti(folder / case["image"], image)
        write_nifti(folder / case["label"], label)
        training.append(case)
    content = {"name": "Ball", "numTraining": cases, **kind, "training": training, "test": []}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def volume(random: np.random.Generator, channels: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A ball of each class in the next one, of higher intensity in each channel, and its label."""
    centre = [random.uniform(0.4, 0.6) * size for size in SIZE]
    axes = np.ogrid[tuple(slice(size) for size in SIZE)]
    distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)))
    label = np.zeros(SIZE, np.uint8)
    for number in range(1, classes):
        label[distance < 8.0 - 3.0 * (number - 1)] = number
    noise = random.normal(0.0, 10.0, (*SIZE, channels))
    image = noise + 100.0 * label[..., None] - 50.0
    return (image if channels > 1 else image[..., 0]).astype(np.int16), label


def write_nifti(path: Path, values: np.ndarray, spacing: tuple[float, ...] = SPACING) -> None:
    """Write a volume whose axes go to the right, the front and the top."""
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1.0])), path)


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of ``dataset.json``; those that become None are left out."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    content = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")
