"""Headers of the cases of tests/vectors/tags.json."""

from __future__ import annotations

from typing import Any

from secagg import Header, Layout
from secagg.scheme.aggregation import Aggregation
from secagg.scheme.params import Params
from secagg.wire.header import SUMS, Contribution


def header_of(case: dict[str, Any]) -> Header:
    """The header of a case's update or aggregate, whose common digest is as the case says."""
    fields = case["header"]
    contributions = tuple(Contribution(site, bytes.fromhex(nonce)) for site, nonce in case["contributions"])
    base, manifest, calibration = (
        None if fields[name] is None else bytes.fromhex(fields[name]) for name in ("base", "manifest", "calibration")
    )
    header = Header(
        case["kind"] if len(contributions) == 1 else SUMS[case["kind"]],
        fields["round"],
        fields["epoch"],
        fields["key"],
        Params.from_dict(fields["params"]),
        Aggregation(**fields["aggregation"]),
        Layout.from_json(fields["layout"]),
        contributions,
        base,
        manifest,
        calibration,
    )
    assert header.common.hex() == case["common"]
    return header
