"""Folders in the shape of the Medical Segmentation Decathlon: ``dataset.json``, and images and labels as NIfTI.

``dataset.json`` names channels (``modality``), classes (``labels``) and cases (``training``: pairs of ``image`` and
``label``, paths in the folder). Everything that a training would stumble over is found here, before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel
import numpy as np
from monai.data import load_decathlon_datalist, load_decathlon_properties
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from secagg.errors import ConfigError, show

DATASET_FILE = "dataset.json"

#: Most channels and classes that a data set has.
MAX_CHANNELS = 64
MAX_CLASSES = 256

#: Least and largest edge of a voxel in mm, of files and of what they are resampled to.
SPACINGS = (0.01, 100)

#: By how much the voxels of a label may differ in size and direction from those of its image, in mm.
_TOLERANCE = 1e-2

_CHUNK = 1 << 20

Report = Callable[[float, float], None]


@dataclass(frozen=True)
class Case:
    """An image and its label, and the grid of both.

    Parameters
    ----------
    image, label : Path
        The files.
    size : tuple of int
        Voxels from left to right, back to front and bottom to top.
    spacing : tuple of float
        Of voxels along these axes, in mm.
    """

    image: Path
    label: Path
    size: tuple[int, ...]
    spacing: tuple[float, ...]


@dataclass(frozen=True)
class Decathlon:
    """A data set whose list was read; the files were not.

    Parameters
    ----------
    folder : Path
        Where ``dataset.json`` is.
    modality : tuple of str
        Names of the channels: ``CT``, or what else an image shows.
    labels : tuple of str
        Names of the classes, the background first.
    files : tuple of tuple of Path
        Image and label of each case, in the order of their paths.
    """

    folder: Path
    modality: tuple[str, ...]
    labels: tuple[str, ...]
    files: tuple[tuple[Path, Path], ...]

    @classmethod
    def load(cls, folder: Path) -> Decathlon:
        """Read ``dataset.json``.

        Raises
        ------
        ConfigError
            If it is missing or not as the Decathlon has it, names a file twice, one outside the folder, or one that is
            not there.
        """
        path = folder / DATASET_FILE
        if not path.is_file():
            raise ConfigError(f"{folder} has no {DATASET_FILE}: give the folder of a Decathlon task, as it unpacks")
        try:
            data = load_decathlon_properties(path, ("modality", "labels", "training"))
            names = _paths(data["training"], path)
            listed = load_decathlon_datalist(path, is_segmentation=True, data_list_key="training")
            missing = [name for name in names if not (folder / name).is_file()]
        except KeyError as error:
            raise ConfigError(f"{path} is not as the Decathlon has it: {error.args[0]}") from error
        except OSError as error:  # also of a name that no file can have
            raise ConfigError(f"{path}, or a file that it names, cannot be read: {error}") from error
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as the JSON of the Decathlon: {error}") from error
        if missing:
            raise ConfigError(
                f"{folder} lacks {len(missing)} of the {len(names)} files that {DATASET_FILE} names, such as "
                f"{missing[0]}: unpack it whole"
            )
        return cls(
            folder=folder,
            modality=_names(data["modality"], "modality", MAX_CHANNELS, path),
            labels=_names(data["labels"], "labels", MAX_CLASSES, path),
            files=tuple(sorted((Path(item["image"]), Path(item["label"])) for item in listed)),
        )

    def cases(self, report: Report) -> list[Case]:
        """Read the labels, and the headers of the images.

        Parameters
        ----------
        report : callable
            Called with the number of cases that were read, and of all.

        Raises
        ------
        ConfigError
            If a file is no volume of numbers, an image has other channels than ``dataset.json`` says, a label has
            voxels of another size or direction than its image, or has a value that is none of the classes.
        """
        cases = []
        for done, (image, label) in enumerate(self.files):
            report(done, len(self.files))
            cases.append(self._case(image, label))
        report(len(self.files), len(self.files))
        return cases

    def _case(self, image: Path, label: Path) -> Case:
        volume, mask = _open(image), _open(label)
        size, channels = volume.shape[:3], volume.shape[3:] or (1,)
        count = len(self.modality)
        if len(size) < 3 or channels != (count,):
            raise ConfigError(
                f"{image} has shape {volume.shape}: {DATASET_FILE} names {count} channel{'s' if count > 1 else ''} "
                f"({', '.join(self.modality)}), {'a 3-D file' if count == 1 else 'the last axis of a 4-D file'}"
            )
        if mask.shape != size:
            raise ConfigError(f"{label} has shape {mask.shape}, its image {image.name} {size}: a label has that of it")
        axes = volume.affine[:3, :3]
        if not np.allclose(axes, mask.affine[:3, :3], rtol=0, atol=_TOLERANCE):
            raise ConfigError(
                f"{label} has voxels of {_millimetres(mask)}, its image {image.name} of {_millimetres(volume)}, or "
                "they are turned: both lie on one grid"
            )
        with reading(label):
            self._check_classes(np.asanyarray(mask.dataobj), label)
        order = io_orientation(volume.affine)[:, 0]  # type: ignore[no-untyped-call]
        if np.isnan(order).any():
            raise ConfigError(f"{image} does not say in which direction an axis goes: its affine has a row of zeros")
        turned = np.argsort(order)
        spacing = np.linalg.norm(axes, axis=0)[turned]
        if not (SPACINGS[0] <= spacing.min() and spacing.max() <= SPACINGS[1]):
            raise ConfigError(
                f"{image} has voxels of {_millimetres(volume)}; edges of {SPACINGS[0]} to {SPACINGS[1]} mm can be: is "
                "its affine in another unit?"
            )
        return Case(image, label, tuple(int(size[axis]) for axis in turned), tuple(map(float, spacing)))

    def _check_classes(self, values: NDArray[Any], label: Path) -> None:
        count = len(self.labels)
        if values.min() >= 0 and values.max() < count and (values.dtype.kind in "ui" or (values % 1 == 0).all()):
            return
        others = sorted(set(np.unique(values).tolist()) - set(range(count)))
        raise ConfigError(
            f"{label} has the value {others[0]:g}; {DATASET_FILE} names the classes 0 to {count - 1} "
            f"({', '.join(self.labels)}): mend the label, or name the class"
        )


def is_ct(modality: str) -> bool:
    """Return whether a channel has the calibrated intensities of computed tomography."""
    return modality.strip().upper() == "CT"


def read_image(case: Case) -> NDArray[np.float32]:
    """Return the image of a case as it lies in the file, axes (x, y, z, channel); `ConfigError` if it is damaged."""
    with reading(case.image):
        volume: NDArray[np.float32] = _open(case.image).get_fdata(dtype=np.float32)
    return volume if volume.ndim == 4 else volume[..., None]


def read_label(case: Case) -> NDArray[Any]:
    """Return the label of a case as it lies in the file, axes (x, y, z); `ConfigError` if it is damaged."""
    with reading(case.label):
        return np.asanyarray(_open(case.label).dataobj)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into `ConfigError`, also where values were read that have another checksum.

    That is at the end of what gzip has packed: nibabel stops before it, with the last voxel.
    """
    with _typed(path):
        yield
        with ImageOpener(str(path)) as file:
            while file.read(_CHUNK):
                pass


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    try:
        yield
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read as NIfTI: {error}") from error
    except (OverflowError, MemoryError) as error:
        raise ConfigError(f"{path} cannot be read as NIfTI: its header gives a size that no file has") from error


def _open(path: Path) -> Any:
    with _typed(path):
        volume = nibabel.load(path)
    if not isinstance(volume, SpatialImage):
        raise ConfigError(f"{path} holds no volume; convert it to NIfTI")
    if volume.get_data_dtype().kind not in "uif":
        raise ConfigError(f"{path} holds {volume.get_data_dtype()} in each voxel; convert it to one real number")
    if not np.isfinite(volume.affine).all():
        raise ConfigError(f"{path} does not say where its voxels lie: its affine is not finite")
    return volume


def _paths(training: Any, path: Path) -> list[str]:
    """Return the paths of all images and labels, relative to the folder."""
    if not isinstance(training, list) or not training:
        raise ConfigError(f"{path}: training is {show(training)}; list the cases: [{{'image': …, 'label': …}}]")
    names: list[str] = []
    for case in training:
        for key in ("image", "label"):
            name = case.get(key) if isinstance(case, dict) else None
            if not isinstance(name, str) or not name:
                raise ConfigError(f"{path}: the case {show(case)} has no {key}; give the path of one file")
            parts = PurePosixPath(name).parts
            if PurePosixPath(name).is_absolute() or ".." in parts:
                raise ConfigError(f"{path} names {name}, which is outside its folder: put the file into the folder")
            names.append(str(PurePosixPath(*parts)))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path} names {twice} twice: each image and each label is of one case")
    return names


def _names(block: Any, key: str, most: int, path: Path) -> tuple[str, ...]:
    """Return the names of channels or classes, which are counted from 0."""
    if not isinstance(block, dict) or not 1 <= len(block) <= most or set(block) != set(map(str, range(len(block)))):
        raise ConfigError(f"{path}: {key} is {show(block)}; number 1 to {most} names from 0: {{'0': name, '1': name}}")
    names = tuple(block[str(number)] for number in range(len(block)))
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > 100:
            raise ConfigError(f"{path}: {key} has the name {show(name)}; give text of 1 to 100 characters")
    return names


def _millimetres(volume: Any) -> str:
    return " × ".join(f"{size:.4g}" for size in np.linalg.norm(volume.affine[:3, :3], axis=0)) + " mm"
