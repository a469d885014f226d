"""`secagg status`: what an operator sees."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from provisioned import Secagg
from served import Kits, Served, federation

from secagg.cli import main
from secagg.setup.provisioner import Provisioner


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("federation"), federation())


@pytest.fixture
def served(kits: Kits, tmp_path: Path) -> Iterator[Served]:
    with Served(kits["server"], tmp_path / "server") as server:
        yield server


@pytest.fixture
def half(kits: Kits, served: Served) -> Served:
    """A round that has site-1, waits for site-2, and does not know the others yet."""
    with kits.session("site-1", served.address) as one, kits.session("site-2", served.address) as two:
        one.join()
        two.join()
        one.upload(kits.update("site-1"))
    return served


@pytest.mark.parametrize("party", ["site-3", "server"])
def test_an_open_round(secagg: Secagg, kits: Kits, half: Served, party: str) -> None:
    result = secagg("status", kits[party], "--server", half.address, "--check")
    assert result.returncode == 0, result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.replace("not joined", "not-joined").splitlines())
    assert rows["server"] == f"{half.address}, epoch 0 of the key"
    assert rows["project"] == "brain, manifest 1 (this kit: 1)"
    assert re.fullmatch("0, attempt 1, open, (1 h|[1-5][0-9] min( [0-9]+ s)?) left", rows["round"]), rows["round"]
    assert rows["added"] == "1: site-1 (at least 3 are needed)"
    assert rows["waiting"] == "for  1: site-2"
    assert rows["not-joined"] == "2: site-3, site-4"
    assert rows["aggregates"] == rows["models"] == "none"
    assert rows["uploads"] == "0 in flight"
    assert re.search(r" of 68\.7 GB, .* free$", rows["disk"])
    assert float(rows["clock"].split()[0]) < 60  # half of what one call took
    assert "ATTENTION" not in result.stdout


def test_as_json(secagg: Secagg, kits: Kits, half: Served) -> None:
    result = secagg("status", kits["site-1"], "--server", half.address, "--json")
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    data = json.loads(line)
    assert data["server"] == half.address
    assert (data["round"], data["attempt"], data["state"], data["epoch"]) == (0, 1, "open", 0)
    assert (data["added"], data["waiting_for"], data["not_joined"]) == (["site-1"], ["site-2"], ["site-3", "site-4"])
    assert 0 < data["seconds_left"] <= 3600
    assert 0 < data["disk_used"] < data["disk_quota"] == 64 << 30
    assert data["uploads_in_flight"] == 0
    assert data["disk_free"] > 0
    assert data["trouble"] == ""
    assert data["aggregates"] == data["models"] == data["problems"] == []
    assert data["project_serial"] == data["own_project_serial"] == 1
    assert abs(data["clock_difference"]) < 60
    assert data["base"] is None


def test_an_idle_server(secagg: Secagg, kits: Kits, served: Served) -> None:
    result = secagg("status", kits["server"], "--server", served.address)
    assert "round        0, attempt 1, idle\n" in result.stdout
    assert "added        nobody" in result.stdout
    assert "not joined   4: site-1, site-2, site-3, site-4" in result.stdout


def test_a_server_that_is_away(secagg: Secagg, kits: Kits) -> None:
    arguments = ("status", kits["site-1"], "--server", "127.0.0.1:1", "--timeout", "1")
    result = secagg(*arguments)
    assert result.returncode == 5
    assert result.stderr.startswith("secagg: no answer from the server at 127.0.0.1:1 within 1 s: is it up,")
    assert result.stdout == ""
    data = json.loads(secagg(*arguments, "--json").stdout)
    assert (data["server"], data["error"]) == ("127.0.0.1:1", "TransportError")


def test_a_proxy_on_the_way(kits: Kits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["status", str(kits["site-1"]), "--server", "0.0.0.0:1", "--timeout", "1"]) == 5
    err = capsys.readouterr().err.rstrip()
    assert err.startswith("secagg: no answer from the server at 0.0.0.0:1 within 1 s: asking for the status failed: ")
    assert err.endswith("the proxy of https_proxy=http://127.0.0.1:1: set no_proxy=0.0.0.0 to connect without it")


def test_a_stranger_is_told(secagg: Secagg, served: Served, tmp_path: Path) -> None:
    strangers = Kits.make(tmp_path / "strangers", federation())
    result = secagg("status", strangers["site-1"], "--server", served.address)
    assert result.returncode == 3
    assert "no answer" not in result.stderr
    assert "certificate" in result.stderr


def test_a_round_that_failed_needs_attention(secagg: Secagg, kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server", ("--round-timeout", "1")) as server:
        with kits.session("site-1", server.address) as session:
            session.join()
            session.upload(kits.update("site-1"))
            while session.status().attempt == 1:
                time.sleep(0.1)
        shown = secagg("status", kits["server"], "--server", server.address)
        checked = secagg("status", kits["server"], "--server", server.address, "--check", "--json")
    assert shown.returncode == 0
    assert "ATTENTION    round 0 has ended " in shown.stdout
    assert checked.returncode == 6
    assert "too few sites" in checked.stderr
    assert "site-2, site-3, site-4" in checked.stderr
    assert len(json.loads(checked.stdout)["problems"]) == 1


def test_sites_that_stay_need_no_new_kit(secagg: Secagg, kits: Kits, tmp_path: Path) -> None:
    """They get none when others come and go. Who has not joined, an older list does not know."""
    later = kits.change(tmp_path, lambda made, changed, folder: made.add(("site-5",), changed, folder))
    with Served(later["server"], tmp_path / "new") as server:
        arguments = ("status", kits["site-1"], "--server", server.address, "--check")
        shown, data = secagg(*arguments), json.loads(secagg(*arguments, "--json").stdout)
        told = secagg("status", later["site-5"], "--server", server.address, "--check")
    assert shown.returncode == 0, shown.stderr
    assert "ATTENTION" not in shown.stdout
    row = "unknown: this kit has manifest 1, the server 2; `secagg site` takes it when it joins"
    assert f"not joined   {row}\n" in shown.stdout
    assert data["not_joined"] is None
    assert data["problems"] == []
    assert "not joined   5: site-1, site-2, site-3, site-4, site-5" in told.stdout


def test_a_server_whose_kit_is_out_of_date(secagg: Secagg, kits: Kits, tmp_path: Path) -> None:
    later = kits.change(tmp_path, lambda made, changed, folder: made.remove(("site-4",), changed, folder))
    with Served(kits["server"], tmp_path / "old") as server:
        result = secagg("status", later["server"], "--server", server.address, "--check")
    assert result.returncode == 1
    assert "the server is under manifest 1, this kit has 2: " in result.stderr


@pytest.mark.parametrize("party", ["site-1", "server"])
def test_an_older_server(secagg: Secagg, kits: Kits, served: Served, tmp_path: Path, party: str) -> None:
    """Its certificate, from before a rotation, is still good, and of the same authority."""
    copy = replace(kits, provisioner=Provisioner.load(shutil.copytree(kits.provisioner.folder, tmp_path / "copy")))
    later = copy.change(tmp_path / "later", lambda made, changed, folder: made.rotate(None, changed, folder))
    result = secagg("status", later[party], "--server", served.address, "--json")
    assert result.returncode == 3
    assert "project brain names" in result.stderr
    assert "from before a rotation" in result.stderr
    assert json.loads(result.stdout)["error"] == "IdentityError"
    assert "refused" not in served.log  # it has not been asked


def test_a_full_disk_needs_attention(secagg: Secagg, kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server", ("--disk-quota", "1")) as server:
        with kits.session("site-1", server.address) as session:
            session.join()  # the roster is written down
        result = secagg("status", kits["server"], "--server", server.address, "--check")
    assert result.returncode == 1
    assert "raise --disk-quota" in result.stderr


def test_watching_goes_on_when_the_server_goes(kits: Kits, served: Served) -> None:
    command = [sys.executable, "-m", "secagg.cli", "status", str(kits["site-1"]), "--server", served.address]
    command += ["--json", "--watch", "0.1", "--timeout", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        for _ in range(2):
            while "error" in (line := json.loads(watch.stdout.readline())):  # on a slow machine not within a second
                pass
            assert line["round"] == 0
        served.stop()
        while "error" not in (line := json.loads(watch.stdout.readline())):
            pass
        assert line["error"] == "TransportError"
        watch.send_signal(signal.SIGINT)
        assert watch.wait(240) == 130


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--watch", "0"), "--watch is 0"),
        (("--watch", "1", "--check"), "leave out --watch"),
        (("--timeout", "0"), "the timeout is 0"),
    ],
)
def test_wrong_options_are_explained(secagg: Secagg, kits: Kits, options: tuple[str, ...], message: str) -> None:
    result = secagg("status", kits["site-1"], "--server", "127.0.0.1:1", *options)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_folder_that_is_no_kit(secagg: Secagg, tmp_path: Path) -> None:
    result = secagg("status", tmp_path, "--server", "127.0.0.1:1")
    assert result.returncode == 3
    assert "is no kit" in result.stderr
