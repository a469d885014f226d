"""What only sites may know is nowhere at the server: not in its files, its output, its memory, nor on the network.

Sites go through rounds in this process, which notes every secret that they have or compute. The same scan finds what
it is planted for, and what the server does have: its own private keys, and what is public.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest
from five_sites import SITES, FiveSites, make_kits, state_of
from mortal import MortalServer
from needles import Needles
from proxy import Proxy
from served import Kits
from site_secrets import Computed, add_client_key, add_kits, private_scalar

import secagg
from secagg.cli.passphrases import VARIABLE
from secagg.setup.packing import pack
from secagg.setup.passphrases import generate
from secagg.trust.kit import load_server_kit, load_site_kit
from secagg.trust.kit_files import CLIENT_KEY_FILE, SERVER, TLS_KEY_FILE

from .conftest import Report

VALUES = 60_000


@dataclass
class Found:
    """Names of what was found, by place."""

    memory: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


def provision(folder: Path, scheme: str) -> tuple[Kits, str]:
    """Kits; that of the server is one that was packed and opened by a passphrase."""
    kits = make_kits(folder, scheme, VALUES)
    passphrase, packed = generate(), folder / "server.kit"
    pack(kits[SERVER], packed, passphrase)
    shutil.rmtree(kits[SERVER])
    command = [sys.executable, "-m", "secagg.cli", "unpack", str(packed), "--out", str(kits[SERVER])]
    subprocess.run(command, check=True, capture_output=True, timeout=240, env={**os.environ, VARIABLE: passphrase})
    return kits, passphrase


@pytest.fixture(scope="module", params=["flashe", pytest.param("bgv", marks=pytest.mark.long)])
def provisioned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kits, str]:
    return provision(tmp_path_factory.mktemp("federation"), request.param)


@contextmanager
def standing_still(process: subprocess.Popen[str] | None) -> Iterator[int]:
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGCONT)


def play(five: FiveSites, server: MortalServer, folder: Path, computed: Computed, needles: Needles) -> Found:
    """Let sites go through two rounds, and store a model; look for secrets in between, and at last."""
    client, sites = five.ledger.client, five.sites
    found = Found()

    def look() -> None:
        computed.add_to(needles)
        with standing_still(server.process) as number:
            found.memory |= needles.found_in_process(number)
        found.files |= needles.found_below(server.folder)

    five.join()
    five.prepare()
    for site in sites:
        computed.model(state_of(site.name, 0, VALUES))
    for site in sites[:3]:
        site.session.upload(site.update_of(0, five.ledger.bases[0]))
    look()  # in the middle of a round
    five.play()
    (round,) = five.ledger.check_new(server.run)
    with secagg.Update.open(server.run / f"aggregate-{round}.secagg") as aggregate:
        mean = client.decrypt(aggregate, round=round)
    computed.model(mean)
    client.encrypt_model(folder / "model.secagg", mean, round=1, base=five.ledger.bases[1])
    assert sites[0].session.save_model(folder / "model.secagg")
    with sites[1].session.load_model(folder / "download.secagg") as model:
        assert (sites[1].client.decrypt_model(model)["w"] == mean["w"]).all()
    five.play()
    five.ledger.check_new(server.run)
    look()
    return found


def needles_for(kits: Kits, passphrase: str) -> Needles:
    """Secrets, and what the scan must find: names of the latter begin with "own"."""
    needles = Needles()
    add_kits(needles, {site: kits[site] for site in SITES}, kits.provisioner.folder)
    needles.add_text("passphrase", passphrase)
    server = kits[SERVER]
    needles.add("own signing key", load_server_kit(server).identity._key.private_bytes_raw())
    needles.add("own TLS key", private_scalar(server / TLS_KEY_FILE))
    needles.add_text("own name of the HE key", load_server_kit(server).key.fingerprint)
    return needles


def secrets_in(found: set[str]) -> set[str]:
    return {name for name in found if not name.startswith("own ")}


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
def test_no_secret_is_at_the_server(
    provisioned: tuple[Kits, str],
    secure: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: Report,
) -> None:
    kits, passphrase = provisioned
    needles, computed = needles_for(kits, passphrase), Computed()
    traffic = tmp_path / "traffic"
    traffic.mkdir()
    options = ("--log-format", "json", "--metrics", "0") if secure else ()
    server = MortalServer(kits[SERVER], tmp_path / "server", insecure=not secure, options=options)
    with server, Proxy(server.port, traffic) as proxy, computed.watched(monkeypatch):
        server.start()
        with FiveSites(kits, tmp_path / "sites", proxy.address, secure=secure) as five:
            found = play(five, server, tmp_path, computed, needles)
        if secure:
            url = re.search(r"metrics on (http://[\d.:]+/metrics)", server.log)
            assert url is not None
            metrics = urlopen(url[1], timeout=60).read()
            assert b'secagg_rounds_total{outcome="completed"} 2.0' in metrics
            assert not needles.found_in(metrics)
            events = [json.loads(line)["event"] for line in server.log.splitlines()]
            assert events.count("round_completed") == 2
        server.stop()
    found.files |= needles.found_below(server.folder)  # run folder, log, output
    kit, sent = needles.found_below(kits[SERVER]), needles.found_below(traffic)
    assert secrets_in(found.memory | found.files | kit | sent) == set()

    # The scan finds what is there.
    assert {"own signing key", "own name of the HE key"} <= found.memory
    assert secure == any(name.startswith("own TLS key") for name in found.memory), found.memory
    assert found.files == {"own name of the HE key"}  # of every header
    assert {"own signing key, in base64", "own TLS key, in base64", "own name of the HE key"} <= kit
    nbytes = sum(path.stat().st_size for path in traffic.iterdir())
    assert nbytes > 10 * five.sites[0].update_of(0, five.ledger.bases[0]).nbytes
    assert sent == (set() if secure else {"own name of the HE key"})
    places = sorted(found.memory | found.files | kit | sent)
    report(f"{len(needles)} needles, {nbytes} bytes of traffic; found: {places}")


#: Has the HE key, says so, and waits.
HOLDER = "import sys, time, secagg; key = secagg.load_key(sys.argv[1]); print(key, flush=True); time.sleep(3600)"


def test_the_scan_finds_what_is_planted(provisioned: tuple[Kits, str], tmp_path: Path) -> None:
    kits, _ = provisioned
    kit = load_site_kit(kits[SITES[0]])
    secrets = {"root of the client key"} | ({"client key"} if kit.key.secret_material().secret.size else set())
    needles = Needles()
    add_client_key(needles, kit.folder / CLIENT_KEY_FILE)
    subkey = kit.key.subkey(b"a test", b"of its own")
    number = int.from_bytes(subkey, "little") >> 129
    needles.add("subkey", subkey)
    needles.add_number("number", number)

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, kit.folder / CLIENT_KEY_FILE], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == f"{kit.key!r}\n"
        with standing_still(holder) as pid:
            found = needles.found_in_process(pid)
            assert all(any(name.startswith(secret) for name in found) for secret in secrets)
        holder.kill()

    deep = tmp_path / "server" / "run" / "spool"
    deep.mkdir(parents=True)
    shutil.copy(kit.folder / CLIENT_KEY_FILE, deep / "site-1.part")
    assert needles.found_below(tmp_path / "server") == secrets
    (deep / "site-1.part").unlink()
    (deep / f"{subkey.hex()}.part").touch()
    assert needles.found_below(tmp_path / "server") == {"subkey, in hexadecimal"}
    (deep / f"{subkey.hex()}.part").unlink()
    line = {"message": f"r is {number}", "site": base64.urlsafe_b64encode(b"x" + subkey).decode()}
    (tmp_path / "server" / "log").write_text(json.dumps(line))
    assert needles.found_below(tmp_path / "server") == {"number, in decimal", "subkey, in base64"}
    assert needles.found_in(number.to_bytes(16, "big")) == {"number, backwards"}

    traffic = tmp_path / "traffic"
    traffic.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy(listener.getsockname()[1], traffic) as proxy:
        host, port = proxy.address.split(":")
        with socket.create_connection((host, int(port))) as site, listener.accept()[0] as server:
            site.sendall(b"\x00\x01\x02" + subkey[5:29])
            assert server.recv(100)
    assert needles.found_below(traffic) == {"subkey"}
