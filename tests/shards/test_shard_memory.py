"""What a worker needs of memory does not depend on the model, nor on how many updates there are."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import secagg
from secagg.bench.shards.memory import worker_memory
from secagg.bench.shards.updates import ROUND, Round, lay
from secagg.storage import objects

#: Above a Python that has just started.
MOST_NBYTES = 300_000_000


def test_is_that_of_windows(tmp_path: Path) -> None:
    peaks = {}
    for parameters in (12_000_000, 60_000_000):
        made = lay(str(tmp_path), tmp_path / f"kit-{parameters}", "flashe-16", parameters, 3)
        target = str(tmp_path / f"sum-{parameters}")
        peaks[made.nbytes // 3] = worker_memory(made, target, shards=1)["above_nbytes"]
        aggregator = secagg.Aggregator.load(made.kit, ROUND)
        for url in made.urls:
            with secagg.Update.open(url) as update:
                aggregator.add(update)
        assert Path(target).read_bytes() == aggregator.finish().to_bytes()
        objects.remove([*made.urls, target])
    (small, few), (large, many) = sorted(peaks.items())
    assert 0 < few < MOST_NBYTES
    assert 0 < many < MOST_NBYTES
    assert many - few < (large - small) / 2, peaks


def test_of_one_that_reads_from_s3(bucket: str, tmp_path: Path) -> None:
    made = lay(f"s3://{bucket}", tmp_path / "kit", "flashe-16", 12_000_000, 3)
    assert 0 < worker_memory(made, f"s3://{bucket}/sum")["above_nbytes"] < MOST_NBYTES


@pytest.mark.long
@pytest.mark.parametrize(
    ("parameters", "sites", "bits"),
    [(100_000_000, 64, None), (10**9, 4, 8)],
    ids=["64-of-400-MB", "billion-parameters"],
)
def test_of_rounds_that_are_large(parameters: int, sites: int, bits: int | None, tmp_path: Path) -> None:
    """26 GB, and 6 GB, of disk, which are free again when it ends; with `-s` it prints what there was."""
    made = lay(str(tmp_path), tmp_path / "kit", "flashe-16", parameters, sites, bits=bits)
    target = str(tmp_path / "sum")
    try:
        peak = worker_memory(made, target)
        print(f"{sites} updates, {made.nbytes / 1e9:.1f} GB, peak above start {peak}")
        assert 0 < peak["above_nbytes"] < MOST_NBYTES
        check_sum(made, target)
    finally:
        objects.remove([*made.urls, target])


def check_sum(made: Round, target: str) -> None:
    """Check all digests of a sum, and some frames against those of the updates, which NumPy adds."""
    with secagg.Update.open(target) as summed:
        header = summed.header
        some = {random.Random(number).randrange(header.frame_count) for number in range(8)}
        for frame, payload in summed.frames():
            if frame.index not in some:
                continue
            total = np.zeros(frame.nbytes // 8, "<u8")
            for url in made.urls:
                with secagg.Update.open(url) as update:
                    start = len(update.header.head)
                    same = next(islice(update.header.frames, frame.index, None))
                total += np.frombuffer(objects.read(objects.pin(url), start + same.offset, same.nbytes), "<u8")
            assert total.tobytes() == bytes(payload)
    assert len(header.contributions) == len(made.urls)
