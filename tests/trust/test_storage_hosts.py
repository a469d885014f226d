"""Hosts that sites may send updates to: signed in the manifest, and not there where there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from federation import federate
from signed import Signed, sign_federation

from secagg.errors import ConfigError, FormatError, SecAggError
from secagg.trust.project import Project
from secagg.trust.storage_hosts import check_storage, parse_place, split_url
from secagg.wire.container import pack_head, unpack_head

HOSTS = ("bucket.s3.eu-west-1.amazonaws.com", "minio.example.org:9000", "127.0.0.1:9000", "localhost")


@pytest.fixture(scope="module")
def one() -> Signed:
    return sign_federation(federate("flashe"))


def header_of(blob: bytes) -> dict[str, Any]:
    return unpack_head(blob[:-64])[1]


def test_they_are_signed(one: Signed) -> None:
    project = replace(one.project, storage=HOSTS, signed=b"")
    blob = project.sign(one.authority)
    read = Project.from_bytes(blob)
    assert (read.storage, read, hash(read)) == (HOSTS, project, hash(project))
    assert read.successor_of(base=bytes(32)).storage == HOSTS
    assert replace(project, storage=HOSTS[:1]).digest != project.digest
    changed = bytearray(blob)
    changed[blob.index(b"minio")] ^= 1
    with pytest.raises(SecAggError):
        Project.from_bytes(bytes(changed))


def test_without_them_a_manifest_is_as_ever(one: Signed) -> None:
    blob = one.project.sign(one.authority)
    assert "storage" not in header_of(blob)
    assert Project.from_bytes(blob).storage == ()
    with_them = replace(one.project, storage=HOSTS, signed=b"").sign(one.authority)
    assert header_of(with_them).keys() == {*header_of(blob), "storage"}


WRONG: list[Any] = [
    None,
    "bucket.example.org",
    {"bucket.example.org": 1},
    [7],
    [""],
    ["https://bucket.example.org"],
    ["bucket.example.org/prefix"],
    ["Bucket.example.org"],
    ["bucket.example.org."],
    ["bücket.example.org"],
    ["me@bucket.example.org"],
    ["*.example.org"],
    ["a b"],
    ["a\nb"],
    ["host:"],
    ["host:0"],
    ["host:443"],
    ["host:09"],
    ["host:65536"],
    ["host:9000:9000"],
    ["[::1]:9000"],
    ["1.2.3"],
    ["256.1.1.1"],
    ["x" * 64],
    ["x." * 127 + "xx"],
    ["host", "host"],
    [f"host-{number}" for number in range(17)],
]


@pytest.mark.parametrize("hosts", WRONG, ids=lambda hosts: repr(hosts)[:30])
def test_what_is_no_host(one: Signed, hosts: Any) -> None:
    with pytest.raises(ConfigError, match="storage"):
        check_storage(hosts)
    head = pack_head("project", header_of(one.project.sign(one.authority)) | {"storage": hosts})
    with pytest.raises(FormatError):
        Project.from_bytes(head + one.authority.sign(head))


def test_an_empty_list_is_not_in_canonical_form(one: Signed) -> None:
    head = pack_head("project", header_of(one.project.sign(one.authority)) | {"storage": []})
    with pytest.raises(FormatError, match="canonical"):
        Project.from_bytes(head + one.authority.sign(head))


def test_places_of_urls() -> None:
    assert split_url("https://bucket.example.org/key?x=%2F&y") == ("bucket.example.org", "/key?x=%2F&y")
    assert split_url("https://bucket.example.org:443/") == ("bucket.example.org", "/")
    assert split_url("https://127.0.0.1:9000/a/b") == ("127.0.0.1:9000", "/a/b")
    assert [parse_place(place) for place in HOSTS[:2]] == [(HOSTS[0], 443), ("minio.example.org", 9000)]
