"""What sites agree on of their task: a block of the manifest, signed, and not there where nothing is agreed on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from federation import federate
from signed import Signed, sign_federation

from secagg import Project
from secagg.errors import ConfigError, FormatError, SecAggError
from secagg.trust.agreed_task import MAX_TASK_NBYTES, check_task
from secagg.wire.container import pack_head, unpack_head

TASK = {"patch": [96, 96, 64], "seed": 0, "lr": 1e-3, "labels": ["background", "Milz"], "ct": True, "name": "Göttingen"}


@pytest.fixture(scope="module")
def one() -> Signed:
    return sign_federation(federate("flashe"))


def header_of(blob: bytes) -> dict[str, Any]:
    return unpack_head(blob[:-64])[1]


def test_it_is_signed(one: Signed) -> None:
    project = replace(one.project, task=TASK, signed=b"")
    blob = project.sign(one.authority)
    read = Project.from_bytes(blob)
    assert read.task == TASK
    assert read == project
    assert hash(read) == hash(project)
    assert json.dumps(read.task) == json.dumps({name: TASK[name] for name in sorted(TASK)})
    other = replace(project, task=TASK | {"patch": [96, 96, 32]})
    assert other.digest != project.digest
    changed = bytearray(blob)
    changed[blob.index(b"Milz")] ^= 1
    with pytest.raises(SecAggError):
        Project.from_bytes(bytes(changed))


def test_without_it_a_manifest_is_as_ever(one: Signed) -> None:
    blob = one.project.sign(one.authority)
    assert "task" not in header_of(blob)
    assert Project.from_bytes(blob).task is None
    assert header_of(replace(one.project, task=TASK, signed=b"").sign(one.authority)).keys() == {
        *header_of(blob),
        "task",
    }


def test_it_stays_with_the_federation(one: Signed) -> None:
    """Also in the hands of who has changed the block that was given."""
    given: dict[str, Any] = {"patch": [8, 8, 8]}
    first = replace(one.project, task=given, signed=b"")
    given["patch"].append(8)
    assert first.task == {"patch": [8, 8, 8]}
    assert first.successor_of(base=bytes(32)).task == first.task


@pytest.mark.parametrize(
    "task",
    [
        None,
        {},
        [],
        "patch",
        {"patch": None},
        {"patch": [[96]]},
        {"patch": {"x": 96}},
        {"a b": 1},
        {"": 1},
        {"1": 1},
        {"n" * 65: 1},
        {"n": 2**53 + 1},
        {"n": "x" * MAX_TASK_NBYTES},
    ],
    ids=lambda task: repr(task)[:40],
)
def test_a_manifest_with_what_is_none(one: Signed, task: object) -> None:
    blob = one.project.sign(one.authority)
    head = pack_head("project", header_of(blob) | {"task": task})
    with pytest.raises(FormatError, match="task"):
        Project.from_bytes(head + one.authority.sign(head))


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, b"text", 1j, {1}, pytest.param(object(), id="an object"), [1, None]], ids=repr
)
def test_values_that_are_none(value: object) -> None:
    with pytest.raises(ConfigError, match="task: patch holds"):
        check_task({"patch": value})


def test_too_much() -> None:
    assert check_task({"n": "x" * (MAX_TASK_NBYTES - len('{"n": ""}'))})
    with pytest.raises(ConfigError, match="task takes 16,385 bytes, a manifest takes 16,384"):
        check_task({"n": "x" * (MAX_TASK_NBYTES - len('{"n": ""}') + 1)})
