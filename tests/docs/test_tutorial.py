"""docs/tutorial.ipynb runs as it stands there, and what it shows is what its code has printed."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "run_tutorial.py"

#: Of the short form: two steps of training, encrypted and raw.
SMALL = "ROUNDS = 1\nPATCHES = [2, 2, 4]\nMODES = ['all']"


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("run_tutorial", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tutorial(tool: Any) -> nbformat.NotebookNode:
    return nbformat.read(tool.PATH, as_version=4)


@pytest.fixture
def execute(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[nbformat.NotebookNode], None]]:
    """Runs a notebook in a folder of its own; in the end there must be nothing left of it."""
    temporary, here = tmp_path / "tmp", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    def run(notebook: nbformat.NotebookNode) -> None:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        tool.client_for(notebook, here).execute()

    yield run
    assert list(here.iterdir()) == []
    assert list(temporary.glob("secagg*")) == []
    assert outliving(temporary) == []


def outliving(folder: Path) -> list[str]:
    """What processes still work in a folder, or in what was one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if process.cwd().startswith(str(folder)):
                found.append(" ".join(process.info["cmdline"] or []))
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def text_of(notebook: nbformat.NotebookNode, cell_id: str) -> str:
    """All that a cell has shown as text."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    shown = [
        output.text if output.output_type == "stream" else output.data.get("text/markdown", "")
        for output in cell.outputs
        if output.output_type != "error"
    ]
    return "".join(shown)


def dice_of(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """The Dice of each row of the table."""
    rows = re.findall(r"^\| ([\w-]+) \| (\d\.\d{4}) \|", text_of(notebook, "table"), re.MULTILINE)
    return {name: float(dice) for name, dice in rows}


def nbytes_of(notebook: nbformat.NotebookNode) -> dict[str, int]:
    rows = re.findall(r"^\| ([\w-]+) \| [^|]*\| [^|]*\| ([\d,]+) \|", text_of(notebook, "table"), re.MULTILINE)
    return {name: int(nbytes.replace(",", "")) for name, nbytes in rows}


def check_beginning(notebook: nbformat.NotebookNode, rounds: int) -> None:
    """What sections 2 to 4 show, whatever the parameters."""
    for party in ("server", "site-1", "site-2", "site-3"):
        assert f"all/{party}: kit of {party} in project white-matter" in text_of(notebook, "unpack-kits")
    assert re.search(r"^\| he-client\.key \| – \| \d+ \|$", text_of(notebook, "look-at-kits"), re.MULTILINE)
    assert "IN THE CLEAR       0 tensors, 0 values" in text_of(notebook, "inspect-update")
    assert re.search(r": 0\.[34]\d% of the bytes are equal", text_of(notebook, "twice"))
    assert "DigestError: " in text_of(notebook, "sum")
    assert len(re.findall(r"^all: round \d", text_of(notebook, "run-all"), re.MULTILINE)) == rounds
    assert text_of(notebook, "site-log").count("sum of 3 updates, verified") == rounds
    assert text_of(notebook, "equal-models") == "all sites have the same model: True\n"


def test_up_to_the_comparison_with_raw(
    tutorial: nbformat.NotebookNode, execute: Callable[[nbformat.NotebookNode], None]
) -> None:
    ids = [cell.id for cell in tutorial.cells]
    del tutorial.cells[ids.index("dice-check") + 1 :]
    (parameters,) = (cell for cell in tutorial.cells if "parameters" in cell.metadata.get("tags", []))
    names = [line.partition(" =")[0] for line in parameters.source.splitlines()]
    assert [line.partition(" =")[0] for line in SMALL.splitlines()] == names
    parameters.source = SMALL
    execute(tutorial)
    check_beginning(tutorial, rounds=1)
    dice, nbytes = dice_of(tutorial), nbytes_of(tutorial)
    assert list(dice) == list(nbytes) == ["raw", "all"]
    assert abs(dice["all"] - dice["raw"]) <= 0.02
    assert nbytes["all"] < nbytes["raw"]


@pytest.mark.long
def test_the_whole(
    tutorial: nbformat.NotebookNode,
    execute: Callable[[nbformat.NotebookNode], None],
    record_property: Callable[[str, object], None],
) -> None:
    committed = {cell.id: kinds(cell) for cell in tutorial.cells if cell.cell_type == "code"}
    begun = time.perf_counter()
    execute(tutorial)
    record_property("seconds", time.perf_counter() - begun)
    check_results(tutorial)
    assert {cell.id: kinds(cell) for cell in tutorial.cells if cell.cell_type == "code"} == committed


def kinds(cell: nbformat.NotebookNode) -> list[str]:
    return [output.get("name") or ", ".join(sorted(output.data)) for output in cell.outputs]


def check_results(notebook: nbformat.NotebookNode) -> None:
    """What the whole notebook shows."""
    check_beginning(notebook, rounds=4)
    dice, nbytes = dice_of(notebook), nbytes_of(notebook)
    assert list(dice) == list(nbytes) == ["raw", "all", "conv", "first-middle-last"]
    assert dice["raw"] > 0.85
    for mode in ("all", "conv", "first-middle-last"):
        assert abs(dice[mode] - dice["raw"]) <= 0.02
    assert nbytes["all"] < nbytes["conv"] < nbytes["raw"] < nbytes["first-middle-last"]
    read = text_of(notebook, "read")
    assert re.search(r"^\| all \| 0 of 39 \| 0 \| nothing to read \|$", read, re.MULTILINE)
    assert re.search(r"^\| conv \| 23 of 39 \| 338 \| 1\.0000", read, re.MULTILINE)
    assert re.search(r"^\| first-middle-last \| 35 of 39 \| 80,464 \| 1\.0000", read, re.MULTILINE)
    ssim = {
        name: float(value)
        for name, value in re.findall(r"^(.+): SSIM (-?\d\.\d\d)$", text_of(notebook, "pictures"), re.M)
    }
    assert list(ssim) == ["raw", "conv", "first-middle-last", "all", "mean of the other images"]
    assert min(ssim["raw"], ssim["conv"], ssim["first-middle-last"]) > 0.9
    assert ssim["all"] < 0.3
    assert re.search(r"^15 of 39 tensors are sent, ", text_of(notebook, "stay-layout"))
    assert re.search(r"^sent: 15 tensors, from 0 to 0 apart$", text_of(notebook, "stay-models"), re.MULTILINE)
    assert "site-2 is dead" in text_of(notebook, "kill")
    assert "going on with what was trained before" in text_of(notebook, "resumed-log")
    means = re.findall(r"begins from \| (0\.\d{4}) \| (0\.\d{4}) \|$", text_of(notebook, "means"), re.MULTILINE)
    assert len(means) == 4
    for mean, by_hand in means:
        assert abs(float(mean) - float(by_hand)) < 2e-3
    assert "all/site-1-best.pt: the global model that round" in text_of(notebook, "best")


def test_what_is_kept_is_of_this_code(tool: Any, tutorial: nbformat.NotebookNode) -> None:
    """`make tutorial` has run it whole since a cell was last changed."""
    nbformat.validate(tutorial)
    code = [cell for cell in tutorial.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert tutorial.metadata["secagg"]["code"] == tool.code_digest(tutorial)
    assert all(re.fullmatch("[a-z-]+", cell.id) for cell in tutorial.cells)
    check_results(tutorial)
    code[0].source += " "
    assert tutorial.metadata["secagg"]["code"] != tool.code_digest(tutorial)


def test_what_is_kept_has_no_error_no_secret_and_nothing_of_a_machine(tutorial: nbformat.NotebookNode) -> None:
    outputs = [output for cell in tutorial.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    told = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all(line.startswith("PrivacyWarning: ") for text in told for line in text.splitlines())
    kept = json.dumps([{**output, "data": without_pictures(output)} for output in outputs], ensure_ascii=False)
    assert not re.search(r"(/tmp|/root|/home|/work|/usr|site-packages|ipykernel_)", kept)
    assert not re.search(r"([a-z0-9]{5}-){3}", kept)  # a passphrase
    assert "BEGIN" not in kept  # a key in PEM
    assert max(len(output.text) for output in outputs if output.output_type == "stream") < 4000
    assert sum(len(output.get("data", {}).get("image/png", "")) for output in outputs) < 400_000


def without_pictures(output: nbformat.NotebookNode) -> dict[str, Any]:
    return {kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"}


def test_passphrases_look_as_above() -> None:
    from secagg.setup.passphrases import generate

    assert re.search(r"([a-z0-9]{5}-){3}", generate())


def test_links_and_commands(tutorial: nbformat.NotebookNode, tool: Any) -> None:
    from provisioned import COMMANDS

    text = "\n".join(cell.source for cell in tutorial.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("https://") or (tool.PATH.parent / target).exists(), target
    headings = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
    named = re.findall(r"\bsecagg ([a-z][\w-]*)", "\n".join(re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)))
    assert named
    assert set(named) <= set(COMMANDS)


@pytest.mark.long
def test_interrupted_it_ends_what_it_has_started(
    tutorial: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sources = {cell.id: cell.source for cell in tutorial.cells}
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        for name in ("parameters", "setup", "white-matter", "initial", "project", "federation"):
            assert client.execute_interactive(sources[name], timeout=120)["content"]["status"] == "ok"
        run = sources["run-modes"].replace("MODES[1:]", "['all']")
        assert "'all'" in run
        request = client.execute(run)
        deadline = time.monotonic() + 240
        while sum("secagg" in command for command in outliving(tmp_path)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != request:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert not [command for command in outliving(tmp_path) if "secagg" in command]
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    assert outliving(tmp_path) == []
    assert list(tmp_path.glob("secagg*")) == []
