"""`--data` of `secagg site` and `secagg demo`, `secagg inspect` of a data set: what is refused, and who trains what.

All in this process: MONAI loads once.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decathlon_folder import CT_BLOCK, MRI, MRI_BLOCK, SIZE, write_folder, write_nifti
from provisioned import Federation

from secagg.cli import demo, main, site
from secagg.demo import raw
from secagg.demo.own_data import OwnData
from secagg.setup import ProjectFile, Provisioner
from secagg.setup.progress import silent

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS: dict[str, dict[str, Any]] = {
    "none": {},
    "mri": {"task": MRI_BLOCK, "metrics": ["dice", "dice_TZ"]},
    "ct": {"task": CT_BLOCK},
    "other": {"task": {"rows": 3}},
}

SERVER = ("--server", "localhost:1", "--timeout", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("mri") / "data", 5, kind=MRI)


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A site's kit of a project under each block, and under none."""
    folder = tmp_path_factory.mktemp("kits")
    made = {name: Federation.make(folder / name, **block) for name, block in BLOCKS.items()}
    return {name: federation["a"] for name, federation in made.items()}


REFUSED = [
    ("none", ("--data", "DATA"), "the project's manifest has no `task:` block"),
    ("none", ("--data", "DATA"), "dataset.json` prints one; put it into project.yaml"),
    ("ct", ("--data", "DATA"), "has the modality ['T2', 'ADC'], the project's manifest ['CT']"),
    ("other", ("--data", "DATA"), "task has an unknown name 'rows'; a segmentation knows modality"),
    ("mri", ("--data", "nowhere"), "nowhere has no dataset.json"),
    ("mri", ("--data", "DATA", "--fold", "6/5"), "fold is '6/5': write 2/5"),
    ("mri", ("--data", "DATA", "--fold", "1/9"), "5 cases are too few for 9 folds; use --fold 1/5"),
    ("mri", ("--data", "DATA", "--task", "own.py:Own"), "--data names what is trained, and so does --task"),
    ("mri", ("--fold", "1/5"), "--fold holds out cases of --data: give a folder, too"),
    ("mri", ("--data", "DATA", "--option", "fold=1/2"), "--option fold is none of --data: folder and fold are"),
    ("mri", ("--data", "DATA", "--option", "filters=8"), "the options do not fit the task"),
]


@pytest.mark.parametrize(("kit", "arguments", "message"), REFUSED)
def test_what_is_refused_before_a_site_joins(
    kits: dict[str, Path],
    data: Path,
    capsys: pytest.CaptureFixture[str],
    kit: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    given = [str(data) if word == "DATA" else word for word in arguments]
    assert main(["site", str(kits[kit]), *SERVER, *given]) == 2  # no server could be reached: that would be 5
    assert message in capsys.readouterr().err


def test_a_label_that_is_wrong_is_refused_before_a_site_joins(
    kits: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    write_nifti(folder / "labelsTr" / "case_003.nii.gz", np.full(SIZE, 7, np.uint8))
    assert main(["site", str(kits["mri"]), *SERVER, "--data", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert f"read the cases of {folder}" in shown
    assert "case_003.nii.gz has the value 7; dataset.json names the classes 0 to 2 (background, PZ, TZ)" in shown


def test_what_is_well_joins(kits: dict[str, Path], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["site", str(kits["mri"]), *SERVER, "--data", str(data)]) == 5
    assert "join the federation" in capsys.readouterr().err


def test_curves_need_a_library(
    kits: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    arguments = ("--data", str(data), "--option", "tensorboard=curves")
    assert main(["site", str(kits["mri"]), *SERVER, *arguments]) == 4
    shown = capsys.readouterr().err
    assert "tensorboard" in shown
    assert "pip install 'secagg[tenseal,monai,grpc]'" in shown


def test_inspect_shows_the_block_of_a_manifest(kits: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(kits["mri"] / "project.secagg")]) == 0
    shown = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["task", "patch:", "[16, 16, 16]"] in shown
    assert ["task", "labels:", "['background', 'PZ', 'TZ']"] in shown


def test_inspect_of_data_that_is_wrong(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "imagesTr" / "case_000.nii.gz").write_bytes(b"no image")
    assert main(["inspect", str(folder / "dataset.json")]) == 2
    assert "case_000.nii.gz cannot be read as NIfTI" in capsys.readouterr().err
    assert main(["inspect", str(folder)]) == 7
    assert f"name a file in it, such as {folder / 'dataset.json'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sites", "3"), "has 5 cases, too few for 3 sites: each needs two, one to train with and one to hold out"),
        (("--sites", "3"), "use --sites 2"),
        (("--sites", "1"), "--sites is 1; the demo's data needs 2 sites or more"),
        (("--preset", "exact", "--backend", "seal"), "--preset names backend and params, and so does --backend"),
        (("--data", "nowhere"), "nowhere has no dataset.json: give the folder of a Decathlon task"),
    ],
)
def test_a_demo_that_cannot_be(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "run"
    assert main(["demo", "--data", str(data), "--run-dir", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_sites_of_a_demo(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its processes do, in this one: each site has its own cases, the same ones encrypted and raw."""
    own = OwnData.plan(data, 2, 3, silent)
    assert own.block["patch"] == [16, 16, 16]
    assert own.block["seed"] == 3
    assert own.most_cases == 3
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    config = demo.demo_config(parser.parse_args(["--sites", "2"]), own)
    assert config.metrics == ("dice", "dice_PZ", "dice_TZ")
    assert config.aggregation.max_weight == 3
    (tmp_path / "kits").mkdir()
    file = ProjectFile("demo", config, ("site-1", "site-2"), task=own.block)
    Provisioner.create(file, tmp_path / "authority", tmp_path / "kits")
    taken: list[Any] = []

    def take(kit: object, connect: object, task: Any, *rest: object, **more: object) -> dict[str, float]:
        taken.append(task._task)
        return {}

    monkeypatch.setattr(site, "run_task", take)
    seen = []
    for number in (1, 2):
        kit = tmp_path / "kits" / f"site-{number}"
        options = [*own.training, "--option", f"part={number}/2", "--option", "threads=1"]
        assert main(["site", str(kit), *SERVER, *options]) == 0
        given = argparse.Namespace(kit=kit, data=data, fold=own.training[3], option=[f"part={number}/2", "threads=1"])
        tasks = (taken.pop(), raw._task(given))
        names = [
            [sorted(case["label"].name for case in cases.data) for cases in (task._training, task._held_out)]
            for task in tasks
        ]
        assert names[0] == names[1]
        assert {task.examples for task in tasks} == {len(names[0][0])}
        seen += [name for cases in names[0] for name in cases]
    assert sorted(seen) == [f"case_{number:03}.nii.gz" for number in range(5)]
