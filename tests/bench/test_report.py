"""The report: a page that renders in a browser, light and dark, and asks for nothing; and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import made_up_results as made_up
import numpy as np
import pytest
from browsing import DARK, chromium
from PIL import Image

from secagg.bench.report.backends import size_chart
from secagg.bench.report.folder import read_folder
from secagg.bench.report.numbers import show_bytes, show_number, show_ratio, show_time
from secagg.bench.report.page import PAGE, render, write_report
from secagg.bench.report.sections import sections
from secagg.bench.report.style import LIGHT, spread, styled
from secagg.bench.report.training import dice_chart
from secagg.cli.__main__ import main
from secagg.errors import FormatError

FIGURES = {
    *("size-segresnet", "peers", "dice", "steps", "growth-parameters", "growth-sites", "growth-links", "history"),
    "leakage",
}
BLUE, DARK_GROUND = (0x00, 0x72, 0xB2), (0x15, 0x18, 0x1D)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    made_up.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def out(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new"
    assert {file.name for file in write_report(results, path)} == {PAGE, *(f"{name}.png" for name in FIGURES)}
    return path


class Page(HTMLParser):
    """What of a page the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.figures: list[dict[str, Any]] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        mine = {name: value or "" for name, value in attributes}
        self.tags.append((tag, mine))
        self._inside.append(tag)
        if tag == "figure":
            self.figures.append({"name": mine["id"], "code": "", "uris": []})
        elif tag in ("img", "source"):
            self.figures[-1]["uris"].append(mine.get("src") or mine["srcset"])
            self.figures[-1].update(alt=mine.get("alt", ""))

    def handle_endtag(self, tag: str) -> None:
        while self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["code"] and "figcaption" in self._inside:
            self.figures[-1]["code"] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [mine for name, mine in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / PAGE).read_text())


def test_every_figure_says_what_it_shows_and_its_command(page: Page) -> None:
    assert {figure["name"].removeprefix("figure-") for figure in page.figures} == FIGURES
    commands = {figure["name"]: figure["code"] for figure in page.figures}
    assert commands["figure-peers"] == "secagg bench peers"
    assert commands["figure-history"] == "make bench-check GATE=--record"
    assert all(commands.values())
    assert all(len(figure["alt"]) > 80 for figure in page.figures)


def test_nothing_is_asked_for_from_elsewhere(page: Page, out: Path) -> None:
    uris = [uri for figure in page.figures for uri in figure["uris"]]
    assert len(uris) == 2 * len(FIGURES)
    for uri in uris:
        kind, _, data = uri.partition(",")
        assert kind == "data:image/svg+xml;base64"
        for element in ET.fromstring(base64.b64decode(data)).iter():
            links = [value for name, value in element.attrib.items() if name.endswith(("href", "src"))]
            assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
            assert not element.tag.endswith(("script", "foreignObject"))
    assert all(mine["href"].startswith("#") for mine in page.all("a"))
    assert not any(page.all(tag) for tag in ("script", "link", "iframe", "object", "base", "form", "video"))
    text = re.sub(r'"data:[^"]*"', "", (out / PAGE).read_text())
    assert not re.search(r"https?:|@import|url\(|\bon\w+=", text)
    (policy,) = (mine["content"] for mine in page.all("meta") if mine.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_headings_anchors_and_tables_are_in_order(page: Page, out: Path) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    names = [mine["id"] for _, mine in page.tags if "id" in mine]
    assert len(names) == len(set(names))
    assert {mine["href"][1:] for mine in page.all("a")} <= set(names)
    assert {mine["aria-labelledby"] for mine in page.all("table")} <= set(names)
    assert {mine.get("scope") for mine in page.all("th")} == {"col", "row"}
    text = (out / PAGE).read_text()
    assert "it is &lt;not&gt; there" in text  # what results hold is text, never markup
    assert "NOT MET" in text
    assert 'class="missing"' in text  # there is no sizes.csv
    assert "make sizes" in text


def test_every_setting_has_its_name_beside_the_plot() -> None:
    results = made_up.model_results()
    (axes,) = size_chart("m", results).draw(LIGHT).axes
    named = [text.get_text() for text in axes.texts]
    assert named[0] == "SegResNet as float32: 18.8 MB"
    rows = [row for row in results.data["rows"] if not row["problem"]]
    shares = {row["title"]: row["up_nbytes"] / made_up.MODEL["raw_nbytes"] for row in rows}
    assert sorted(named[1:]) == sorted(f"{title}  {show_ratio(share)}" for title, share in shares.items())
    assert "time" in axes.get_xlabel()
    assert "size" in axes.get_ylabel()


def test_a_long_name_leaves_room_for_the_plot() -> None:
    results, name = made_up.model_results(), "long_name_" * 20
    results.data["model"]["name"] = name
    chart = size_chart("m", results)
    assert name in chart.title
    assert chart.png().startswith(b"\x89PNG")
    with styled(LIGHT):
        (axes,) = chart.draw(LIGHT).axes
    assert axes.get_position().width > 0.5  # the name has not taken the place


def test_no_targets_are_none_that_are_met(tmp_path: Path) -> None:
    results = made_up.peers_results()
    results.data["targets"].clear()
    results.save(tmp_path / "peers.json")
    first = next(iter(sections(read_folder(tmp_path))))
    assert (first.name, first.tables) == ("targets", [])


@pytest.mark.parametrize("name", ["a$b", "a$x^$c", r"$\foo$", "<b>[bold]"])
def test_a_name_is_text_and_no_formula(name: str) -> None:
    results = made_up.model_results()
    model = {**results.data["model"], "name": name}
    assert size_chart("m", replace(results, data={**results.data, "model": model})).png()


def test_pictures_are_not_blank_and_small(out: Path) -> None:
    for name in FIGURES:
        data = (out / f"{name}.png").read_bytes()
        assert len(data) < 150_000, name
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert pixels[0, 0] == 255
        assert 0.01 < (pixels < 200).mean() < 0.6, name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return chromium(tmp_path_factory.mktemp("profile"))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_it(theme: str, browser: list[str], out: Path, page: Page, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    scheme = [DARK] if theme == "dark" else []
    command = [
        *browser,
        *scheme,
        "--window-size=1280,9000",
        f"--screenshot={shot}",
        "--dump-dom",
        (out / PAGE).as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    if done.stdout:
        assert len(Page(done.stdout).figures) == len(page.figures)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert tuple(pixels[5, 5]) == (DARK_GROUND if theme == "dark" else (255, 255, 255))
    luminance = pixels.mean()
    assert luminance < 60 if theme == "dark" else luminance > 220
    # Figures have the theme's ground, and are drawn: blue lines, points and bars from near the top to far below.
    blue = np.flatnonzero((np.abs(pixels - BLUE).max(axis=2) < 25).any(axis=1))
    assert len(blue) > 300
    assert blue[-1] - blue[0] > 3000


def test_means_are_of_the_seeds_that_all_settings_have(tmp_path: Path) -> None:
    results = made_up.clara_results(rounds=2)
    for cell in results.data["cells"]:
        for row in cell["rows"]:
            row["dice"] = 0.5 + 0.1 * cell["seed"] + (0.01 if row["setting"] == "exact" else 0)
        if cell["seed"]:
            cell["rows"] = [row for row in cell["rows"] if row["setting"] in ("raw", "exact")]
    axes = dice_chart(results).draw(LIGHT).axes
    assert {text.get_text() for text in axes[0].texts} >= {"raw 0.500", "full 0.500", "exact 0.510"}
    assert {text.get_text() for text in axes[2].texts} >= {"full +0.000", "exact +0.010"}


def test_a_folder_with_one_file_says_what_makes_the_others(tmp_path: Path) -> None:
    made_up.bench_results().save(tmp_path / "bench.json")
    text = render(list(sections(read_folder(tmp_path))), {})
    for command in (
        "MODEL --out FOLDER",
        *(f"{kind} --out FOLDER/{kind}.json" for kind in ("peers", "clara", "growth", "shards")),
    ):
        assert f"secagg bench {command}" in text
    assert "make bench-check" in text
    assert "1 of 2 targets met" in text
    assert "2 cores of Processor 1" in text


def test_sizes_are_read_from_beside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    made_up.bench_results().save(folder / "bench.json")
    head = "setting,model,parameters,sites,up_nbytes"
    (tmp_path / "sizes.csv").write_text(f"{head}\nexact,small,1000,30,3320\nexact,small,1000,100,4000\n")
    text = render(list(sections(read_folder(folder))), {})
    assert "preset exact" in text
    assert "0.83 ×" in text


def _without(name: str) -> str:
    data = json.loads(json.dumps(made_up.peers_results().__dict__))
    del data["data"]["rows"][1][name]
    return json.dumps(data)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("peers.json", "{", "is not a file of results"),
        ("package.json", '{"name": "secagg"}', "is not a file of results: kind, command and data are missing"),
        ("peers.json", _without("up_nbytes"), "data.rows[1] has no 'up_nbytes'"),
        ("other.json", json.dumps({**made_up.peers_results().__dict__, "kind": "pears"}), "is of kind 'pears'"),
        ("other.json", json.dumps({**made_up.peers_results().__dict__, "data": []}), "data is [], not a mapping"),
        ("other.json", json.dumps({**made_up.peers_results().__dict__, "machine": {}}), "machine has no 'processor'"),
        ("history.jsonl", made_up.history_lines(1) + "{\n", "history.jsonl, line 2"),
        ("history.jsonl", '{"date": "", "commit": 7, "rows": []}\n', "line 1.commit is 7, not a text"),
    ],
)
def test_a_damaged_file_is_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError) as caught:
        read_folder(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_two_files_of_a_kind_are_refused(tmp_path: Path) -> None:
    for name in ("monday.json", "tuesday.json"):
        made_up.bench_results().save(tmp_path / name)
    with pytest.raises(FormatError, match=r"monday\.json and .*tuesday\.json are both of kind 'bench'"):
        read_folder(tmp_path)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(tmp_path)]) == 7
    assert "holds no results" in capsys.readouterr().err
    assert main(["bench", "report", str(tmp_path / "gone")]) == 7
    assert "cannot read the folder" in capsys.readouterr().err


def test_numbers_have_three_digits() -> None:
    assert [show_bytes(value) for value in (0, 999, 15_603_034, 117_565_534, 2.4e9)] == [
        "0.00 B",
        "999 B",
        "15.6 MB",
        "118 MB",
        "2.40 GB",
    ]
    assert [show_time(value) for value in (0, 2.5e-6, 0.0584, 0.9996, 59.96, 178, 1200)] == [
        "0 s",
        "2.50 µs",
        "58.4 ms",
        "1.00 s",
        "60.0 s",
        "178 s",
        "20.0 min",
    ]
    assert [show_number(value) for value in (0, 1.4e-7, 0.0342, 1.0, 21.72, 1024, 3e7)] == [
        "0",
        "1.4e-07",
        "0.0342",
        "1.00",
        "21.7",
        "1,024",
        "3.0e+07",
    ]
    assert [show_ratio(value) for value in (0.831, 24.49, 290.4)] == ["0.83 ×", "24.5 ×", "290 ×"]


def test_names_at_the_ends_of_lines_stand_apart() -> None:
    places = spread([0.0, 0.5, 0.5, 0.51, 0.99, 1.0], 0.1)
    assert places == sorted(places)
    assert all(later - earlier >= 0.0999 for earlier, later in pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= 1.0001
    assert places[1:4] == pytest.approx([0.4033, 0.5033, 0.6033], abs=1e-3)
    assert spread([], 0.1) == []
