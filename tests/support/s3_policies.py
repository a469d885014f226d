"""What policies of S3 allow, and what of it requests need: the part of IAM that docs/beyond-one-machine.md uses."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

ARN = "arn:aws:s3:::"


def needed(request: Mapping[str, str]) -> set[tuple[str, str]]:
    """What a request needs, actions and resources, by AWS's table of the actions that operations of S3 need."""
    method, query = request["method"], parse_qs(request["query"], keep_blank_values=True)
    bucket, _, key = request["key"].partition("/")
    if not key:
        if method == "GET" and "uploads" in query:
            return {("s3:ListBucketMultipartUploads", bucket)}
        assert method == "GET", request
        assert "list-type" in query, request
        return {("s3:ListBucket", bucket)}
    missing = {("s3:ListBucket", bucket)} if request["status"] == "404" and "uploadId" not in query else set()
    if method == "DELETE" and "uploadId" in query:
        return {("s3:AbortMultipartUpload", request["key"])}
    if method == "GET" and "uploadId" in query:
        return {("s3:ListMultipartUploadParts", request["key"])}
    action = {
        "HEAD": "GetObject",
        "GET": "GetObject",
        "DELETE": "DeleteObject",
        "PUT": "PutObject",
        "POST": "PutObject",
    }
    version = "Version" if "versionId" in query else ""
    return {(f"s3:{action[method]}{version}", request["key"]), *missing}


def allowed(policy: Mapping[str, Any], action: str, resource: str) -> bool:
    """Whether a policy has a statement for an action on a resource; it must have none that denies or has conditions."""
    found = False
    for statement in policy["Statement"]:
        assert statement.keys() - {"Sid"} == {"Effect", "Action", "Resource"}, statement
        assert statement["Effect"] == "Allow", statement
        actions, resources = (_listed(statement[name]) for name in ("Action", "Resource"))
        found |= action in actions and any(fnmatch.fnmatchcase(ARN + resource, pattern) for pattern in resources)
    return found


def refused(policy: Mapping[str, Any], requests: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
    """What requests need, and a policy does not allow."""
    wanted = {item for request in requests for item in needed(request)}
    return sorted(item for item in wanted if not allowed(policy, *item))


def actions(policy: Mapping[str, Any]) -> set[str]:
    """All actions of a policy."""
    return {action for statement in policy["Statement"] for action in _listed(statement["Action"])}


def used(requests: Iterable[Mapping[str, str]]) -> set[str]:
    """All actions that requests need."""
    return {action for request in requests for action, _ in needed(request)}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
