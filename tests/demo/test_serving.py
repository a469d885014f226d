"""What is read of a server that is at work."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

from secagg.demo.serving import ServerProcess


def test_a_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    server = ServerProcess(Mock(), "server", tmp_path / "kit", tmp_path, tmp_path)
    assert server.add_seconds() == []
    uploads = [{"add_seconds": 0.25}, {"add_seconds": 0.5}]
    failed = json.dumps({"outcome": "failed", "uploads": uploads[:1]})
    line = json.dumps({"outcome": "completed", "uploads": uploads})
    for text, seconds in (
        (line[:-9], []),
        (line, []),
        (f"{failed}\n{line}\n", [0.75]),
        (f"{line}\n{line[:9]}", [0.75]),
    ):
        (tmp_path / "rounds.jsonl").write_text(text)
        assert server.add_seconds() == seconds
