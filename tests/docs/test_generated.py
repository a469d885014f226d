"""Numbers of README.md and docs/ are what benchmarks/results says, and a change of either is seen."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import made_up_results as made_up
import pytest

from secagg.errors import FormatError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_docs", ROOT / "benchmarks" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(docs: ModuleType, tmp_path: Path) -> Path:
    """The pages, with results of one kind that are made up and draw no long figures."""
    for page in docs.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    folder = tmp_path / docs.RESULTS
    folder.mkdir(parents=True)
    made_up.peers_results().save(folder / "peers.json")
    made_up.bench_results().save(folder / "bench.json")
    made_up.shards_results().save(folder / "shards.json")
    beside = tmp_path / "benchmarks" / "leakage"
    beside.mkdir()
    made_up.leakage_results().save(beside / "leakage.json")
    return tmp_path


def test_pages_and_pictures_are_generated_from_the_results(docs: ModuleType) -> None:
    found = list(docs.differences(ROOT))
    assert not found, "\n".join([docs.REMEDY, *found])


def test_every_table_has_results(docs: ModuleType) -> None:
    """A block without any stays as it is, and would tell what nobody can repeat."""
    folder = docs.read_folder(ROOT / docs.RESULTS)
    assert not [name for name, generate in docs.GENERATORS.items() if generate(folder) is None]


def test_every_table_that_is_generated_is_on_a_page(docs: ModuleType) -> None:
    names = [match[2] for page in docs.PAGES for match in docs._BLOCK.finditer((ROOT / page).read_text())]
    assert sorted(names) == sorted(docs.GENERATORS)


def test_what_is_written_is_what_is_checked(docs: ModuleType, copy: Path) -> None:
    assert any("block readme" in line for line in docs.differences(copy))
    assert list(docs.write(copy)) == ["docs/benchmarks/peers.png", "docs/benchmarks/leakage.png", *docs.PAGES]
    assert list(docs.differences(copy)) == []
    assert list(docs.write(copy)) == []
    readme, backends, leakage, beyond, page = ((copy / name).read_text() for name in docs.PAGES)
    assert len(readme.split()) <= 1400
    assert "| NVFlare 2.9.0 HE |" in readme
    assert "| update | 339 MB | 270 MB | 118 MB | 15.6 MB | 4.70 MB |" in readme
    assert (
        "| largest error, values to 0.5 | 1.4e-07 | " in readme
    )  # for sizes and times alone would compare unlike precision
    assert "3.84 s to read and add an update" in backends
    assert "1: 2026-01-02, 2 cores of Processor 0; 2: 2026-01-02, 2 cores of Processor 1" in backends
    assert "](benchmarks/peers.png)" in page
    assert "](benchmarks/leakage.png)" in leakage
    assert "| flashe, 16 bits | S3 over HTTPS | 10 × 100 MB | 1.00 GB/s | 500 MB/s | 0.50 × |" in beyond
    assert "|  | conv | 38.0 | 0.97 | 1.00 | 77.0 % |" in leakage
    blocks = [text.partition("begin clara")[2].partition("end clara")[0] for text in (page, _page(docs))]
    assert blocks[0] == blocks[1] != ""  # there is no such file: the block stays


def _page(docs: ModuleType) -> str:
    return (ROOT / docs.PAGES[-1]).read_text()


def test_another_number_is_seen(docs: ModuleType, copy: Path) -> None:
    list(docs.write(copy))
    path = copy / docs.RESULTS / "peers.json"
    data = json.loads(path.read_text())
    data["data"]["rows"][0]["up_nbytes"] += 10**6
    data["date"] = "2026-02-03T04:05:06+00:00"
    path.write_text(json.dumps(data))
    found = list(docs.differences(copy))
    for name in ("README.md, block readme", "docs/backends.md, block nvflare", "docs/benchmarks.md, block peers"):
        assert any(line.startswith(name) for line in found)
    assert any(line.startswith("docs/benchmarks/peers.png: shows other results") for line in found)


def test_a_number_written_by_hand_is_seen(docs: ModuleType, copy: Path) -> None:
    list(docs.write(copy))
    page = copy / "README.md"
    page.write_text(page.read_text().replace("| 15.6 MB |", "| 12.6 MB |"))
    assert list(docs.differences(copy)) == ["README.md, block readme: not what benchmarks/results says"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<!-- end readme -->", "", "a block has no end"),
        ("<!-- begin readme: make report -->", "", "an end no block"),
        ("readme", "redame", "there is no block 'redame'"),
    ],
)
def test_a_damaged_block_is_refused(old: str, new: str, said: str, docs: ModuleType, copy: Path) -> None:
    page = copy / "README.md"
    page.write_text(page.read_text().replace(old, new))
    with pytest.raises(FormatError, match=said):
        list(docs.differences(copy))


def test_results_that_lack_a_column_are_refused(docs: ModuleType, copy: Path) -> None:
    path = copy / docs.RESULTS / "peers.json"
    path.write_text(path.read_text().replace('"bare-tenseal"', '"tenseal-2"'))
    with pytest.raises(FormatError, match="no numbers of bare-tenseal"):
        list(docs.differences(copy))
