"""`secagg leak`: what it writes and prints, and what it refuses before it begins."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import made_up_results as made_up
import pytest
from PIL import Image

from secagg.bench.leakage import run as leakage_run
from secagg.bench.leakage.settings import RAW, SETTING_LIST, rows_beside
from secagg.bench.report.leakage import leakage_chart, leakage_tables
from secagg.bench.report.style import LIGHT
from secagg.bench.results import Results
from secagg.cli import main


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first network alone, hardly attacked."""
    settings = [replace(SETTING_LIST[0], steps=2)]
    monkeypatch.setattr(leakage_run, "measure", partial(leakage_run.measure, settings=settings))


@pytest.mark.usefixtures("quick")
def test_one_mode_is_beside_raw_and_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    arguments = ["leak", "--encrypt", "conv", "--images", "1", "--seed", "3", "--out", str(out)]
    assert main(arguments) == 0
    said = capfd.readouterr()
    results = Results.load(out / "leakage.json", "leakage")
    assert results.command == f"secagg {' '.join(arguments)}"
    assert [row["name"] for row in results.data["settings"][0]["rows"]] == ["raw", "conv", "all", "mean"]
    assert "LeNet, one SGD step: conv" in said.err
    assert "PrivacyWarning" not in said.err
    for word in ("PSNR, dB", "SSIM", "identified", "clear", "76.9 %", "by chance 0.02", "nothing follows"):
        assert word in said.out
    with Image.open(out / "leakage.png") as picture:
        assert picture.getpixel((0, 0)) is not None
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        assert picture.width > 400
    assert main(arguments) == 0  # results of its own kind are replaced


@pytest.mark.usefixtures("quick")
def test_a_configuration_of_ones_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "federation.yaml"
    file.write_text("he: {preset: smallest}\nencrypt: {exclude: [dense1.*]}\naggregation: {max_clients: 5}\n")
    assert main(["leak", "--config", str(file), "--images", "1", "--out", str(tmp_path / "leak")]) == 0
    rows = json.loads((tmp_path / "leak" / "leakage.json").read_text())["data"]["settings"][0]["rows"]
    assert [row["title"] for row in rows] == ["raw", str(file), "all", "mean of the other images"]
    assert rows[1]["clear"] == pytest.approx(24_608 / 32_474)
    file.write_text("he: {preset: smallest}\nencrypt: {exclude: [decoder.*]}\naggregation: {max_clients: 5}\n")
    assert main(["leak", "--config", str(file), "--images", "1", "--out", str(tmp_path / "leak")]) == 2
    assert "LeNet, one SGD step, which is attacked, has conv1.weight" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "0"], "--images is 0; use 1 or more"),
        (["--images", "61"], "--images is 61; there are 60"),
        (["--seed", "-1"], "--seed is -1; use 0 or more"),
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--out", "file"], "file"),
        (["--out", "."], "--out must not replace leakage.json, which holds no results of 'leakage'"),
    ],
)
def test_bad_input(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(leakage_run, "measure", lambda *_: pytest.fail("it has begun"))
    Path("file").touch()
    Path("leakage.json").write_text('{"of": "somebody else"}')
    assert main(["leak", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err
    assert json.loads(Path("leakage.json").read_text()) == {"of": "somebody else"}


def test_modes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--encrypt", "conv", "--config", "file"], ["--encrypt", "some"]):
        with pytest.raises(SystemExit):
            main(["leak", *arguments])
        assert "--encrypt" in capsys.readouterr().err
    assert list(rows_beside("all")) == [RAW, "all"]


def test_settings_that_raw_fails_in_are_apart() -> None:
    results = made_up.leakage_results()
    telling, others = leakage_tables(results)
    assert [row[:2] for row in telling.rows] == [("LeNet", "raw"), ("", "conv"), ("", "all"), ("", "mean")]
    assert telling.rows[0] == ("LeNet", "raw", "50.1", "0.99", "1.00", "100.0 %")
    assert telling.rows[3] == ("", "mean", "14.0", "0.41", "–", "–")
    assert [row[0] for row in others.rows] == ["Adam", "", "", ""]
    assert "nothing follows" in others.caption
    assert "by chance 0.02" in telling.note
    chart = leakage_chart(results)
    assert "LeNet: raw 0.99, conv 0.97, all 0.02, mean 0.41" in chart.alt
    assert "Adam" not in chart.alt
    figure = chart.draw(LIGHT)
    assert len(figure.axes) == 2 * 5  # two images, the true ones and four rows
    assert figure.axes[1].get_title() == "raw\nSSIM 0.99"
    assert figure.axes[0].images[0].get_array().shape == (2, 2)


def test_results_without_a_setting_that_tells_are_drawn() -> None:
    results = made_up.leakage_results(ssim=0.3)
    assert [table.caption for table in leakage_tables(results)] == [
        "Where raw updates do not: nothing follows for encryption"
    ]
    assert leakage_chart(results).draw(LIGHT).axes
