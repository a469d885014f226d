"""What sites agree on of a segmentation: what can be written into the block, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decathlon_folder import CT_BLOCK, MRI, MRI_BLOCK, edit, write_folder

from secagg.errors import ConfigError
from secagg.integrations.monai.decathlon import Decathlon
from secagg.integrations.monai.settings import Settings
from secagg.trust.agreed_task import check_task


@pytest.mark.parametrize("block", [CT_BLOCK, MRI_BLOCK])
def test_a_block_there_and_back(block: dict[str, Any]) -> None:
    settings = Settings.of_block(block)
    assert block.items() <= settings.block.items()
    assert Settings.of_block(settings.block) == settings
    assert check_task(settings.block) == settings.block  # a manifest takes it


@pytest.mark.parametrize("name", ["modality", "labels", "spacing", "patch", "window"])
def test_what_must_be_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"task(:| lacks) '?{name}"):
        Settings.of_block({key: value for key, value in CT_BLOCK.items() if key != name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pitch": [16, 16, 16]}, " has an unknown name 'pitch'; a segmentation knows modality, labels, spacing"),
        ({"modality": "CT"}, "modality is 'CT'; list names of the channels"),
        ({"modality": []}, "modality is"),
        ({"labels": ["background"]}, "labels is"),
        ({"labels": ["background", 1]}, "labels is"),
        ({"labels": ["background", "left lung", "left-lung"]}, "two names that are one as metrics"),
        ({"spacing": [1, 1]}, "spacing is .*; list mm"),
        ({"spacing": 1.5}, "spacing is 1.5; list mm"),
        ({"spacing": [1, 1, 0]}, "spacing is"),
        ({"spacing": [1, 1, True]}, "spacing is"),
        ({"patch": [96, 96]}, "patch is .*; list multiples of 8"),
        ({"patch": [96, 96, 20]}, "patch is .*; list multiples of 8"),
        ({"patch": [96.0, 96, 96]}, "patch is"),
        ({"patch": [96, 96, 1024]}, "patch is .* up to 512"),
        ({"window": [240, -160]}, "window is .*; give the lower end first"),
        ({"window": [240]}, "window is .*; list the lower end first"),
        ({"modality": ["MRI"]}, "window is .*, and no channel is CT; leave it out"),
        ({"filters": 6}, "filters is 6; give a multiple of 4"),
        ({"filters": 0}, "filters is 0; give a whole number from 4 to 256"),
        ({"epochs": 1.5}, "epochs is 1.5; give a whole number from 1"),
        ({"samples": True}, "samples is True; give a whole number from 1"),
        ({"seed": -1}, "seed is -1; give a whole number from 0"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; give a number up to 1, as 0.001"),  # as YAML 1.1 reads it
        ({"learning_rate": 0}, "learning_rate is 0"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^task.*{message}"):
        Settings.of_block(CT_BLOCK | changes)


def test_the_network_is_the_same_at_all_sites() -> None:
    settings = Settings.of_block(MRI_BLOCK)
    states = [settings.make_network().state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = Settings.of_block(MRI_BLOCK | {"seed": 1}).make_network().state_dict()
    assert any(not torch.equal(states[0][name], other[name]) for name in other)
    assert settings.make_network()(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_data_of_another_kind(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mri", 1, kind=MRI)
    settings = Settings.of_block(MRI_BLOCK)
    settings.check_data(Decathlon.load(folder))
    with pytest.raises(ConfigError, match=r"has the modality \['T2', 'ADC'\], the project's manifest \['CT'\]"):
        Settings.of_block(CT_BLOCK).check_data(Decathlon.load(folder))
    edit(folder, labels={"0": "background", "1": "TZ", "2": "PZ"})
    with pytest.raises(ConfigError, match=r"has the labels .* anew with `labels: \['background', 'TZ', 'PZ'\]` in the"):
        settings.check_data(Decathlon.load(folder))


def test_names_of_what_is_measured() -> None:
    block = CT_BLOCK | {"labels": ["background", "left atrium", "non-enhancing tumor"]}
    assert Settings.of_block(block).metrics == ["dice", "dice_left_atrium", "dice_non_enhancing_tumor"]
