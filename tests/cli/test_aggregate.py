"""`secagg aggregate`: in a process of its own, as a user starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from provisioned import Federation, Secagg

import secagg as library
from secagg.trust import load_site_kit

ROUND = 3


def lay(federation: Federation, folder: Path, values: int = 200) -> list[library.Update]:
    """The updates of all sites, in a folder."""
    folder.mkdir(exist_ok=True)
    updates = []
    for number, name in enumerate(("a", "b", "c")):
        site = library.Client.load(load_site_kit(federation[name]))
        site.restore_carry(b"")
        state = {"w": np.full(values, 0.1 * number, np.float32)}
        site.encrypt_to(folder / f"{name}.secagg", state, 2.0, ROUND)
        updates.append(library.Update.open(folder / f"{name}.secagg"))
    return updates


def test_adds_what_lies_in_a_folder(secagg: Secagg, federation: Federation, tmp_path: Path) -> None:
    updates = lay(federation, tmp_path / "round")
    kit = federation["server"]
    arguments = ("aggregate", "round/*.secagg", "--kit", kit, "--round", ROUND, "--out", "round/sum.secagg")
    done = secagg(*arguments)
    assert (done.returncode, done.stderr) == (0, f"adding the updates of round {ROUND}\n")
    assert done.stdout.startswith(f"the aggregate of round {ROUND}, the sum of 3 updates, ")
    assert done.stdout.endswith(" is at round/sum.secagg\n")
    aggregator = library.Aggregator.load(kit, ROUND)
    for update in updates:
        aggregator.add(update)
        update.close()
    assert (tmp_path / "round/sum.secagg").read_bytes() == aggregator.finish().to_bytes()
    assert sorted(path.name for path in (tmp_path / "round").iterdir()) == [
        "a.secagg",
        "b.secagg",
        "c.secagg",
        "sum.secagg",
    ]
    again = secagg(*arguments)
    assert again.returncode == 0
    assert again.stdout.endswith(" is at round/sum.secagg (it was there already)\n")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--round": 4}, 6, "left out: round/a.secagg: the update from a is for round 3, this is round 4"),
        ({"--kit": "a"}, 3, "server"),
        ({"--kit": "nowhere"}, 3, "nowhere"),
        ({"--shards": 0}, 2, "shards is 0"),
        ({"--workers": 0}, 2, "workers is 0"),
        ({"--workers": 2, "--ray": "auto"}, 2, "--workers is of this machine"),
        ({"--out": "nowhere/sum.secagg"}, 1, "cannot write"),
        ({"--out": "nix://bucket/sum"}, 7, "nix://"),
    ],
)
def test_refuses(
    secagg: Secagg, federation: Federation, tmp_path: Path, change: dict[str, object], code: int, message: str
) -> None:
    for update in lay(federation, tmp_path / "round"):
        update.close()
    options = {"--kit": federation["server"], "--round": ROUND, "--out": "sum.secagg"} | change
    if options["--kit"] == "a":
        options["--kit"] = federation["a"]
    done = secagg("aggregate", "round/*.secagg", *(word for option in options.items() for word in option))
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sum.secagg").exists()


def test_names_what_it_leaves_out(secagg: Secagg, tmp_path: Path) -> None:
    federation = Federation.make(
        tmp_path / "four",
        sites=["a", "b", "c", "d"],
        aggregation={"min_clients": 2, "max_clients": 5, "max_abs": 1.0, "max_weight": 64},
    )
    for update in lay(federation, tmp_path / "round"):
        update.close()
    data = bytearray((tmp_path / "round/b.secagg").read_bytes())
    data[-300] ^= 1
    (tmp_path / "round/b.secagg").write_bytes(data)
    done = secagg("aggregate", "round/*", "--kit", federation["server"], "--round", ROUND, "--out", "sum.secagg")
    assert done.returncode == 0
    assert done.stdout.startswith("left out: round/b.secagg: DigestError: ")
    assert "the sum of 2 updates" in done.stdout


def test_stopped_and_started_again(federation: Federation, tmp_path: Path) -> None:
    for update in lay(federation, tmp_path / "round", 60 << 20):
        update.close()
    command = [sys.executable, "-m", "secagg.cli", "aggregate", "round/*.secagg", "--kit", str(federation["server"])]
    command += ["--round", str(ROUND), "--out", "sum.secagg", "--workers", "1", "--shards", "20"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("sum.secagg.*.digests")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command, started again, goes on" in said
    assert not (tmp_path / "sum.secagg").exists()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    aggregator = library.Aggregator.load(federation["server"], ROUND)
    for path in sorted((tmp_path / "round").iterdir()):
        with library.Update.open(path) as update:
            aggregator.add(update)
    assert (tmp_path / "sum.secagg").read_bytes() == aggregator.finish().to_bytes()
