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
from secagg.wire.header import Contribution
from secagg.wire.update import UpdateWriter

SCRIPT = Path(__file__).parent / "support" / "peak_memory.py"
SITES = (2, 10, 30)


def test_encrypt_memory(benchmark, message, decrypted, report, progress, folder, updates, configure, keys, model):
    def measure() -> dict[str, dict[str, Any]]:
        peaks = {}
        for task in ("encrypt", "encrypt-bare"):
            progress(task)
            with Task(task, folder) as process:
                peaks[task] = process.finish()
        return peaks

    peaks = benchmark.pedantic(measure)
    assert peaks["encrypt"]["result"] == len(updates[0])
    ours, bare = (peaks[task]["above"] for task in ("encrypt", "encrypt-bare"))
    benchmark.extra_info["bare_peak_nbytes"] = bare
    message(updates[0], decrypted(configure(), keys, updates[0], model), model, peak=ours)
    report.measure("encrypt-memory", ours / 1e6, f"{ours / 1e6:.0f} MB, TenSEAL itself {bare / 1e6:.0f} MB")


def test_aggregator_memory(benchmark, message, report, progress, folder, updates, tmp_path):
    source = secagg.Update.from_bytes(updates[0])

    def measure(sites: int) -> dict[str, Any]:
        progress(f"{sites} sites")
        with Task("aggregate", folder) as process:
            for number in range(sites):
                # One file at a time, so that 30 sites do not take 7 GB of disk.
                path = tmp_path / "update.secagg"
                write_as(source, f"site-{number:02}", path)
                process.ask(str(path), "added")
            return process.finish()

    peaks = benchmark.pedantic(lambda: {sites: measure(sites) for sites in SITES})
    assert [peak["result"] for peak in peaks.values()] == list(SITES)
    assert not any(peak["libraries"] for peak in peaks.values()), "the aggregator loads no HE library"
    header = source.header
    words = header.blocks("encrypted") * 2 * header.params.poly_modulus_degree * 8  # one polynomial, two primes
    ratios = {sites: peak["above"] / words for sites, peak in peaks.items()}
    message(source, peak=max(peak["above"] for peak in peaks.values()))
    benchmark.extra_info["peaks"] = {sites: peak["above"] for sites, peak in peaks.items()}
    detail = ", ".join(f"{sites} sites {peak['above'] / 1e6:.1f} MB" for sites, peak in peaks.items())
    report.measure("aggregator-memory", max(ratios.values()), detail)
    report.measure(
        "aggregator-growth", max(ratios.values()) - ratios[SITES[0]], f"one update in words {words / 1e6:.1f} MB"
    )


def test_stream_memory(benchmark, message, report, progress, configure, make_keys, tmp_path):
    """A billion values, which are 4 GB: what a site needs beside the model."""
    (tmp_path / "config.json").write_text(json.dumps(configure("flashe-16").to_dict()))
    make_keys("flashe-16").client.save(tmp_path / "client.key")

    def measure() -> dict[str, Any]:
        progress("10⁹ values")
        with Task("stream", tmp_path) as process:
            return process.finish()

    peak = benchmark.pedantic(measure)
    assert peak["start"] > 4e9, "the model is in memory"
    message(peak["result"], peak=peak["above"])
    detail = f"{peak['result'] / 1e9:.2f} GB written, {peak['result'] / 4e9:.3f} × raw"
    report.measure("stream-memory", peak["above"] / 1e6, detail)


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


class Task:
    """A run of `peak_memory.py`."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, str(SCRIPT), name, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str, answer: str) -> None:
        """Send a line and wait for the answer."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == answer + "\n"

    def finish(self) -> dict[str, Any]:
        """Close stdin and return the result."""
        out, _ = self._process.communicate()
        assert self._process.returncode == 0
        return json.loads(out)

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
