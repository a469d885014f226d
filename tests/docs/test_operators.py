"""What docs/operators.md tells operators to type works, and what it names is there."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from served import Kits, Served, federation

from secagg import cli, errors
from secagg.integrations.prometheus import Metrics
from secagg.protocol.messages import ServerStatus
from secagg.trust.kit_files import SERVER_FILES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
STATUS = ServerStatus(0, 1, "open", ("a",), ("b",), 1.0, 0, 0, 1, 0, (), (), disk_free=1)


def blocks(language: str = "") -> list[str]:
    """The fenced blocks in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands() -> Iterator[list[str]]:
    """Every command line of `secagg` on the page, wherever it stands, without the program's name."""
    for line in "\n".join(blocks()).splitlines():
        program, _, words = line.partition(" ")
        if program.rpartition("/")[2] == "secagg":
            yield shlex.split(words)
    for text in blocks("ini"):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.read_string(text)
        yield shlex.split(unit["Service"]["ExecStart"])[1:]
    for words in map(json.loads, re.findall(r"^ *CMD (\[.*\])$", blocks("dockerfile")[0], re.MULTILINE)):
        yield words[1:] if words[0].endswith("/secagg") else words


def test_every_command_line_is_understood() -> None:
    parser = cli._parser()
    seen = set()
    for words in commands():
        if words == ["--version"]:
            continue
        options = parser.parse_args(words)
        seen.add(options.run.__module__.rpartition(".")[2])
    assert seen >= {"provision", "unpack", "doctor", "serve", "status", "rotate", "add_site", "remove_site"}


def test_the_unit_gets_every_file_of_the_kit() -> None:
    loaded = dict(
        re.findall(r"^LoadCredential=([\w.-]+):/etc/secagg/server/([\w.-]+)$", blocks("ini")[0], re.MULTILINE)
    )
    assert loaded == {name: name for name in SERVER_FILES}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "secagg.service"
    path.write_text(blocks("ini")[0].replace("/opt/secagg/bin/secagg", shutil.which("true") or ""), encoding="utf-8")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0
    assert result.stderr == ""


def test_the_container_copies_what_there_is() -> None:
    (file,) = blocks("dockerfile")
    sources = [word for line in re.findall(r"^COPY (?!--)(.*)$", file, re.MULTILINE) for word in line.split()[:-1]]
    assert {"secagg", "secagg_ext", "integrations", "pyproject.toml", "setup.py"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source


def exported() -> set[str]:
    metrics = Metrics()
    metrics.watch(lambda: STATUS)
    metrics.expires("project", 0)
    families = [family for family in metrics.registry.collect() if family.name.startswith("secagg_")]
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_metrics_are_those_on_the_page() -> None:
    section = PAGE.partition("## Metrics")[2].partition("\n## ")[0]
    assert set(re.findall(r"secagg_\w+", section)) == exported()


def test_rules_are_rules() -> None:
    scrape, rules = map(yaml.safe_load, blocks("yaml"))
    assert scrape["scrape_configs"][0]["job_name"] == "secagg"
    known = set(vars(errors))
    for rule in rules["groups"][0]["rules"]:
        assert rule.keys() >= {"alert", "expr", "annotations"}
        for types in re.findall(r'error=~"([^"]+)"', rule["expr"]):
            assert set(types.split("|")) <= known


def sources() -> str:
    files = [path for folder in ("secagg", "integrations") for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_events_are_those_of_the_code() -> None:
    section = PAGE.partition("## Logs")[2].partition("\n## ")[0]
    events = re.findall(r"`(\w+)`", section.partition("`event` is a short name:")[2].partition("Neither form")[0])
    assert len(events) >= 10
    # How a round or a call ends is logged in one place, which takes the event as an argument; so for both stages.
    ends = {"round_completed", "round_calibrated", "round_failed", "round_voided", "refused", "failed"}
    ends |= {"calibration_added", "update_added", "calibration_left_out", "update_left_out"}
    ends |= {"aggregate_not_stored", "scales_not_stored"}
    known = set(re.findall(r'"event": "(\w+)"', sources())) | ends
    assert set(events) <= known


def test_messages_are_those_of_the_code() -> None:
    """Each message of the last table stands somewhere in the code."""
    table = PAGE.partition("## Troubleshooting")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) >= 15
    code = re.sub(r'"\s*\n\s*f?"', "", sources())  # messages that go over several lines
    for message in messages:
        assert message in code
    for name in re.findall(r"`(\w+Error)`", PAGE):
        assert hasattr(errors, name)


def test_back_up_and_restore(tmp_path: Path) -> None:
    """As the page does it, with other folders: the acknowledged update is there again."""
    kits = Kits.make(tmp_path, federation())
    server = Served(kits["server"], tmp_path / "server")
    with server:
        with kits.session("site-1", server.address) as session:
            session.join()
            session.upload(kits.update("site-1"))
        assert server.stop() == 0
    text = "\n".join(blocks())
    run = str(tmp_path / "server" / "run")
    for pattern in (r"^tar --create .*$", r"^find .* -delete$", r"^tar --extract .*$"):
        (line,) = re.findall(pattern, text, re.MULTILINE)
        line = line.replace("/var/lib/secagg", run).replace("/var/backups", str(tmp_path))
        subprocess.run(shlex.split(line), check=True, timeout=300)
        if "-delete" in line:
            assert not list(Path(run).iterdir())
    with server:
        with kits.session("site-2", server.address) as session:
            assert session.status().added == ("site-1",)
        assert server.stop() == 0
