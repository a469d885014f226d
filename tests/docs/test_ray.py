"""What docs/ray.md tells to type and to apply is understood, and the numbers in it are the program's."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml
from provisioned import Federation

from secagg import cli, errors
from secagg.integrations import ray as integration
from secagg.integrations.ray import RayPool
from secagg.shards import aggregate
from secagg.shards.job import RANGE_NBYTES
from secagg.trust import load_server_kit

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


JOB, RAY_JOB = (yaml.safe_load(text) for text in blocks("yaml"))


def options(words: list[str]) -> Any:
    assert words[0] == "secagg"
    return cli._parser().parse_args(words[1:])


def pods() -> list[dict[str, Any]]:
    groups = [
        RAY_JOB["spec"]["rayClusterSpec"]["headGroupSpec"],
        *RAY_JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"],
    ]
    return [JOB["spec"]["template"]["spec"], *(group["template"]["spec"] for group in groups)]


def test_every_command_line_is_understood() -> None:
    lines = [line for line in "\n".join(blocks()).splitlines() if line.startswith("secagg ")]
    job = pods()[0]["containers"][0]["command"]
    for words in [shlex.split(line) for line in [*lines, RAY_JOB["spec"]["entrypoint"]]] + [job]:
        given = options(words)
        assert given.run.__module__ == "secagg.cli.aggregate"
        assert given.round == 3
    assert len(lines) == 1


def test_the_manifests_name_what_they_mount_and_what_was_made() -> None:
    made = dict(re.findall(r"^kubectl create secret generic (\S+) (\S+)", "\n".join(blocks()), re.MULTILINE))
    assert made.keys() == {"secagg-kit", "secagg-store"}
    job, head, worker = pods()
    for pod, words in ((job, job["containers"][0]["command"]), (head, shlex.split(RAY_JOB["spec"]["entrypoint"]))):
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert options(words).kit == Path(mount["mountPath"])
        assert [volume["secret"]["secretName"] for volume in pod["volumes"] if volume["name"] == mount["name"]] == [
            "secagg-kit"
        ]
    assert "volumes" not in worker  # the kit is the command's alone
    for pod in pods():
        assert [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]] == ["secagg-store"]
    (rule,) = JOB["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == job["containers"][0]["name"]
    codes = {kind: code for kind, code, _ in cli.EXIT_CODES}
    final = {codes[kind] for kind in (errors.ConfigError, errors.KeyFileError, errors.QuorumError, errors.FormatError)}
    assert final <= set(rule["onExitCodes"]["values"])
    assert not {codes[errors.TransportError], codes[errors.SecAggError]} & set(rule["onExitCodes"]["values"])


def test_a_kit_can_be_a_secret(tmp_path: Path) -> None:
    """Whose files are links to a hidden folder."""
    kit = Federation.make(tmp_path)["server"]
    mounted = tmp_path / "mounted"
    shutil.copytree(kit, mounted / "..2026")
    (mounted / "..data").symlink_to("..2026")
    for path in kit.iterdir():
        (mounted / path.name).symlink_to(Path("..data") / path.name)
    assert load_server_kit(mounted).project == load_server_kit(kit).project


def test_the_program_of_the_page() -> None:
    (code,) = blocks("python")
    (call,) = re.findall(r"aggregate\((.*), pool=RayPool\(\"auto\"\)\)", code)
    inspect.signature(aggregate).bind(*yaml.safe_load(f"[{call}]"), pool=None)
    assert "import RayPool" in code
    inspect.signature(RayPool).bind("auto")


def test_numbers() -> None:
    for words in (
        f"up to {integration.MAX_RETRIES} times each",
        f"for {integration._IDLE_SECONDS / 60:.0f} minutes",
        f"within {integration._JOIN_SECONDS:.0f} where",
        f"ranges of {RANGE_NBYTES >> 20} MiB",
    ):
        assert words in PAGE, words
    assert integration._LOST_SECONDS + integration._END_SECONDS <= 60
