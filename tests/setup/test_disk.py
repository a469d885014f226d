"""What rounds take on a disk."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pytest
from calibrating import FIRST, calibrating, calibration_of, update_of
from signed import Signed

import secagg
from secagg.setup.disk import round_nbytes


@pytest.fixture(scope="module")
def signed() -> Signed:
    signed = calibrating()
    return replace(signed, project=signed.reissue(layout=signed.site().layout(FIRST)))


def test_rounds_that_begin_with_a_calibration(signed: Signed) -> None:
    """To the byte, but for the names of what is not known yet: a base, say."""
    sites = [signed.site(name) for name in signed.names]
    calibrations = [calibration_of(site) for site in sites]
    scales = signed.add(calibrations, kind="calibration")
    updates = [update_of(site, scales) for site in sites]
    aggregate = signed.add(updates)
    model = BytesIO()
    sites[0].encrypt_model(model, FIRST, round=1)
    nbytes = sum(update.nbytes for update in (*calibrations, *updates))
    nbytes += 3 * (scales.nbytes + aggregate.nbytes + len(model.getvalue()))
    planned = round_nbytes(signed.project)
    assert planned is not None
    assert abs(planned - nbytes) < 100 * (len(sites) * 2 + 9)
    assert round_nbytes(replace(signed.project, layout=None)) is None


def test_a_site_keeps_its_own(signed: Signed) -> None:
    own, all_sites = round_nbytes(signed.project, server=False), round_nbytes(signed.project)
    assert own is not None
    assert all_sites is not None
    assert own < all_sites / 2
    fixed = secagg.Config.from_dict(
        {
            "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": signed.config.params.value_bits}},
            "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0},
        }
    )
    less = round_nbytes(replace(signed.project, config=fixed), server=False)
    assert less is not None
    assert less < own
