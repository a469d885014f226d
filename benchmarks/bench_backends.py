"""What an update costs under each backend and each choice of what is encrypted; encryption is timed here."""

from __future__ import annotations

from statistics import median

import pytest

from secagg.bench.model import Model, compare
from secagg.bench.parties import EncryptedSites
from secagg.bench.settings import SETTINGS
from secagg.wire.layout import Layout

CASES = [(backend, "all") for backend, setting in SETTINGS.items() if setting.fixed] + [
    ("tenseal", "conv"),
    ("tenseal", "first-middle-last"),
]
ROUNDS = 3
SITES = 30


@pytest.mark.parametrize(("backend", "encrypt"), CASES)
def test_update(backend, encrypt, benchmark, progress, model):
    mine, setting = Model.of("SegResNet", Layout.of(model), model), SETTINGS[backend]
    progress("all sides")
    _, row = compare(mine, SITES, {backend: setting}, encrypt, seconds=0)  # an error beyond its bound is raised
    assert row.problem is None
    config = setting.config(SITES, encrypt, max_abs=mine.bound)
    sites = EncryptedSites(config, mine.layout.under(config), mine.values)
    rounds = 10 * ROUNDS if "flashe" in backend else ROUNDS
    blob = benchmark.pedantic(lambda: sites.send(0, "update", None), rounds=rounds)
    assert len(blob) == row.up_nbytes
    benchmark.extra_info.update(
        nbytes=row.up_nbytes,
        aggregate_nbytes=row.down_nbytes,
        precision_bits=row.bits,
        peak_nbytes=row.site_peak_nbytes,
        server_peak_nbytes=row.server_peak_nbytes,
        add_seconds=median(row.add_seconds),
        decrypt_seconds=median(row.decrypt_seconds),
        max_error=row.max_error,
    )
