"""The server's memory: one sum, and frames, not more with each site. The short form of benchmarks/bench_server.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import secagg
from secagg.integrations.grpc import SiteSession

SITES = tuple(f"site-{number}" for number in range(1, 25))
CONFIG = {
    "he": {"preset": "smallest"},
    "aggregation": {"min_clients": 3, "max_clients": len(SITES), "max_abs": 1.0, "max_weight": 1.0},
}
STATE = {"w": np.linspace(-1, 1, 2_000_000, dtype=np.float32)}
FRAME_NBYTES = 1 << 20


def memory(process: subprocess.Popen[str]) -> int:
    """The most bytes that a process has had in memory until now."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return 1024 * int(kilobytes)


def test_it_does_not_grow_with_the_number_of_sites(tmp_path: Path) -> None:
    """What the second half of the sites adds to its peak is less than half a frame each: nothing of an update stays.

    After the first half all is there that an upload takes: the sum, a frame on its way from the network to the disk,
    one on its way from the disk to the sum, and what the allocators of the threads keep of these. Uploads come one at a
    time; now and then one finds the memory in another order, which adds a frame or two to the peak. A server that kept
    a frame of each upload would add a frame a site; one that kept the update, four.
    """
    config = secagg.Config.from_dict(CONFIG)
    keys = secagg.generate_keys(config)
    (tmp_path / "federation.json").write_text(json.dumps(CONFIG))
    keys.server.save(tmp_path / "server.key")
    names = {"config": "federation.json", "key": "server.key", "folder": "run"}
    arguments = {name: str(tmp_path / file) for name, file in names.items()}
    arguments |= {"address": "127.0.0.1:0", "round_timeout": 600.0}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("serve.py")), json.dumps(arguments)]
    peaks, nbytes = [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            for name in SITES:  # before anything is uploaded, so that the round waits for all
                with SiteSession(address, name, tls=None, timeout=240.0) as session:
                    session.join()
            peaks.append(memory(process))
            for name in SITES:
                with SiteSession(address, name, tls=None, timeout=240.0) as session:
                    update = secagg.Client(config, keys.client, name).encrypt(STATE, round=0)
                    session.upload(update)
                    peaks.append(memory(process))
                    nbytes.append(update.nbytes)
            with (
                SiteSession(address, SITES[0], tls=None, timeout=240.0) as session,
                session.download(0, tmp_path / "aggregate") as aggregate,
            ):
                assert len(aggregate.header.sites) == len(SITES)
        finally:
            process.terminate()
            process.communicate()
    assert min(nbytes) > 3 * FRAME_NBYTES
    half, last = len(SITES) // 2, len(SITES) - 1  # the last upload ends the round, which makes the next one's sum
    assert peaks[last] - peaks[half] < (last - half) * FRAME_NBYTES / 2
