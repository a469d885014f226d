"""`secagg serve`: how it starts, what it says, how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from provisioned import Federation, Secagg
from served import STATE, Kits, Served, federation

from secagg import Client
from secagg.cli.expiry import wait_and_tell
from secagg.errors import IdentityError, ManifestMismatchError, TransportError
from secagg.trust import load_site_kit

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("federation"), federation())


@pytest.fixture
def served(kits: Kits, tmp_path: Path) -> Iterator[Served]:
    with Served(kits["server"], tmp_path / "server") as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_in_order(served: Served, number: signal.Signals) -> None:
    assert served.stop(number) == 0
    assert f"{number.name}: stopping" in served.log
    assert served.log.rstrip().endswith("stopped; the open round goes on at the next start")
    assert served.process.stdout is not None
    assert served.process.stdout.read() == f"serving on {served.address}\n"
    assert "Traceback" not in served.log
    assert "min_clients" not in served.log


def test_on_a_terminal_it_says_once_where_it_listens(kits: Kits, tmp_path: Path) -> None:
    here, there = pty.openpty()
    with os.fdopen(here, "rb", buffering=0) as screen, os.fdopen(there, "r+b", buffering=0) as terminal:
        command = [sys.executable, "-m", "secagg.cli", "serve", str(kits["server"]), "--address", "127.0.0.1:0"]
        server = subprocess.Popen([*command, "--run-dir", str(tmp_path / "run")], stdout=terminal, stderr=terminal)
        shown = b""
        with server:
            while b"is open" not in shown or b"serving on" not in shown:
                shown += os.read(screen.fileno(), 10_000)
            server.terminate()
            while b"stopped;" not in shown:
                shown += os.read(screen.fileno(), 10_000)
    assert shown.count(b"serving on") == 1


def test_a_second_signal_stops_at_once(served: Served) -> None:
    served.process.send_signal(signal.SIGSTOP)  # so that both signals are there before it can stop
    served.process.send_signal(signal.SIGINT)
    served.process.send_signal(signal.SIGTERM)
    served.process.send_signal(signal.SIGCONT)
    assert served.process.wait(240) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert served.log.endswith("secagg: stopped at once\n")


@pytest.fixture
def few_files() -> Iterator[int]:
    """What a shell lets a process have open, while it may ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard, 1024), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_takes_as_many_open_files_as_it_may(few_files: int, kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server") as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (few_files, few_files)


def test_two_sites_are_warned_of(tmp_path: Path) -> None:
    kits = Kits.make(tmp_path, federation(min_clients=2))
    with Served(kits["server"], tmp_path / "server") as server:
        server.stop()
        assert server.log.count("each can compute the other's update") == 1


def test_the_log_in_json(kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server", ("--log-format", "json", "--metrics", "0")) as server:
        with kits.session("site-1", server.address) as session:
            session.join()
            session.upload(kits.update("site-1"))
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""
        lines = [json.loads(line) for line in server.log.splitlines()]
    for line in lines:
        assert TIME.fullmatch(line["time"])
        assert line["level"] in ("info", "warning")
        assert line["event"]
        assert line["message"]
        assert line.keys() <= {"time", "level", "event", "message", "site", "round", "error"}
    assert {"metrics", "stopping", "stopped"} <= {line["event"] for line in lines}
    secrets = [(kits["server"] / name).read_text().splitlines()[1] for name in ("tls.key", "signing.key")]
    assert not [secret for secret in secrets if secret in server.log]


def test_metrics_live_as_long_as_the_server(kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server", ("--metrics", "0", "--disk-quota", "2G")) as server:
        url = server.wait_for(r"metrics on (http://127.0.0.1:\d+/metrics)\n")
        with kits.session("site-1", server.address) as one, kits.session("site-2", server.address) as two:
            one.join()
            two.join()
            one.upload(kits.update("site-1"))
        text = urlopen(url, timeout=60).read().decode()
        assert server.stop() == 0
        with pytest.raises(URLError):
            urlopen(url, timeout=5)
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['secagg_uploads_total{result="added"}'] == "1.0"
    assert lines['secagg_round_site_added{site="site-1"}'] == "1.0"
    assert lines['secagg_round_site_added{site="site-2"}'] == "0.0"
    assert 0 < float(lines["secagg_round_seconds_left"]) <= 3600
    assert float(lines["secagg_disk_quota_bytes"]) == 2 << 30
    assert float(lines["secagg_disk_used_bytes"]) > 0
    year = time.time() + 365 * 86400
    for what in ("certificate", "project"):
        assert abs(float(lines[f'secagg_expiry_timestamp_seconds{{what="{what}"}}']) - year) < 86400


def test_metrics_beyond_the_loopback_are_warned_of(kits: Kits, tmp_path: Path, secagg: Secagg) -> None:
    with Served(kits["server"], tmp_path / "server", ("--metrics", "0.0.0.0:0")) as server:
        assert "let only the monitoring through" in server.log
        # A second one cannot have the same port, and says so before it serves anything.
        port = server.wait_for(r"metrics on http://0.0.0.0:(\d+)/")
        second = secagg("serve", kits["server"], "--metrics", port, "--run-dir", tmp_path / "other")
        assert second.returncode == 5
        assert f"cannot serve metrics on 127.0.0.1:{port}" in second.stderr
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--disk-quota", "lots", "write a size as 20G"),
        ("--disk-quota", "20 miles", "write a size as 20G"),
        ("--disk-quota", "0", "--disk-quota is 0; use a whole number above 0"),
        ("--max-uploads", "0", "secagg: --max-uploads is 0; use a whole number above 0"),
        ("--idle-timeout", "-1", "--idle-timeout is -1"),
        ("--upload-timeout", "inf", "--upload-timeout is inf"),
        ("--round-timeout", "0", "the round timeout is 0"),
        ("--metrics", "nonsense", "argument --metrics: 'nonsense': write PORT, as 9464, or HOST:PORT"),
        ("--address", "8443", "use host:port"),
        ("--log-format", "xml", "invalid choice"),
    ],
)
def test_wrong_options_are_explained(secagg: Secagg, kits: Kits, option: str, value: str, message: str) -> None:
    result = secagg("serve", kits["server"], option, value)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_quota_for_the_projects_model(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text("{w: [1000, 1000]}")
    made = Federation.make(tmp_path, model="shapes.yaml")
    update = (8 if "CKKS" in made.provisioner.project.config.params.scheme else 2) * 10**6
    with Served(made["server"], tmp_path / "served", ("--disk-quota", "10M")) as server:
        found = re.search(r"--disk-quota is 10.5 MB, rounds take up to (\d+\.\d) MB: uploads may", server.log)
    assert found is not None
    sites = len(made.provisioner.project.sites)
    assert float(found[1]) == pytest.approx(((sites + 3) * update + 3 * 4 * 10**6) / 1e6, rel=0.1)


def test_a_clock_that_is_not_set_yet(kits: Kits, tmp_path: Path, secagg: Secagg) -> None:
    """A service manager starts the server again then; what has expired stays so."""
    project = kits.provisioner.project
    later = replace(project, serial=2, issued=int(time.time()) + 10**6, expires=int(time.time()) + 2 * 10**6)
    shutil.copytree(kits["server"], tmp_path / "kit")
    later.save(tmp_path / "kit" / "project.secagg", kits.provisioner.identity)
    result = secagg("serve", tmp_path / "kit", "--run-dir", "run")
    assert result.returncode == 5
    assert "is this clock right?" in result.stderr


def test_an_expired_project_is_not_served(kits: Kits, tmp_path: Path, secagg: Secagg) -> None:
    def expire(provisioner: object, _: Path, made: Path) -> None:
        (made / "server").mkdir()
        for file in kits["server"].iterdir():
            (made / "server" / file.name).write_bytes(file.read_bytes())
        now = int(time.time())
        old = replace(kits.provisioner.project, issued=now - 1000, expires=now - 1)
        old.save(made / "server" / "project.secagg", kits.provisioner.identity)

    expired = kits.change(tmp_path, expire)
    result = secagg("serve", expired["server"], "--address", "127.0.0.1:0")
    assert result.returncode == 3
    assert "project brain expired on" in result.stderr
    assert "have it renewed by `secagg rotate`" in result.stderr


DAY = 86_400.0


def test_what_the_log_says_of_a_kit_that_expires(caplog: pytest.LogCaptureFixture) -> None:
    """In time, each day, and when it has."""
    now, asked = 1e9, []
    ends = {"certificate": now + 31.5 * DAY, "project": now + 400 * DAY}

    def wait(seconds: float) -> str | None:
        nonlocal now
        asked.append(seconds)
        now += seconds
        return "SIGTERM" if now > ends["certificate"] + 1.5 * DAY else None

    caplog.set_level("INFO")
    assert wait_and_tell(wait, ends, lambda: now) == "SIGTERM"
    assert asked == [DAY] * 31 + [DAY / 2] + [DAY] * 2
    said = [(item.levelname, vars(item)["event"]) for item in caplog.records]
    assert said == [("WARNING", "expires_soon")] * 30 + [("ERROR", "expired")] * 2
    first, last = caplog.records[0].getMessage(), caplog.records[-1].getMessage()
    assert first.startswith("the certificate expires in 29 d 12 h, on 2001-10-1")
    assert last.startswith("the certificate expired on 2001-10-1")
    for text in (first, last):
        assert text.endswith("`secagg rotate` at the provisioner renews it")


def test_a_kit_that_expires_soon_is_served_with_a_warning(kits: Kits, tmp_path: Path) -> None:
    def shorten(provisioner: object, _: Path, made: Path) -> None:
        (made / "server").mkdir()
        for file in kits["server"].iterdir():
            (made / "server" / file.name).write_bytes(file.read_bytes())
        soon = replace(kits.provisioner.project, expires=int(time.time() + 3 * DAY))
        soon.save(made / "server" / "project.secagg", kits.provisioner.identity)

    short = kits.change(tmp_path / "changed", shorten)
    with Served(short["server"], tmp_path / "server", ("--log-format", "json")) as server:
        server.wait_for(r'("event": "expires_soon")')
        assert server.stop() == 0
        [line] = [line for line in map(json.loads, server.log.splitlines()) if line["event"] == "expires_soon"]
    assert line["level"] == "warning"
    assert re.match(r"the project expires in [23] d", line["message"])


@pytest.mark.parametrize("damage", ["rubbish", "of another"])
def test_a_tls_key_that_does_not_fit(kits: Kits, tmp_path: Path, secagg: Secagg, damage: str) -> None:
    kit = shutil.copytree(kits["server"], tmp_path / "server")
    rubbish = b"-----BEGIN PRIVATE KEY-----\nrubbish\n"
    (kit / "tls.key").write_bytes(rubbish if damage == "rubbish" else (kits["site-1"] / "tls.key").read_bytes())
    result = secagg("serve", kit, "--address", "127.0.0.1:0", "--run-dir", tmp_path / "run")
    assert result.returncode == 3
    assert str(kit / "tls.key") in result.stderr
    assert "unpack the kit again" in result.stderr
    assert "cannot listen" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_older_kit_on_a_newer_run_folder(kits: Kits, tmp_path: Path, secagg: Secagg) -> None:
    """The site that was removed meanwhile would be taken in again."""
    later = kits.change(tmp_path / "later", lambda made, changed, folder: made.remove(("site-4",), changed, folder))
    with Served(later["server"], tmp_path / "server") as server:
        assert server.stop() == 0
    folder = tmp_path / "server" / "run"
    result = secagg("serve", kits["server"], "--address", "127.0.0.1:0", "--run-dir", folder)
    assert result.returncode == 2
    assert "run was served under manifest " in result.stderr
    assert ": unpack the newest kit" in result.stderr


def test_a_run_folder_in_use_is_refused(served: Served, kits: Kits, secagg: Secagg) -> None:
    result = secagg("serve", kits["server"], "--address", "127.0.0.1:0", "--run-dir", served.folder / "run")
    assert result.returncode == 2
    assert "another server works in the run folder" in result.stderr


def test_a_taken_port_is_explained(served: Served, kits: Kits, secagg: Secagg) -> None:
    result = secagg("serve", kits["server"], "--address", served.address)
    assert result.returncode == 5
    assert result.stderr.endswith(f"secagg: cannot listen on {served.address}: Address already in use\n")
    assert "E1" not in result.stderr  # nothing of gRPC's own log
    elsewhere = secagg("serve", kits["server"], "--address", "192.0.2.1:8443")
    assert "cannot listen on 192.0.2.1:8443: Cannot assign requested address" in elsewhere.stderr


def test_it_goes_on_under_another_manifest(tmp_path: Path) -> None:
    """Sites are added and removed, and the key is rotated, on one run folder in the middle of a round."""

    def added(kits: Kits, *uploads: str) -> tuple[int, tuple[str, ...]]:
        with Served(kits["server"], tmp_path / "server") as server:
            for name in uploads:
                with kits.session(name, server.address) as session:
                    session.join()
                    session.upload(kits.update(name))
            with kits.session("site-1", server.address) as session:
                status = session.status()
            assert server.stop() == 0
        return status.epoch, status.added

    kits = Kits.make(tmp_path / "0", federation())
    assert added(kits, "site-1", "site-2") == (0, ("site-1", "site-2"))
    kits = kits.change(tmp_path / "1", lambda made, changed, folder: made.add(("site-5",), changed, folder))
    assert added(kits) == (0, ("site-1", "site-2"))
    assert "manifest 2 serves from round 1 on" in (tmp_path / "server" / "log").read_text()
    kits = kits.change(tmp_path / "2", lambda made, changed, folder: made.remove(("site-2",), changed, folder))
    assert added(kits) == (0, ())  # what the others sent is void with it
    assert "round 0 voided, site-2 has been revoked; added: site-1, site-2" in (tmp_path / "server" / "log").read_text()
    with pytest.raises(IdentityError, match="has been revoked"):
        added(kits, "site-2")
    kits = kits.change(tmp_path / "3", lambda made, changed, folder: made.rotate(None, changed, folder))
    assert added(kits) == (1, ())
    assert added(kits, "site-1", "site-5") == (1, ("site-1", "site-5"))


def test_a_round_that_is_voided_and_one_that_a_new_site_waits_for(tmp_path: Path) -> None:
    """Over real connections, as sites see it."""
    kits = Kits.make(tmp_path / "0", federation(min_clients=2))
    names = ("site-1", "site-2", "site-3")

    def send(kits: Kits, address: str, name: str) -> None:
        with kits.session(name, address) as session:
            session.join()
            kit = load_site_kit(kits[name]).store_manifest(session.join().manifest)
            session.upload(Client.load(kit).encrypt(STATE, weight=1.0))

    with Served(kits["server"], tmp_path / "server") as server:
        for name in (*names, "site-4"):
            with kits.session(name, server.address) as session:
                session.join()
        for name in ("site-1", "site-4"):
            send(kits, server.address, name)
        before = kits.update("site-2")
        assert server.stop() == 0
    kits = kits.change(tmp_path / "1", lambda made, changed, folder: made.remove(("site-4",), changed, folder))
    with Served(kits["server"], tmp_path / "server") as server:
        with (
            kits.session("site-2", server.address) as session,
            pytest.raises(ManifestMismatchError, match="join again"),
        ):
            session.upload(before)
        with kits.session("site-4", server.address) as session, pytest.raises(IdentityError, match="been revoked"):
            session.join()
        for name in names[:2]:
            send(kits, server.address, name)
        assert server.stop() == 0
    kits = kits.change(tmp_path / "2", lambda made, changed, folder: made.add(("site-5",), changed, folder))
    with Served(kits["server"], tmp_path / "server") as server:
        early = "site 'site-5' takes part from round 1 on, and round 0 goes on"
        with kits.session("site-5", server.address, timeout=2.0) as session, pytest.raises(TransportError, match=early):
            session.join()
        send(kits, server.address, "site-3")
        with kits.session("site-5", server.address) as session:
            joined = session.join()
            with session.download(0, tmp_path / "aggregate") as aggregate:
                assert aggregate.header.sites == names
                assert Client.load(load_site_kit(kits["site-5"])).decrypt(aggregate, like=STATE)
        assert (joined.round, joined.project) == (1, load_site_kit(kits["site-5"]).project)
        assert server.stop() == 0
