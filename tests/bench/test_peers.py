"""`secagg bench peers`: every peer's mean is the mean, the numbers are there, and what is missing is said."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from contextlib import nullcontext
from math import prod
from pathlib import Path

import pytest

from secagg.bench.peers import run as peers_run
from secagg.bench.peers.environment import PINS, PYFHEL, pyfhel_wheel
from secagg.bench.peers.job import Job, joined, split
from secagg.bench.peers.peers import PEERS
from secagg.bench.peers.roles import Measured
from secagg.bench.peers.run import Row, measure
from secagg.bench.peers.targets import TARGETS, targets
from secagg.bench.results import Results
from secagg.cli import bench_peers
from secagg.cli import main as command
from secagg.scheme.codec import codec_for

ROOT = Path(__file__).parents[2]
SHAPES = {"first.weight": (30, 200), "first.bias": (30,), "last.weight": (2, 3, 3, 3, 3)}
SITES = 3
LARGEST = 0.05 * 6  # of normal values

#: How far a mean may be off; rounding to float32 comes to it.
BOUNDS = {
    "float32": 0.0,
    "nvflare-raw": 0.0,
    "nvflare-he": 1e-6,
    "bare-tenseal": 1e-6,
    "bare-pyfhel": 1e-6,
    "bare-seal": 1e-6,
    # rounded up or down at each site, in steps of 16 / 2²², and divided by the sum of the weights, 1/3 + 2/3 + 1; the
    # weights are rounded too
    "flower-secagg+": SITES * 16 / 2**22 / 2 + 1e-6,
}


def bound(name, job):
    if name in BOUNDS:
        return BOUNDS[name] + 2.0**-24
    ours = PEERS[name].load()
    config = ours.config_of(job)
    if not config.aggregation.calibrated:
        largest = config.aggregation.largest_weight
        return codec_for(config.params, config.aggregation).mean_error(SITES, sum(job.weights) / largest) + 2.0**-24
    # scales are half-octaves, at most √2 above the largest weighted value, and each site is off half a step at most
    top = LARGEST * max(job.weights) * 2**0.5
    return SITES * top / 2 ** (config.params.value_bits - 1) / sum(job.weights)


@pytest.fixture
def job(tmp_path, request):
    made = Job(request.node.callspec.params["name"], SHAPES, SITES, str(tmp_path))
    made.keys.mkdir()
    return made


@pytest.mark.parametrize("name", PEERS)
def test_roles(name, job):
    """In one process, which is as good for what they compute."""
    peer = PEERS[name]
    module = peer.load()
    site, server, reader = (Measured(getattr(module, role)(job), job) for role in ("Site", "Server", "Reader"))
    for phase in range(peer.phases):
        sent = site.send(phase)
        added = server.add(phase)
        assert sent["nbytes"] > 0
        assert added["nbytes"] > 0
        assert min(sent["seconds"], added["seconds"], added["finish"]) > 0
        assert min(sent["peak"], added["peak"]) >= 0
    read = reader.read(peer.phases - 1)
    assert read["seconds"] > 0
    assert read["max_error"] <= bound(name, job)


def test_what_sites_send():
    job = Job("", SHAPES, SITES, "")
    assert [{name: value.shape for name, value in state.items()} for state in job.states] == [SHAPES] * SITES
    assert not (job.states[0]["first.weight"] == job.states[1]["first.weight"]).any()
    assert (job.states[2]["last.weight"] == Job("", SHAPES, SITES, "").states[2]["last.weight"]).all()
    assert job.shaped(job.flat(1))["first.weight"] == pytest.approx(2 * job.states[1]["first.weight"])


def test_a_wrong_mean_shows():
    job = Job("", SHAPES, SITES, "")
    mean = {name: sum(w * s[name].astype(float) for w, s in zip([1, 2, 3], job.states, strict=True)) for name in SHAPES}
    mean = {name: value / 6 for name, value in mean.items()}
    assert job.max_error(mean) < 1e-15
    mean["last.weight"][0, 0, 0, 0, 0] += 0.25
    assert job.max_error(mean) == pytest.approx(0.25)


def test_messages_of_blocks():
    assert split(joined([b"one", b"", b"three"])) == [b"one", b"", b"three"]


def test_processes_in_turns():
    """A role in a process each; both take their turns, and times are one number a turn."""
    told = []

    def progress(what):
        told.append(what)
        return peers_run.silent(what)

    rows = measure([sys.executable], ["float32", "smallest"], SHAPES, SITES, 2, progress)
    for row in rows:
        lists = (row.encode_seconds, row.add_seconds, row.finish_seconds, row.decode_seconds)
        assert [len(seconds) for seconds in lists] == [2] * 4
        assert row.problem is None
        assert row.version
        assert min(row.site_peak_nbytes, row.server_peak_nbytes) >= 0
    assert rows[0].up_nbytes == 4 * (1 + sum(map(prod, SHAPES.values())))
    assert rows[0].version.startswith("numpy ")
    titles = [PEERS[name].title for name in ("float32", "smallest")]
    assert [line.partition(": ")[2] for line in told] == titles * 2


#: What stands before ``-m`` on the command line of a role.
WITHOUT_TENSEAL = """
import runpy, sys
sys.modules["tenseal"] = None
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_missing_library_is_the_problem_of_one_row():
    python = [sys.executable, "-c", WITHOUT_TENSEAL]
    rows = {row.name: row for row in measure(python, ["bare-tenseal", "tenseal", "float32"], SHAPES, SITES, 1)}
    assert rows["bare-tenseal"].problem.startswith("needs tenseal: import of tenseal halted")
    assert "pip install 'secagg[tenseal]'" in rows["tenseal"].problem
    assert rows["float32"].problem is None


def test_a_role_that_ends(tmp_path):
    """Such as one that is killed because it needs too much memory."""
    (row,) = measure([sys.executable, "-c", "raise SystemExit('no room')"], ["float32"], SHAPES, SITES, 3)
    assert row.problem == "plain float32, site ended with exit code 1: no room"
    assert row.encode_seconds == []


def test_pins_are_those_that_are_tested():
    """Of what both install; TenSEAL is NVFlare's."""
    text = (ROOT / "requirements" / "dev.txt").read_text()
    tested = {line.split()[0].replace("[simulation]", "") for line in text.splitlines() if line and line[0] != "#"}
    pins = {pin.partition(";")[0].replace("[HE]", "") for pin in PINS}
    assert pins <= tested


def test_pyfhel_is_found_where_it_is_kept():
    spec = importlib.util.spec_from_file_location("install_pyfhel", ROOT / "tools" / "install_pyfhel.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert pyfhel_wheel() == tool.kept_wheel(pyfhel_wheel().parent)
    assert f"Pyfhel=={PYFHEL}" in tool.REQUIREMENTS.read_text()


# Targets, on made-up rows.


def row(name, seconds, up, add, peak, **others):
    return Row(name, PEERS[name].group, name, "", seconds, up, add, [0.1], up, [0.1], peak, peak, **others)


THEIRS = row("nvflare-he", [3.0, 9.0, 3.0], 340_000_000, [4.0, 12.0, 4.0], 2_400_000_000)


def test_targets_met():
    rows = [
        THEIRS,
        row("float32", [0.01] * 3, 1, [0.001] * 3, 1),  # no encryption, and so not the best of ours
        row("tenseal", [3.0, 9.0, 3.0], 100_000_000, [0.1, 0.3, 0.1], 100_000_000),
        row("seal-bgv-16", [0.3, 0.9, 0.3], 10_000_000, [0.1] * 3, 100_000_000),
        row("flashe-11", [0.03, 0.09, 0.03], 9_000_000, [0.01, 0.03, 0.01], 100_000_000),
    ]
    found = targets(rows)
    assert len(found) == len(TARGETS)
    assert all(target["met"] for target in found)
    measured = [target["measured"] for target in found]
    assert measured == pytest.approx([3.4, 40, 24, 1, 34, 10, 340 / 9, 100, 400])
    assert found[6]["title"] == "upload: the best of secagg, flashe-11 against nvflare-he"
    assert found[7]["detail"] == "30 ms of 3 s"
    assert found[6]["detail"] == "9.0 MB of 340.0 MB"


def test_targets_missed():
    found = targets([THEIRS, row("tenseal", [3.1, 9.0, 3.1], 100_000_000, [1.0] * 3, 300_000_000)])
    assert [target["met"] for target in found] == [True, False, False, False, False, False, False]


def test_targets_of_what_was_not_measured():
    failed = row("tenseal", [], 0, [], 0, problem="no room")
    assert targets([THEIRS, failed]) == []
    assert targets([row("tenseal", [1.0], 1, [1.0], 1)]) == []
    assert targets([]) == []


# The command.


def test_command(tmp_path, monkeypatch, capsys):
    failed = row("bare-pyfhel", [], 0, [], 0, problem="needs Pyfhel: make pyfhel")
    ours = row("tenseal", [3.0] * 3, 100_000_000, [0.1] * 3, 100_000_000)
    monkeypatch.setattr(bench_peers, "segresnet", lambda small: SHAPES)
    monkeypatch.setattr(bench_peers, "environment", lambda folder, progress: nullcontext(Path("/env/bin/python")))
    monkeypatch.setattr(bench_peers, "measure", lambda python, names, *others: [THEIRS, failed, ours])
    out = tmp_path / "new" / "peers.json"
    assert command(["bench", "peers", "--out", str(out)]) == 0
    results = Results.load(out, "peers")
    assert results.command == f"secagg bench peers --sites 3 --repeats 3 --out {shlex.quote(str(out))}"
    model = results.data["model"]
    assert (model["name"], model["parameters"], model["tensors"]) == ("SegResNet, small", 6192, 3)
    assert (model["raw_nbytes"], model["max_abs"]) == (24768, 0.5)
    assert [item["name"] for item in results.data["rows"]] == ["nvflare-he", "bare-pyfhel", "tenseal"]
    text = capsys.readouterr().out
    assert "bare-pyfhel: needs Pyfhel: make pyfhel" in text
    assert text.count("≥") == len(results.data["targets"]) == 7
    assert str(out) in text


def test_a_small_model_has_no_targets(tmp_path, monkeypatch, capsys):
    """They are of the whole one."""
    monkeypatch.setattr(bench_peers, "segresnet", lambda small: SHAPES)
    monkeypatch.setattr(bench_peers, "environment", lambda folder, progress: nullcontext(Path("/env/bin/python")))
    monkeypatch.setattr(bench_peers, "measure", lambda *others: [THEIRS, row("tenseal", [3.0] * 3, 1, [0.1] * 3, 1)])
    assert command(["bench", "peers", "--small", "--out", str(tmp_path / "peers.json")]) == 0
    results = Results.load(tmp_path / "peers.json", "peers")
    assert results.command.startswith("secagg bench peers --sites 3 --repeats 3 --small --out ")
    assert results.data["targets"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "tensel"], "--only names tensel; there are float32"),
        (["--sites", "1"], "--sites is 1; give 2 or more"),
        (["--repeats", "0"], "--repeats is 0; give 1 or more"),
        (["--out", "."], "--out is the folder .; name a file"),
    ],
)
def test_bad_options(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(["bench", "peers", *options]) != 0
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_real_environment(tmp_path, monkeypatch, capsys):
    """Made by pip from an index; and all peers in it, with the small model."""
    monkeypatch.chdir(tmp_path)
    assert command(["bench", "peers", "--small", "--repeats", "1", "--env", str(tmp_path / "env")]) == 0
    rows = Results.load(tmp_path / "bench" / "peers.json", "peers").data["rows"]
    problems = {item["name"]: item["problem"] for item in rows if item["problem"]}
    assert problems.keys() <= {"bare-pyfhel"}
    assert next(item["version"] for item in rows if item["name"] == "nvflare-he").endswith("tenseal 0.3.15")
