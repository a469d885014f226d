"""Files of results: what they never replace, and that this is found before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from secagg.bench.results import Results, check_out
from secagg.cli import main
from secagg.errors import ConfigError


@pytest.mark.parametrize("kind", ["clara", "growth", "peers"])
def test_out_is_looked_at_first(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    Results("model", "secagg bench m.pt", {}).save(tmp_path / "model.json")
    for out, code, said in (
        (".", 2, "--out is the folder .; name a file"),
        (str(tmp_path), 2, "name a file"),
        ("thesis.txt", 2, f"thesis.txt, which holds no results of {kind!r}: name another"),
        ("model.json", 2, f"model.json, which holds no results of {kind!r}"),
        ("thesis.txt/results.json", 1, "cannot make the folder of"),
    ):
        assert main(["bench", kind, "--out", out]) == code, out
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_results_of_the_kind_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "new" / "peers.json"
    check_out(out, "peers")
    Results("peers", "secagg bench peers", {}).save(out)
    check_out(out, "peers")
    with pytest.raises(ConfigError, match="holds no results of 'clara'"):
        check_out(out, "clara")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_scipy(name: str) -> NoReturn:
        raise ImportError("No module named 'scipy'")

    monkeypatch.setattr("secagg.cli.bench.import_module", without_scipy)
    assert main(["bench", "growth", "--small"]) == 4
    assert "'scipy'; this command needs more: pip install 'secagg[tenseal,bench]'" in capsys.readouterr().err
