"""`secagg doctor`: each thing that can be wrong is found, named, and told how to mend."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mortal import free_port
from provisioned import Federation, Secagg
from served import Kits, Served
from served import federation as four_sites

from secagg import Client, Config, Update
from secagg.cli import main
from secagg.cli.doctor_kit import check_disk, check_kit
from secagg.cli.doctor_network import check_port, check_server
from secagg.errors import KeyFileError, StorageError, TransportError
from secagg.setup.disk import round_nbytes
from secagg.setup.packing import pack
from secagg.trust.kit import load_server_kit, load_site_kit
from secagg.trust.kit_files import locked
from secagg.ui.findings import Doubt
from secagg.wire.layout import Layout

DAY = 86_400.0


def findings(folder: Path, now: float | None = None) -> dict[str, tuple[str, str]]:
    """Level and text of each check."""
    return {finding.what: (finding.level, finding.text) for finding in check_kit(folder, now)}


def levels(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {what: level for what, (level, _) in found.items() if level != "ok"}


@pytest.mark.parametrize("party", ["a", "server"])
def test_nothing_is_wrong(made: Federation, party: str) -> None:
    found = findings(made[party])
    assert levels(found) == {}
    assert list(found) == [
        "files",
        "permissions",
        "manifest",
        "validity",
        "signing key",
        "certificate",
        "HE key",
        "configuration",
        "min_clients",
        "backend",
    ]


BOUNDS: dict[str, Any] = {"max_abs": {"default": 0.5, "x.*": 4.0}, "max_weight": 1000}
TRIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact, fixed": ({"preset": "exact"}, BOUNDS),
    "clara": ({"preset": "clara"}, BOUNDS),
    "pyfhel, fixed": ({"lib": "pyfhel", "config": {"scheme": "BGV", "value_bits": 12}}, BOUNDS),
    "exact": ({"preset": "exact"}, {}),
    "smallest": ({"preset": "smallest"}, {"max_weight": 1e6}),
    "pyfhel": ({"lib": "pyfhel", "config": {"scheme": "BGV"}}, {"precision": "previous"}),
    "three bits": ({"lib": "flashe", "config": {"value_bits": 3, "rounding": "stochastic"}}, {}),
}


@pytest.mark.parametrize(("he", "numbers"), TRIED.values(), ids=TRIED)
def test_each_backend_is_tried(tmp_path: Path, he: dict[str, Any], numbers: dict[str, Any]) -> None:
    aggregation = {"min_clients": 3, "max_clients": 3, **numbers}
    federation = Federation.make(tmp_path, he=he, aggregation=aggregation, encrypt={"include": ["x.*"]})
    level, text = findings(federation["a"])["backend"]
    assert (level, "encrypts, adds and decrypts; kernels: cython" in text) == ("ok", True)


@pytest.mark.parametrize("numbers", [BOUNDS, {}, {"precision": "previous"}], ids=["fixed", "auto", "previous"])
def test_a_library_whose_sums_are_off_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: dict[str, Any]
) -> None:
    """By a step and a half of 8 bits: a site's rounding is at most one step, the mean of two no more."""
    aggregation = {"min_clients": 3, "max_clients": 3, **numbers}
    he = {"lib": "flashe", "config": {"value_bits": 8}}
    federation = Federation.make(tmp_path, he=he, aggregation=aggregation)
    decrypt, off = Client.decrypt, 1.5 * (0.5 if "max_abs" in numbers else 1.0) / 127

    def wrong(site: Client, aggregate: Update, *more: Any, **named: Any) -> dict[str, Any]:
        return {name: value + np.float32(2 * off) for name, value in decrypt(site, aggregate, *more, **named).items()}

    monkeypatch.setattr(Client, "decrypt", wrong)
    level, text = findings(federation["a"])["backend"]
    assert level == "FAIL"
    assert "flashe returns sums that are 0.0" in text
    assert text.endswith("off: install another version of it")


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Federation], None]:
    def damage(kit: Path, other: Federation) -> None:
        (kit / name).write_bytes(change((kit / name).read_bytes()))

    return damage


def of_another(name: str, party: str | None = None) -> Callable[[Path, Federation], None]:
    def damage(kit: Path, other: Federation) -> None:
        (kit / name).write_bytes((other[party or kit.name] / name).read_bytes())

    return damage


def mode(name: str, bits: int) -> Callable[[Path, Federation], None]:
    def damage(kit: Path, other: Federation) -> None:
        (kit / name).chmod(bits)

    return damage


def remove(name: str) -> Callable[[Path, Federation], None]:
    def damage(kit: Path, other: Federation) -> None:
        (kit / name).unlink()

    return damage


def add(name: str) -> Callable[[Path, Federation], None]:
    def damage(kit: Path, other: Federation) -> None:
        (kit / name).write_bytes((other["a"] / "he-client.key").read_bytes())
        (kit / name).chmod(0o600)

    return damage


def half(blob: bytes) -> bytes:
    return blob[: len(blob) // 2]


FAULTS: dict[str, tuple[str, Callable[[Path, Federation], None], str, str]] = {
    "file missing": ("a", remove("tls.key"), "files", "lacks tls.key; unpack the kit again"),
    "HE secret at the server": ("server", add("he-client.key"), "files", "the server must never hold the HE key"),
    "old HE secret at the server": ("server", add("he-client-0.key"), "files", "the server must never hold the HE key"),
    "interrupted": ("a", lambda kit, other: (kit / ".secagg-staged").mkdir(), "files", "was interrupted"),
    "key that others read": (
        "a",
        mode("he-client.key", 0o640),
        "permissions",
        "mode 0640, others can read it: chmod 600",
    ),
    "signing key that all read": ("server", mode("signing.key", 0o604), "permissions", "mode 0604"),
    "authority that others write": ("a", mode("ca.crt", 0o664), "permissions", "others can change it: chmod 644"),
    "folder that others write": ("a", mode(".", 0o777), "permissions", "others can replace its files: chmod 700"),
    "manifest cut": ("a", spoil("project.secagg", half), "manifest", "is not a usable project manifest: truncated"),
    "manifest changed": (
        "a",
        spoil("project.secagg", lambda blob: blob.replace(b"brain", b"train")),
        "manifest",
        "project.secagg' is not a usable project manifest",
    ),
    "manifest with another signature": (
        "a",
        spoil("project.secagg", lambda blob: blob[:-1] + bytes([blob[-1] ^ 1])),
        "manifest",
        "the signature is not that of the authority",
    ),
    "signing key of another": ("a", of_another("signing.key"), "signing key", "which the manifest gives to none of"),
    "signing key damaged": ("a", spoil("signing.key", half), "signing key", "is not a private key in PEM"),
    "certificate of another": ("a", of_another("tls.crt"), "certificate", "was not issued by the authority"),
    "TLS key of another": ("a", of_another("tls.key"), "certificate", "is not the key of"),
    "certificate damaged": ("a", spoil("tls.crt", half), "certificate", "is not a certificate"),
    "TLS key damaged": ("a", spoil("tls.key", half), "certificate", "is not a private key in PEM"),
    "HE key of another": ("a", of_another("he-client.key"), "HE key", "is not that of project brain"),
    "HE key damaged": ("a", spoil("he-client.key", half), "HE key", "he-client.key' is not a usable key file"),
    "server key of another": ("server", of_another("he-server.key"), "HE key", "is not that of project brain"),
    "configuration changed": (
        "a",
        spoil("federation.yaml", lambda text: text.replace(b"max_weight: 64", b"max_weight: 65")),
        "configuration",
        "is not the manifest's",
    ),
    "configuration damaged": (
        "server",
        spoil("federation.yaml", lambda text: b"he: [" + text),
        "configuration",
        "is not YAML",
    ),
}


@pytest.mark.parametrize(("party", "damage", "what", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(
    federation: Federation,
    tmp_path_factory: pytest.TempPathFactory,
    party: str,
    damage: Callable[[Path, Federation], None],
    what: str,
    message: str,
) -> None:
    damage(federation[party], Federation.make(tmp_path_factory.mktemp("other")))
    found = findings(federation[party])
    assert found[what][0] == "FAIL"
    assert message in found[what][1]


def test_a_certificate_of_the_same_authority_and_another_party(federation: Federation) -> None:
    for name in ("tls.crt", "tls.key"):
        shutil.copy(federation["b"] / name, federation["a"])
    level, text = findings(federation["a"])["certificate"]
    assert level == "FAIL"
    assert "the certificate of b" in text
    assert "is not that which the manifest gives a" in text


def test_a_whole_kit_of_another_project_is_seen_by_its_manifest(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    of_another("project.secagg")(federation["a"], Federation.make(tmp_path_factory.mktemp("other")))
    found = findings(federation["a"])
    assert {"signing key", "HE key"} <= levels(found).keys()


def test_the_clock(made: Federation) -> None:
    project = made.provisioner.project
    before = findings(made["a"], project.issued - 2 * DAY)
    assert "is not valid before" in before["validity"][1]
    assert "set the clock of this machine" in before["certificate"][1]
    after = findings(made["a"], project.expires + 2 * DAY)
    assert "expired on" in after["validity"][1]
    assert "expired on" in after["certificate"][1]
    for found in (before, after):
        assert levels(found) == {"validity": "FAIL", "certificate": "FAIL"}
    soon = findings(made["a"], project.expires - 20 * DAY)
    assert levels(soon) == {"validity": "warning", "certificate": "warning"}
    assert "have it renewed by `secagg rotate`" in soon["validity"][1]


def test_a_revoked_site(made: Federation, federation: Federation, tmp_path: Path) -> None:
    fewer = made.change(tmp_path / "fewer", lambda provisioner, *folders: provisioner.remove(("a",), *folders))
    shutil.copy(fewer["server"] / "project.secagg", federation["a"])
    found = findings(federation["a"])
    assert found["signing key"] == ("FAIL", "site 'a' has been revoked in project brain")
    # The server is told that a round cannot succeed any more.
    level, text = findings(fewer["server"])["min_clients"]
    assert (level, "2 sites take part, 3 are needed" in text) == ("warning", True)
    assert "2 sites and 1 removed" in findings(fewer["server"])["manifest"][1]


def test_two_sites_and_an_open_folder_are_doubts(tmp_path: Path) -> None:
    aggregation = {"min_clients": 2, "max_clients": 5}
    federation = Federation.make(tmp_path, sites=["a", "b"], aggregation=aggregation)
    federation["a"].chmod(0o755)
    found = findings(federation["a"])
    assert levels(found) == {"min_clients": "warning", "permissions": "warning"}
    assert "each can compute the other's update" in found["min_clients"][1]


def test_a_backend_that_is_missing(secagg: Secagg, tmp_path: Path) -> None:
    federation = Federation.make(tmp_path, he={"preset": "exact"})
    command = ["doctor", str(federation["a"])]
    code = f"import sys; sys.modules['seal'] = None; from secagg.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 1
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("FAIL"))
    assert line.startswith("FAIL     backend ")
    assert "secagg[seal]" in line
    assert result.stdout.endswith("1 of these failed\n")


def test_the_disk(made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, free = made.provisioner.project, 1 << 34

    def disk_usage(path: Path) -> Any:
        assert path.exists()
        return shutil._ntuple_diskusage(1 << 40, (1 << 40) - free, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)  # the disk of this machine has more, or less
    assert f"17.2 GB free at {tmp_path}" in check_disk(tmp_path / "not" / "yet", project, server=True)
    large = Layout.from_json([[["w"], "float32", [1 << 20, 1 << 12], "encrypted", False]])
    for server in (False, True):
        with pytest.raises(StorageError, match="make room"):
            check_disk(tmp_path, replace(project, layout=large), server=server)
    small, free = Layout.from_json([[["w"], "float32", [3], "encrypted", False]]), 1 << 29
    with pytest.raises(Doubt, match="537 MB free at .*, rounds take about"):
        check_disk(tmp_path, replace(project, layout=small), server=True)
    free = 1 << 20
    with pytest.raises(StorageError, match=r"1.0 MB free at .*, rounds take 1.1 GB: make room"):
        check_disk(tmp_path, project, server=False)


@pytest.mark.parametrize("server", [True, False])
def test_calibrations_count_on_the_disk(made: Federation, server: bool) -> None:
    """One of each site and scales as there are aggregates; they are small beside updates."""
    project = made.provisioner.project
    specs = [[[f"w{number}"], "float32", [1000, 1000], "encrypted", False] for number in range(10)]
    rounds = {}
    for precision in ("auto", "previous"):
        numbers = {"max_clients": 5, "min_clients": 3, "precision": precision}
        config = Config.from_dict({"he": {"preset": "smallest"}, "aggregation": numbers})
        changed = replace(project, layout=Layout.from_json(specs), config=config)
        rounds[precision] = round_nbytes(changed, server=server) or 0
    calibrations = len(project.sites) + 3 if server else 2
    # 1921 counts, of 3 bits each, fit a block of 4096 words; the other 2 kB are heads and tags.
    assert rounds["auto"] - rounds["previous"] == pytest.approx(calibrations * (8 * 4096 + 2000), rel=0.05)
    assert rounds["auto"] < 1.01 * rounds["previous"]


def test_the_command_on_a_folder(secagg: Secagg, federation: Federation) -> None:
    fine = secagg("doctor", federation["a"])
    assert fine.returncode == 0, fine.stdout
    assert "ok       manifest       project brain, serial 1, 3 sites" in fine.stdout
    assert "warning  server         not tried; give --server HOST:PORT" in fine.stdout
    assert fine.stdout.endswith("nothing failed\n")
    (federation["a"] / "he-client.key").chmod(0o644)
    wrong = secagg("doctor", federation["a"])
    assert wrong.returncode == 1
    assert "FAIL     permissions    " in wrong.stdout
    assert secagg("doctor", federation["server"], "--server", "localhost:1").returncode == 2
    assert secagg("doctor", federation["a"], "--server", "localhost").returncode == 2
    nobody = secagg("doctor", federation.kits)
    assert nobody.returncode == 1
    assert "is no kit" in nobody.stdout


def rooms() -> set[str]:
    """Folders in memory; those of fuzzers, which may run beside, stay for longer."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("secagg-") and "fuzz" not in name}


def test_the_command_on_a_file(
    secagg: Secagg, made: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rooms()
    pack(made["a"], tmp_path / "a.kit", "correct horse battery staple")
    monkeypatch.setenv("SECAGG_PASSPHRASE", "correct horse battery staple")
    fine = secagg("doctor", "a.kit")
    assert fine.returncode == 0, fine.stdout
    assert "ok       file           a.kit opens" in fine.stdout
    assert "ok       backend        flashe" in fine.stdout
    monkeypatch.setenv("SECAGG_PASSPHRASE", "another passphrase")
    wrong = secagg("doctor", "a.kit")
    assert wrong.returncode == 1
    assert "FAIL     file           a.kit does not open" in wrong.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.kit"]
    left, deadline = rooms() - before, time.monotonic() + 60
    while left and time.monotonic() < deadline:  # that of another process goes in a moment
        time.sleep(0.1)
        left &= rooms()
    assert not left


def test_the_port(made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secagg.cli.doctor_network._TIMEOUT_SECONDS", 1.0)  # what listens there never answers
    kit = load_server_kit(made["server"])
    port = free_port()  # one that nobody else gets when it is free again
    address = f"127.0.0.1:{port}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(TransportError, match=f"{address}: another program listens there: stop it, or choose"):
            check_port(kit, address)
    assert check_port(kit, address) == f"{address} is free"
    with pytest.raises(TransportError, match="this machine has no such address"):
        check_port(kit, "192.0.2.1:8443")
    with pytest.raises(TransportError, match="name an address of this machine"):
        check_port(kit, "no-such-host.invalid:8443")


def checked(kits: Kits | Federation, site: str, address: str) -> dict[str, tuple[str, str]]:
    return {f.what: (f.level, f.text) for f in check_server(load_site_kit(kits[site]), address)}


def test_a_server_that_is_not_there(made: Federation) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        found = checked(made, "a", address)
    assert found == {"server": ("FAIL", f"nothing listens on {address}: is `secagg serve` running, on that port?")}
    assert "cannot be resolved" in checked(made, "a", "no-such-host.invalid:1")["server"][1]


def test_a_proxy_on_the_way(made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found on the straight way does not count: nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        named = f"127.0.0.1:{proxy.getsockname()[1]}"
        monkeypatch.setenv("https_proxy", f"http://nurse:s3cret@{named}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr("secagg.cli.doctor_network._TIMEOUT_SECONDS", 1.0)
        found = checked(made, "a", "0.0.0.0:1")
        assert found["proxy"][0] == "ok"
        assert found["proxy"][1].startswith(f"the proxy of https_proxy=http://{named} can be reached")
        assert (found["service"][0], found.keys()) == ("FAIL", {"proxy", "service"})
        assert "set no_proxy=0.0.0.0 to connect without it" in found["service"][1]
    found = checked(made, "a", "0.0.0.0:1")
    assert found == {
        "proxy": (
            "FAIL",
            f"the proxy of https_proxy=http://{named} cannot be reached: Connection refused; set no_proxy=0.0.0.0 to "
            "connect without it",
        )
    }
    assert "proxy" not in checked(made, "a", "127.0.0.1:1")


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("federation"), four_sites())


@pytest.fixture(scope="module")
def served(kits: Kits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(kits["server"], tmp_path_factory.mktemp("server")) as server:
        yield server


def test_the_way_to_the_server(
    secagg: Secagg,
    kits: Kits,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = secagg("doctor", kits["site-1"], "--server", served.address)
    assert result.returncode == 0, result.stdout
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"ok server {served.address} can be reached" in lines
    assert "ok TLS site-1 and the server accept each other's certificates" in lines
    assert "ok service answers: round 0, idle" in lines
    assert "ok clock agrees with the server's" in lines
    assert "ok epoch 0, as the server's; manifest 1, this kit's is 1" in lines
    monkeypatch.setattr("secagg.cli.doctor_network._TIMEOUT_SECONDS", 120.0)  # ten are few on a slow machine
    code, own = main(["doctor", str(kits["server"]), "--address", served.address]), capsys.readouterr().out
    assert code == 0, own
    assert f"this federation's server listens on {served.address}" in own


def test_the_server_of_another_federation(made: Federation, served: Served) -> None:
    found = checked(made, "a", served.address)
    assert found["server"][0] == "ok"
    assert found["TLS"][0] == "FAIL"
    assert "the certificate of the server" in found["TLS"][1]
    assert "service" not in found
    with pytest.raises(TransportError, match="another program listens there"):
        check_port(load_server_kit(made["server"]), served.address)


def test_a_name_that_the_certificate_lacks(kits: Kits, tmp_path: Path) -> None:
    with Served(kits["server"], tmp_path / "server", ("--address", "127.0.0.2:0")) as server:
        found = checked(kits, "site-1", server.address)
        server.stop()
    assert found["server"][0] == "ok"
    assert found["TLS"][0] == "FAIL"
    assert "127.0.0.2" in found["TLS"][1]


@pytest.fixture
def changed(kits: Kits, tmp_path: Path) -> Callable[..., Federation]:
    """Change a copy of the provisioner's folder; the kits that the change makes."""

    def change(name: str, *arguments: object) -> Federation:
        federation = Federation(kits.provisioner, kits.folder)
        return federation.change(tmp_path / name, lambda it, *folders: getattr(it, name)(*arguments, *folders))

    return change


def test_one_side_has_rotated(kits: Kits, served: Served, changed: Callable[..., Federation], tmp_path: Path) -> None:
    """The certificates tell, before anything is sent: an impostor may have got hold of the old one."""
    new = changed("rotate", None)
    old, own = (load_site_kit(side["site-1"]).project for side in (kits, new))
    words = "shows the certificate {}…, project brain names {}… (serial {}): one of the two kits is from before"
    found = checked(new, "site-1", served.address)
    with Served(new["server"], tmp_path / "server") as server:
        other = checked(kits, "site-1", server.address)
        server.stop()
    for result, shown, kit in ((found, old, own), (other, own, old)):
        assert (result["TLS"][0], "service" in result) == ("FAIL", False)
        fingerprints = (project.server.certificate[:16] for project in (shown, kit))
        assert words.format(*fingerprints, kit.serial) in result["TLS"][1]
        assert result["TLS"][1].endswith("unpack the newest kit at the server, or here")


def test_a_site_that_the_server_does_not_know_yet(
    kits: Kits, served: Served, changed: Callable[..., Federation]
) -> None:
    level, text = checked(changed("add", ("site-5",)), "site-5", served.address)["service"]
    assert level == "FAIL"
    assert text.startswith("the server does not know site-5 by this kit: the server has manifest 1, this kit 2: ")


def test_a_manifest_that_one_side_has_not(
    kits: Kits, served: Served, changed: Callable[..., Federation], tmp_path: Path
) -> None:
    new = changed("add", ("site-5",))
    with Served(new["server"], tmp_path / "server") as server:
        found = checked(kits, "site-1", server.address)
        server.stop()
    assert found["epoch"] == ("ok", "0, as the server's; manifest 2, this kit's is 1")
    shutil.copytree(kits["site-1"], tmp_path / "site-1")
    shutil.copy(new["server"] / "project.secagg", tmp_path / "site-1")
    found = checked(Federation(kits.provisioner, tmp_path), "site-1", served.address)
    assert found["epoch"][0] == "warning"
    assert "the server is under manifest 1, this kit has 2: unpack the newest kit of the server" in found["epoch"][1]


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0.5, "ok"), (-0.5, "ok"), (60.0, "warning"), (-60.0, "warning"), (4000.0, "FAIL"), (-4000.0, "FAIL")],
)
def test_a_clock_that_differs(
    kits: Kits, served: Served, monkeypatch: pytest.MonkeyPatch, ahead: float, level: str
) -> None:
    # Only the doctor's own clock: gRPC counts its deadlines by `time.time`, too.
    monkeypatch.setattr("secagg.ui.status.time", SimpleNamespace(time=lambda: time.time() - ahead))
    found = checked(kits, "site-1", served.address)["clock"]
    assert found[0] == level
    if level != "ok":
        assert "set both by NTP" in found[1]
        assert ("ahead of" if ahead > 0 else "behind") in found[1]


def lines_of(text: str) -> dict[str, str]:
    """Level and text of each line of the command's output, by what it is about."""
    found = (re.fullmatch(r"(ok|warning|FAIL) +(run folder|\S+( key)?) +(.*)", line) for line in text.splitlines())
    return {match[2]: f"{match[1]} {match[4]}" for match in found if match}


def run_folder_line(kit: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(folder.rglob("*"))
    main(["doctor", str(kit), "--address", f"127.0.0.1:{free_port()}", "--run-dir", str(folder)])
    assert sorted(folder.rglob("*")) == before  # nothing is made
    return lines_of(capsys.readouterr().out)["run folder"]


def test_a_run_folder_as_serve_would_see_it(
    kits: Kits, changed: Callable[..., Federation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = changed("rotate", None)
    with Served(new["server"], tmp_path / "server") as server:
        folder = tmp_path / "server" / "run"
        assert run_folder_line(new["server"], folder, capsys) == f"ok {folder} can be written, and fits this kit"
        server.stop()
    line = run_folder_line(kits["server"], folder, capsys)
    assert line.startswith("FAIL")
    assert "was served under manifest 2, this kit has 1: unpack the newest kit" in line
    (folder / "project.secagg").unlink()
    (folder / "aggregate-3.secagg").write_bytes(b"nothing of ours")
    line = run_folder_line(new["server"], folder, capsys)
    assert line.startswith(f"FAIL {folder}/aggregate-3.secagg: ")


def test_run_folders_that_are_none(
    made: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file, kit = tmp_path / "not" / "yet", tmp_path / "file", made["server"]
    assert run_folder_line(kit, folder, capsys) == f"ok {folder} does not exist yet; `secagg serve` makes it"
    assert not folder.parent.exists()
    file.touch()
    assert run_folder_line(kit, file, capsys) == f"FAIL {file} is a file; give a folder"
    assert run_folder_line(kit, file / "run", capsys) == f"FAIL {file}/run cannot be made: {file} is a file"
    # Whoever runs the tests may be root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert run_folder_line(kit, folder, capsys).startswith(f"FAIL {folder} cannot be made: this user may not write to")
    folder.mkdir(parents=True)
    assert run_folder_line(kit, folder, capsys).startswith(f"FAIL {folder} cannot be used: this user may not write to")


@pytest.mark.parametrize("party", ["a", "server"])
def test_a_kit_that_this_user_may_not_read(
    made: Federation, party: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may, so the system is made to refuse."""
    exists = Path.exists

    def refuse(path: Path) -> bool:
        if path.parent == made[party]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    assert main(["doctor", str(made[party])]) == 1
    output = capsys.readouterr()
    assert f"cannot read the kit {made[party]}: Permission denied; try as its owner" in output.out
    assert output.out.endswith(" of these failed\n")
    assert output.err == ""
    commands = (["status", str(made[party]), "--server", "localhost:1"], ["serve", str(made[party])])
    for command in (*commands, ["site", str(made[party]), "--server", "localhost:1"]):
        assert main(command) == 3
        assert "cannot read the kit" in capsys.readouterr().err


def test_a_kit_that_this_user_may_not_write_to(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(KeyFileError, match=r"cannot write to the kit .*: Is a directory"), locked(tmp_path):
        pass
