"""Peak memory of a site that encrypts and of an aggregator that adds, each in a fresh process."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import secagg
from secagg.bench.growth.process import working, write_federation
from secagg.wire.header import Contribution
from secagg.wire.update import UpdateWriter

SCRIPT = Path(__file__).parent / "support" / "peak_memory.py"
SITES = (2, 10, 30)


def test_encrypt_memory(benchmark, message, decrypted, report, progress, folder, updates, configure, keys, model):
    def measure() -> dict[str, dict[str, Any]]:
        peaks = {}
        for task in ("encrypt", "encrypt-bare"):
            progress(task)
            run = subprocess.run([sys.executable, SCRIPT, task, folder], stdout=subprocess.PIPE, check=True)
            peaks[task] = json.loads(run.stdout)
        return peaks

    peaks = benchmark.pedantic(measure)
    assert peaks["encrypt"]["result"] == len(updates[0])
    ours, bare = (peaks[task]["above"] for task in ("encrypt", "encrypt-bare"))
    benchmark.extra_info["bare_peak_nbytes"] = bare
    message(updates[0], decrypted(configure(), keys, updates[0], model), model, peak=ours)
    report.measure("encrypt-memory", ours / 1e6, f"{ours / 1e6:.0f} MB, TenSEAL itself {bare / 1e6:.0f} MB")


def test_aggregator_memory(benchmark, message, report, progress, folder, updates, tmp_path):
    source = secagg.Update.from_bytes(updates[0])

    def measure(sites: int) -> int:
        progress(f"{sites} sites")
        with working("server", folder) as server:
            for number in range(sites):
                # One file at a time, so that 30 sites do not take 7 GB of disk.
                path = tmp_path / "update.secagg"
                write_as(source, f"site-{number:02}", path)
                server.ask("add", str(path))
            server.ask("finish", str(tmp_path / "aggregate.secagg"))
            assert not server.ask("libraries"), "the aggregator loads no HE library"
            return server.ask("above")

    peaks = benchmark.pedantic(lambda: {sites: measure(sites) for sites in SITES})
    with secagg.Update.open(tmp_path / "aggregate.secagg") as aggregate:
        assert len(aggregate.header.contributions) == SITES[-1]
    header = source.header
    words = header.blocks("encrypted") * 2 * header.params.poly_modulus_degree * 8  # one polynomial, two primes
    ratios = {sites: peak / words for sites, peak in peaks.items()}
    message(source, peak=max(peaks.values()))
    benchmark.extra_info["peaks"] = peaks
    detail = ", ".join(f"{sites} sites {peak / 1e6:.1f} MB" for sites, peak in peaks.items())
    report.measure("aggregator-memory", max(ratios.values()), detail)
    report.measure(
        "aggregator-growth", max(ratios.values()) - ratios[SITES[0]], f"one update in words {words / 1e6:.1f} MB"
    )


def test_stream_memory(benchmark, message, report, progress, configure, make_keys, tmp_path):
    """A billion values, which are 4 GB: what a site needs beside the model."""
    write_federation(tmp_path, configure("flashe-16"), make_keys("flashe-16"))
    path = tmp_path / "update.secagg"

    def measure() -> int:
        progress("10⁹ values")
        with working("site", tmp_path, 10**9) as site:
            site.ask("encrypt", None, 1, "site-1", str(path))
            return site.ask("above")

    peak = benchmark.pedantic(measure)
    nbytes = path.stat().st_size
    path.unlink()
    message(nbytes, peak=peak)
    detail = f"{nbytes / 1e9:.2f} GB written, {nbytes / 4e9:.3f} × raw"
    report.measure("stream-memory", peak / 1e6, detail)


def write_as(source: secagg.Update, site: str, path: Path) -> None:
    """Write the ciphertexts of an update as if another site had sent them: its name, a new nonce, new digests.

    Memory and time of the aggregator do not depend on what the words say, and thirty encryptions take a minute.
    """
    contribution = Contribution(site, secrets.token_bytes(32))
    with path.open("wb") as file:
        writer = UpdateWriter(file, replace(source.header, contributions=(contribution,)))
        for frame, payload in source.frames():
            writer.write(frame, payload)
        writer.finish(lambda _: source.tail.tags, None)
