"""Rows of `make bench`: a run of single files replaces theirs alone, and each says when and on what it was measured."""

from __future__ import annotations

import json
from pathlib import Path

from report import TARGETS, Report

from secagg.bench.report.folder import read_file


def test_a_partial_run_replaces_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "results" / "bench.json"
    first = Report()
    first.measure("import", 0.1, "first")
    first.measure("flatten", 1.0, "first")
    first.save(path)
    data = json.loads(path.read_text())
    for row in data["data"]["targets"]:
        row.update(date="2020-01-01T00:00:00+00:00", processor="another")
    data["data"]["targets"].append({**data["data"]["targets"][0], "name": "of a file that was not run"})
    path.write_text(json.dumps(data))

    second = Report(command="python -m pytest benchmarks/bench_kernels.py")
    second.measure("flatten", 2.0, "second")
    second.measure("scatter", 1.1, "second")
    second.save(path)

    rows = {row["name"]: row for row in read_file(path).data["targets"]}
    assert list(rows) == ["flatten", "scatter", "import", "of a file that was not run"]
    assert list(rows)[:3] == [name for name in TARGETS if name in rows]
    assert (rows["import"]["detail"], rows["import"]["processor"], rows["import"]["met"]) == ("first", "another", True)
    assert (rows["flatten"]["detail"], rows["flatten"]["measured"], rows["flatten"]["met"]) == ("second", 2.0, False)
    assert rows["flatten"]["processor"] != "another"
    assert rows["flatten"]["command"] == "python -m pytest benchmarks/bench_kernels.py"
    assert rows["flatten"]["date"] > rows["import"]["date"]
