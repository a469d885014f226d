"""keygen, inspect, backends, serve: what they print, write and return."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import secagg as library

from .conftest import CLARA, Secagg

COMMANDS = ("plan", "keygen", "serve", "site", "demo", "inspect", "backends")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(secagg: Secagg, command: str) -> None:
    result = secagg(command, "--help")
    assert result.returncode == 0
    assert f"example:\n  secagg {command}" in result.stdout


def test_help_lists_commands_and_exit_codes(secagg: Secagg) -> None:
    result = secagg("--help")
    assert result.returncode == 0
    assert all(f"\n    {command} " in result.stdout for command in COMMANDS)
    assert "exit codes:" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("train",), ("demo", "--sites", "three"), ("inspect",)])
def test_wrong_usage_exits_with_2(secagg: Secagg, arguments: tuple[str, ...]) -> None:
    result = secagg(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: secagg")


def test_backends_lists_libraries_and_schemes(secagg: Secagg) -> None:
    result = secagg("backends")
    assert result.returncode == 0
    schemes: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        name, colon, _ = line.partition(": available")
        if colon:
            lib = name
        words = line.removeprefix("  schemes").split()
        if words[0] in ("CKKS", "BGV", "FLASHE"):
            schemes.setdefault(lib, []).append(words[0])
    both = ["CKKS", "BGV"]
    assert schemes == {"tenseal": ["CKKS"], "pyfhel": both, "seal": both, "flashe": ["FLASHE"]}
    assert "the server together with any one site can read every update" in result.stdout
    assert "kernels: cython" in result.stdout


def test_keygen_makes_a_kit_a_party(secagg: Secagg, config: Path, tmp_path: Path) -> None:
    result = secagg("keygen", config, "--out", "kits", "--sites", "a", "b")
    assert result.returncode == 0, result.stderr
    files = {str(path.relative_to(tmp_path / "kits")) for path in (tmp_path / "kits").rglob("*") if path.is_file()}
    tls = {"ca.crt", "tls.crt", "tls.key", "federation.yaml"}
    assert files == {"ca.crt", "ca.key"} | {f"{site}/{name}" for site in "ab" for name in tls | {"client.key"}} | {
        f"server/{name}" for name in tls | {"server.key"}
    }
    secret = [tmp_path / "kits" / name for name in files if name.endswith(("client.key", "tls.key", "ca.key"))]
    assert len(secret) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    keys = [library.load_key(tmp_path / "kits" / site / "client.key") for site in "ab"]
    server = library.load_key(tmp_path / "kits" / "server" / "server.key")
    assert keys[0].fingerprint == keys[1].fingerprint == server.fingerprint
    assert library.Config.load(tmp_path / "kits" / "b" / "federation.yaml") == library.Config.load(config)


def test_keygen_never_overwrites(secagg: Secagg, config: Path, tmp_path: Path) -> None:
    assert secagg("keygen", config, "--out", "kits", "--sites", "a", "b").returncode == 0
    before = (tmp_path / "kits" / "a" / "client.key").read_bytes()
    result = secagg("keygen", config, "--out", "kits", "--sites", "a", "b")
    assert result.returncode == 3
    assert "kits are never overwritten" in result.stderr
    assert (tmp_path / "kits" / "a" / "client.key").read_bytes() == before


def test_keygen_of_another_epoch(secagg: Secagg, config: Path, tmp_path: Path) -> None:
    made = secagg("keygen", config, "--out", "kits", "--sites", "a", "b", "--epoch", 3)
    assert made.returncode == 0, made.stderr
    assert "epoch 3" in made.stdout
    for key in ("a/client.key", "b/client.key", "server/server.key"):
        loaded = library.load_key(tmp_path / "kits" / key)
        assert getattr(loaded, "server", loaded).epoch == 3
        assert "\nepoch              3 " in secagg("inspect", tmp_path / "kits" / key).stdout
    below = secagg("keygen", config, "--out", "other", "--sites", "a", "b", "--epoch", -1)
    assert below.returncode == 2
    assert "epoch is -1" in below.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("names", [("a", "a"), ("a", "server"), ("a", "../b"), ("a", "b c"), ("a", "..")])
def test_keygen_refuses_names(secagg: Secagg, config: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    result = secagg("keygen", config, "--out", "kits", "--sites", *names)
    assert result.returncode == 2
    assert result.stderr.startswith("secagg: ")
    assert not (tmp_path / "kits").exists()


@pytest.mark.parametrize("arguments", [("--days", 0), ("--days", 10**8), ("--host", "hôte")])
def test_keygen_leaves_nothing_half_made(
    secagg: Secagg, config: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    result = secagg("keygen", config, "--out", "kits", "--sites", "a", "b", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"he": {"lib": "tenseel", "config": CLARA["he"]["config"]}},
            "the registered backends are flashe, pyfhel, seal, tenseal",
        ),
        ({"encypt": "all"}, "unknown key 'encypt'"),
        ({"aggregation": {"max_abs": -1}}, "aggregation.max_abs is -1"),
    ],
)
def test_wrong_config_is_explained(secagg: Secagg, tmp_path: Path, change: dict[str, object], message: str) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**CLARA, **change}), encoding="utf-8")
    for arguments in (("keygen", "bad.yaml", "--out", "kits", "--sites", "a", "b"), ("demo", "--config", "bad.yaml")):
        result = secagg(*arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_inspect_update_aggregate_and_keys(secagg: Secagg, tmp_path: Path) -> None:
    config = library.Config.from_dict({**CLARA, "encrypt": {"include": ["conv.*"]}})
    keys = library.generate_keys(config)
    keys.client.save(tmp_path / "client.key")
    keys.server.save(tmp_path / "server.key")
    state = {"conv.w": np.zeros((2, 3), np.float32), "norm.b": np.zeros(5, np.float32), "steps": np.int64(3)}
    aggregator = library.Aggregator(config, keys.server, round=7)
    for name in ("site-1", "site-2"):
        library.Client(config, keys.client, name).encrypt_to(tmp_path / f"{name}.secagg", state, weight=3, round=7)
        with library.Update.open(tmp_path / f"{name}.secagg") as update:
            aggregator.add(update)
    aggregator.finish().save(tmp_path / "aggregate.secagg")

    update = secagg("inspect", "site-1.secagg")
    assert update.returncode == 0, update.stderr
    lines = [line.split() for line in update.stdout.splitlines()]
    assert ["kind", "update"] in lines
    assert ["round", "7"] in lines
    assert ["digests", "all", "fit"] in lines
    assert ["key", keys.server.fingerprint] in lines
    assert "IN THE CLEAR       1 tensors, 5 values\n  norm.b  float32[5]\n" in update.stdout
    assert "stays at the site  1 tensors, 1 values\n  steps  int64[]\n" in update.stdout

    aggregate = secagg("inspect", "aggregate.secagg")
    assert ["sites", "site-1,", "site-2"] in [line.split() for line in aggregate.stdout.splitlines()]

    for name in ("client.key", "server.key"):
        shown = secagg("inspect", name)
        assert shown.returncode == 0
        assert keys.server.fingerprint in shown.stdout
        assert len(shown.stdout) < 1000  # a summary: key words would fill pages


INSPECTED = {
    "CKKS": (
        {"scheme": "CKKS", "poly_modulus_degree": 4096, "coeff_mod_bit_sizes": [60], "scale_bits": 40}
        | {"complex_slots": True, "seeded": False},
        ["ring degree 4096, primes of 60 bits", "seeded no: ", "slots 2,048 a block, each two values, ", "scale 2^40"],
    ),
    "BGV": (
        {"scheme": "BGV", "value_bits": 16, "overflow": "clip", "poly_modulus_degree": 4096}
        | {"coeff_mod_bit_sizes": [31, 31, 24], "plain_modulus_bits": 54},
        # 2 × 32767 × 3 sites takes 18 bits; three times that is 54, and the largest sum still below the prime.
        ["special prime of 24", "seeded yes: ", "are clipped and counted", "lanes 3 of 18 bits in a slot of 54 bits"],
    ),
    "FLASHE": (
        {"scheme": "FLASHE", "value_bits": 11, "error_feedback": True},
        [
            "security AES-256",
            "those beyond max_abs are an error",
            "error feedback ",
            "lanes 4 of 13 bits in a word of 64",
        ],
    ),
}


@pytest.mark.parametrize(("params", "expected"), INSPECTED.values(), ids=INSPECTED)
def test_inspect_explains_params(
    secagg: Secagg, tmp_path: Path, params: dict[str, object], expected: list[str]
) -> None:
    lib = "flashe" if params["scheme"] == "FLASHE" else "seal"
    numbers = {"max_clients": 3, "max_abs": 1.0}
    config = library.Config.from_dict({"he": {"lib": lib, "config": params}, "aggregation": numbers})
    keys = library.generate_keys(config, epoch=5)
    update = library.Client(config, keys.client, "a").encrypt({"w": np.zeros(100_000, np.float32)})
    update.save(tmp_path / "update.secagg")
    shown = secagg("inspect", "update.secagg")
    assert shown.returncode == 0, shown.stderr
    text = "\n".join(" ".join(line.split()) for line in shown.stdout.splitlines())
    for words in ["\nepoch 5 ", f"\nexpansion {update.nbytes / 400_000:.2f} × the 400,000 bytes", *expected]:
        assert words in text


def test_inspect_says_what_is_wrong_with_a_file(secagg: Secagg, tmp_path: Path) -> None:
    config = library.Config.from_dict(CLARA)
    keys = library.generate_keys(config)
    path = tmp_path / "update.secagg"
    library.Client(config, keys.client, "a").encrypt_to(path, {"w": np.zeros(3, np.float32)})
    blob = bytearray(path.read_bytes())
    blob[-100] ^= 1
    path.write_bytes(blob)
    damaged = secagg("inspect", path)
    assert damaged.returncode == 7
    assert "frame 0 is damaged" in damaged.stderr
    path.write_bytes(b"PK\x03\x04 something else")
    assert "not a secagg file" in secagg("inspect", path).stderr
    assert secagg("inspect", tmp_path / "missing").returncode == 7


def test_serve_and_site_without_a_usable_kit(secagg: Secagg, config: Path, tmp_path: Path) -> None:
    assert secagg("keygen", config, "--out", "kits", "--sites", "a", "b").returncode == 0
    kits = tmp_path / "kits"
    missing = secagg("serve", kits / "nobody")
    assert missing.returncode == 2
    (kits / "server" / "server.key").write_bytes((kits / "a" / "client.key").read_bytes())
    wrong = secagg("serve", kits / "server", "--address", "127.0.0.1:0")
    assert wrong.returncode == 3
    assert "a server key (server.key) is needed" in wrong.stderr
    nobody = secagg("site", kits / "a", "--server", "nowhere", "--rounds", "0")
    assert nobody.returncode == 2


def test_serve_refuses_to_be_insecure_on_other_addresses(secagg: Secagg, config: Path, tmp_path: Path) -> None:
    assert secagg("keygen", config, "--out", "kits", "--sites", "a", "b").returncode == 0
    server = tmp_path / "kits" / "server"
    (server / "tls.crt").unlink()
    assert secagg("serve", server, "--address", "127.0.0.1:0").returncode == 3
    refused = secagg("serve", server, "--address", "0.0.0.0:0", "--insecure")
    assert refused.returncode == 2
    assert "loopback" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_in_order(secagg: Secagg, config: Path, tmp_path: Path, number: signal.Signals) -> None:
    assert secagg("keygen", config, "--out", "kits", "--sites", "a", "b").returncode == 0
    command = [sys.executable, "-m", "secagg.cli", "serve", "kits/server", "--address", "127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving on 127.0.0.1:")
        time.sleep(0.2)
        server.send_signal(number)
        assert server.wait(30) == 0


@pytest.mark.parametrize("module", ["grpc", "cryptography", "torch"])
def test_a_missing_library_is_named_with_the_extras(config: Path, tmp_path: Path, module: str) -> None:
    keys = library.generate_keys(library.Config.load(config))
    keys.client.save(tmp_path / "client.key")
    command = {
        "grpc": ["site", str(tmp_path), "--server", "127.0.0.1:1", "--name", "a"],
        "cryptography": ["keygen", str(config), "--out", str(tmp_path / "kits"), "--sites", "a", "b"],
        "torch": ["site", str(tmp_path), "--server", "127.0.0.1:1", "--name", "a"],
    }[module]
    code = f"import sys; sys.modules[{module!r}] = None; from secagg.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert result.returncode == 4, result.stderr
    assert module in result.stderr
    assert "pip install 'secagg[tenseal,monai,grpc]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "kits").exists()
