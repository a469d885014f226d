"""Updates added where they lie, beside reading them through fsspec: from an S3 server over HTTP, and from a folder.

The server, moto's, is a process of its own on the same cores; how much of them it takes is noted beside. What a worker
needs of memory is measured in fresh processes. All of it goes to results/shards.json, with the simulation of a large
round.

Over a link that is slower, as root, in a network of its own; the rows take the place of those without it:

    unshare --net sh -c 'ip link set lo up && tc qdisc add dev lo root tbf rate 1562mbit burst 4mb latency 50ms &&
        python -m pytest benchmarks/bench_shards.py -k "from_s3 and flashe-16 and not https"'
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from s3_server import S3Server, serving_s3

from secagg.bench.results import Results
from secagg.bench.settings import SETTINGS
from secagg.bench.shards.measure import measure, ratio, scaling, seconds
from secagg.bench.shards.memory import worker_memory
from secagg.bench.shards.prices import Prices
from secagg.bench.shards.run import conclude
from secagg.bench.shards.simulation import Plan
from secagg.bench.shards.updates import lay
from secagg.storage import objects

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "shards.json"
TURNS = 3
#: Updates of a round whose memory is measured.
SIX = 6
#: Parameters and sites: 3.6 to 5.8 GB each; the sum, which is written as well, is a 48th.
SIZES = {"flashe-16": (30_000_000, 48), "seal-bgv-16": (24_000_000, 48), "tenseal": (3_000_000, 48)}

rows: dict[str, dict[str, Any]] = {}
peaks: list[dict[str, Any]] = []


@pytest.fixture(scope="module", autouse=True)
def results() -> Iterator[None]:
    """What this run has measured takes the place of what the file has of it."""
    yield
    if not rows or not peaks:  # part of it was asked for
        return
    speed = re.match(r"(\d+) of", detail_of("throughput-segresnet"))
    assert speed is not None
    largest = max(peak["above_nbytes"] for peak in peaks if peak["workers"] == 1)
    for row in rows.values():
        row["worker_nbytes"] = largest
    data = conclude(list(rows.values()), Plan(), Prices(), 1e6 * float(speed[1]), peaks)
    Results("shards", "python -m pytest benchmarks/bench_shards.py", data).save(RESULTS)


def detail_of(name: str) -> str:
    """What `bench_server.py` has noted of the server."""
    found = json.loads((HERE / "results" / "bench.json").read_text(encoding="utf-8"))["data"]["targets"]
    return str(next(row["detail"] for row in found if row["name"] == name))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server, on the cores that the benchmark has."""
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch, secure: bool = False) -> None:
    """Let fsspec, and processes, find this server."""
    for name, value in server.environment(secure=secure).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # else it is that of other variables


@pytest.fixture
def row(benchmark, progress, report, tmp_path) -> Callable[..., dict[str, Any]]:
    """``row(name, setting, where, place, …)`` measures a round, keeps the row, and removes the updates."""

    def run(name: str, setting: str, where: str, place: str, cold: bool = False, **options: Any) -> dict[str, Any]:
        parameters, sites = SIZES[setting]
        progress(f"{sites} updates")
        made = lay(place, tmp_path / "kit", setting, parameters, sites)
        progress(f"{TURNS + 1} turns")
        before = (lambda: forget(made.urls)) if cold else (lambda: None)
        found = benchmark.pedantic(lambda: measure(made, place, TURNS, before=before, **options))
        about = {"setting": setting, "title": SETTINGS[setting].title, "where": where, "sites": sites}
        rows[name] = found | about | {"nbytes": made.nbytes, "update_nbytes": made.nbytes // sites}
        objects.remove(made.urls)
        return rows[name]

    return run


def forget(paths: Sequence[str]) -> None:
    """Let the kernel forget what it has of files: they are read from the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def told(row: dict[str, Any]) -> str:
    speeds = [row["nbytes"] / seconds(row, side) / 1e6 for side in ("sum_1", "read_1")]
    own = [seconds(row, side, "cpu_seconds") / row["nbytes"] * 1e9 for side in ("sum_1", "read_1")]
    store = [seconds(row, side, "store_cpu_seconds") / row["nbytes"] * 1e9 for side in ("sum_1", "read_1")]
    cpu = "CPU s/GB {:.2f} of {:.2f}".format(*own)
    return (
        "{:.0f} of {:.0f} MB/s, ".format(*speeds)
        + cpu
        + (", server {:.2f} of {:.2f}".format(*store) if store[0] else "")
    )


@pytest.mark.parametrize(
    ("setting", "secure"),
    [("flashe-16", True), ("flashe-16", False), ("seal-bgv-16", False), ("tenseal", False)],
    ids=["flashe-16-https", "flashe-16", "seal-bgv-16", "tenseal"],
)
def test_from_s3(setting, secure, row, report, s3, monkeypatch):
    use(s3, monkeypatch, secure)
    process = psutil.Process(s3.process.pid)
    place, scheme = f"s3://{s3.bucket()}", "HTTPS" if secure else "HTTP"

    def server() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    name = f"s3{'s' if secure else ''} {setting}"
    found = row(name, setting, f"S3 over {scheme}", place, server=server)
    if not secure:
        report.measure(f"shards-s3-{setting}", ratio(found, "read_1", "sum_1"), told(found))
        gains = [ratio(found, f"{side}_1", f"{side}_2") for side in ("sum", "read")]
        detail = "2 workers {:.2f} × one, reading {:.2f} ×".format(*gains)
        report.measure(f"shards-scaling-{setting}", scaling(found), detail)


@pytest.mark.parametrize(
    ("setting", "cold"),
    [("flashe-16", False), ("flashe-16", True), ("seal-bgv-16", False), ("tenseal", False)],
    ids=["flashe-16", "flashe-16-cold", "seal-bgv-16", "tenseal"],
)
def test_from_a_folder(setting, cold, row, tmp_path):
    (tmp_path / "updates").mkdir()
    where = "folder, from the disk" if cold else "folder, in the page cache"
    found = row(f"folder {setting} {cold}", setting, where, str(tmp_path / "updates"), cold=cold)
    assert ratio(found, "read_1", "sum_1") > 0
    shutil.rmtree(tmp_path / "updates")


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_worker_memory(where, benchmark, progress, report, s3, monkeypatch, tmp_path):
    place = str(tmp_path)
    if where == "s3":
        use(s3, monkeypatch)
        place = f"s3://{s3.bucket()}"
    title = f"{SETTINGS['flashe-16'].title}, {'S3 over HTTP' if where == 's3' else 'folder'}"

    def run() -> list[dict[str, Any]]:
        found = []
        for parameters in (3_750_000, 37_500_000, 150_000_000):
            progress(f"{parameters:,}")
            made = lay(place, tmp_path / f"kit-{parameters}", "flashe-16", parameters, SIX)
            about = {"title": title, "sites": SIX, "update_nbytes": made.nbytes // SIX}
            for shards, workers in ((1, 1), (None, 1), (None, 2)):
                peak = worker_memory(made, f"{place}/sum", shards=shards, workers=workers)
                found.append({**about, "shards": shards, "workers": workers, **peak})
                objects.remove([f"{place}/sum"])
            objects.remove(made.urls)
        return found

    found = benchmark.pedantic(run)
    peaks.extend(found)
    one = [each for each in found if each["workers"] == 1]
    detail = ", ".join(
        f"{SIX} × {each['update_nbytes'] / 1e6:.0f} MB: {each['above_nbytes'] / 1e6:.0f}" for each in one
    )
    report.measure(f"shards-memory-{where}", max(each["above_nbytes"] for each in one) / 1e6, detail)
