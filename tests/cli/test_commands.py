"""inspect, backends, help, and what all commands have in common: what they print and return."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from provisioned import CLARA, COMMANDS, Federation, Secagg
from s3_server import S3Server

import secagg as library
from secagg.cli import main
from secagg.site import GlobalModel
from secagg.site.trained import Trained
from secagg.storage import objects


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(secagg: Secagg, command: str) -> None:
    result = secagg(command, "--help")
    assert result.returncode == 0
    assert f"example:\n  secagg {command}" in result.stdout


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["leak", "inspect"])
def test_help_is_as_wide_as_the_terminal(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage, text, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith("usage: secagg")
    lines = text.splitlines()
    assert max(map(len, lines)) < columns
    assert not any(line.startswith(" ") for line in lines)


def test_the_list_of_commands_has_a_sentence_of_each(secagg: Secagg) -> None:
    text = secagg("--help").stdout
    assert "Play a server that attacks updates" in text
    assert "Small networks" not in text  # the second paragraph, which `secagg leak --help` has


def test_help_lists_commands_and_exit_codes(secagg: Secagg) -> None:
    result = secagg("--help")
    assert result.returncode == 0
    assert all(re.search(rf"^    {command}\b", result.stdout, re.MULTILINE) for command in COMMANDS)
    assert "exit codes:" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("train",), ("demo", "--sites", "three"), ("inspect",)])
def test_wrong_usage_exits_with_2(secagg: Secagg, arguments: tuple[str, ...]) -> None:
    result = secagg(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: secagg")


def test_backends_lists_libraries_and_schemes(secagg: Secagg) -> None:
    result = secagg("backends")
    assert result.returncode == 0
    assert f"flashe: available, by cryptography {version('cryptography')}\n" in result.stdout
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
    result = secagg("demo", "--config", "bad.yaml")
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
    assert ["kind", "update:", "what", "a", "site", "sends", "in", "a", "round"] in lines
    assert "precision          fixed: values at most " in update.stdout
    assert "scales  " not in update.stdout
    assert ["round", "7"] in lines
    assert ["digests", "all", "fit"] in lines
    assert ["key", keys.server.fingerprint] in lines
    assert "manifest           none: it is of no project\n" in update.stdout
    assert "tags               6 tags, by which sites verify the sum\n" in update.stdout
    assert "IN THE CLEAR       1 tensor, 5 values\n  norm.b  float32[5]\n" in update.stdout
    assert "stays at the site  1 tensor, 1 values\n  steps  int64[]\n" in update.stdout

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
            "those beyond their bound are an error",
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


@pytest.mark.parametrize("preset", ["exact", "smallest"])
def test_inspect_a_round_of_measured_scales(secagg: Secagg, tmp_path: Path, preset: str) -> None:
    """Its calibration is said to be wholly encrypted, whatever of the updates is not."""
    data = {"he": {"preset": preset}, "encrypt": {"include": ["conv.*"]}, "aggregation": {"max_weight": 50}}
    config = library.Config.from_dict(data)
    keys = library.generate_keys(config)
    state = {"conv.w": np.ones((2, 3), np.float32), "norm.b": np.ones(5, np.float32), "steps": np.int64(3)}
    sites = [library.Client(config, keys.client, name) for name in ("a", "b")]
    calibrations, updates = (library.Aggregator(config, keys.server, kind=kind) for kind in ("calibration", "update"))
    for site in sites:
        calibrations.add(site.calibrate(state))
    scales = calibrations.finish()
    for site in sites:
        updates.add(site.encrypt(state, calibration=scales))
    files = {
        "calibration": sites[0].calibrate(state),
        "scales": scales,
        "update": sites[0].encrypt(state, calibration=scales),
        "aggregate": updates.finish(),
    }
    for kind, container in files.items():
        container.save(tmp_path / f"{kind}.secagg")
        shown = secagg("inspect", f"{kind}.secagg")
        assert shown.returncode == 0, shown.stderr
        lines = shown.stdout.splitlines()
        rows = {line[:18].strip(): line[19:] for line in lines}
        assert rows["kind"].startswith(f"{kind}: ")
        assert rows["digests"] == "all fit"
        assert rows["precision"].startswith("auto: ")
        assert rows["precision"].endswith(", weights at most 50")
        assert " lanes a value of norms, biases and the like" in rows["small tensors"]
        if kind in ("calibration", "scales"):
            assert "IN THE CLEAR" not in shown.stdout
            assert rows["encrypted"] == "in which half-octave the largest value lies, of 2 tensors"
            assert "expansion" not in rows
            assert "scales" not in rows
        else:
            assert "IN THE CLEAR       1 tensor, 5 values\n  norm.b  float32[5]\n" in shown.stdout
            assert rows["scales"] == f"{scales.digest().hex()}, those of its round"


def test_inspect_updates_whose_scales_are_those_of_the_round_before(secagg: Secagg, tmp_path: Path) -> None:
    config = library.Config.from_dict({"he": {"preset": "smallest"}, "aggregation": {"precision": "previous"}})
    site = library.Client(config, library.generate_keys(config).client, "a")
    site.encrypt_to(tmp_path / "update.secagg", {"w": np.ones(3, np.float32)})
    shown = secagg("inspect", "update.secagg")
    assert "precision          previous: what sites measure in a round holds for the next one\n" in shown.stdout


def test_inspect_says_what_is_wrong_with_a_file(secagg: Secagg, tmp_path: Path) -> None:
    config = library.Config.from_dict(CLARA)
    keys = library.generate_keys(config)
    path = tmp_path / "update.secagg"
    library.Client(config, keys.client, "a").encrypt_to(path, {"w": np.zeros(3, np.float32)})
    blob = bytearray(path.read_bytes())
    blob[-1000] ^= 1
    path.write_bytes(blob)
    damaged = secagg("inspect", path)
    assert damaged.returncode == 7
    assert "frame 0 is damaged" in damaged.stderr
    path.write_bytes(b"PK\x03\x04 something else")
    assert "not a secagg file" in secagg("inspect", path).stderr
    assert secagg("inspect", tmp_path / "missing").returncode == 7


def test_inspect_what_lies_in_a_bucket(
    s3: S3Server, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = library.Config.from_dict({"he": {"preset": "smallest"}, "aggregation": {"max_abs": 1.0}})
    keys, url, path = library.generate_keys(config), f"s3://{bucket}/update.secagg", tmp_path / "update.secagg"
    library.Client(config, keys.client, "a").encrypt_to(path, {"w": np.zeros(3, np.float32)})
    with library.Update.open(path) as update:
        update.save(url)
    assert main(["inspect", str(path), url]) == 0
    one, other = capsys.readouterr().out.removeprefix(f"{path}:\n").split(f"\n{url}:\n")
    assert one == other
    s3.fault("flip", key=f"{bucket}/update.secagg", nbytes=path.stat().st_size - 400, times=9)
    assert main(["inspect", url]) == 7
    assert "the update is damaged: frame 0 is damaged" in capsys.readouterr().err
    s3.clear()
    keys.server.save(tmp_path / "server.key")
    with objects.write(f"s3://{bucket}/server.key") as file:
        file.write((tmp_path / "server.key").read_bytes())
    for name, said in (("server.key", "this is a server-key, not an update"), ("missing", "it is not there")):
        assert main(["inspect", f"s3://{bucket}/{name}"]) == 7
        assert said in capsys.readouterr().err


def test_inspect_says_what_a_kit_is(secagg: Secagg, federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "a.kit").write_bytes(b"age-encryption.org/v1\n-> scrypt ...")
    sealed = secagg("inspect", "a.kit")
    assert (sealed.returncode, sealed.stdout.split(maxsplit=1)[1]) == (
        0,
        "an encrypted kit: open it with `secagg unpack a.kit`\n",
    )
    for party, key in (("a", "he-client.key"), ("server", "he-server.key")):
        folder = secagg("inspect", federation[party])
        assert folder.returncode == 0, folder.stderr
        commands = [line.split() for line in folder.stdout.splitlines() if line.startswith("  secagg inspect")]
        assert [Path(path).name for _, _, path in commands] == ["project.secagg", key]
        for _, *command in commands:
            assert secagg(*command).returncode == 0
    other = secagg("inspect", tmp_path)
    assert other.returncode == 7
    assert "is a folder, and no kit's: name a file in it" in other.stderr


def keeping() -> tuple[library.Client, GlobalModel]:
    """A site with error feedback, after an update; of its own it has a tensor of torch's."""
    he = {"lib": "flashe", "config": {"value_bits": 6, "rounding": "nearest", "error_feedback": True}}
    numbers = {"min_clients": 3, "max_abs": 8.0}
    config = library.Config.from_dict({"he": he, "stay": ["head"], "aggregation": numbers})
    site = library.Client(config, library.generate_keys(config).client, "hospital")
    state = {"w": np.zeros(3, np.float32), "z": np.zeros((3, 2), np.float32), "head": torch.zeros(2)}
    model = GlobalModel(site, state)
    model.encrypt({**state, "w": np.full(3, 0.1, np.float32)}, weight=1.0)
    return site, model


def test_inspect_says_what_a_site_keeps(secagg: Secagg, tmp_path: Path) -> None:
    site, model = keeping()
    (tmp_path / "model").write_bytes(model.to_bytes())  # the head is torch's, which the command does not load
    (tmp_path / "carry").write_bytes(site.carry())
    (tmp_path / "own").write_bytes(model.own_to_bytes())
    Trained(0, model.base, model.state, 1.0).keep(tmp_path)
    kinds = {"model": "GlobalModel.to_bytes()", "carry": "Client.carry()", "own": "a site's own tensors"}
    kinds["trained"] = "what a site has trained"
    for name, kind in kinds.items():
        shown = secagg("inspect", name)
        assert shown.returncode == 0, shown.stderr
        assert kind in shown.stdout.splitlines()[0]
        assert (str(site.report) in shown.stdout) is (name in ("model", "carry"))
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        assert "damaged, or of another release" in secagg("inspect", name).stderr
    assert "hospital" not in shown.stdout


def test_inspect_shows_how_precisely_the_latest_update_was_sent(secagg: Secagg, federation: Federation) -> None:
    """Of the carry in a site's folder, whose path is enough; nothing of who has sent nothing yet."""
    site, _ = keeping()
    before = secagg("inspect", federation["a"])
    assert "carry" not in before.stdout
    carry = federation["a"] / "carry"
    carry.write_bytes(site.carry())
    shown = secagg("inspect", federation["a"])
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert f"  secagg inspect {carry}" in lines
    assert "update             of round 0, how precisely it was sent: the tensor first that lost most" in lines
    table = lines[lines.index(next(line for line in lines if line.startswith("tensor "))) :]
    assert [line.split()[:3] for line in table[1:4]] == [["w", "3", "0.8"], ["z", "6", "0.0"], ["overall", "9", "0.5"]]
    assert " 100 %" in table[1]  # far below a step, 8/31
    assert "dropped: share of the energy" in shown.stdout
    carry.write_bytes(carry.read_bytes()[:-1] + b"\xff")
    assert "carry looks like what a site keeps, and is damaged" in secagg("inspect", federation["a"]).stderr
    fresh = keeping()[1]
    fresh.site.restore_carry(b"")
    (federation.kits / "state").write_bytes(fresh.to_bytes())
    nothing = secagg("inspect", federation.kits / "state")
    assert nothing.returncode == 0, nothing.stderr
    assert "how precisely" not in nothing.stdout


def test_inspect_two_files(secagg: Secagg, federation: Federation) -> None:
    files = [federation["a"] / name for name in ("project.secagg", "he-client.key")]
    both = secagg("inspect", *files)
    assert both.returncode == 0, both.stderr
    one, other = (secagg("inspect", file).stdout for file in files)
    assert both.stdout == f"{files[0]}:\n{one}\n{files[1]}:\n{other}"


def test_serve_and_site_without_a_usable_kit(secagg: Secagg, federation: Federation) -> None:
    missing = secagg("serve", federation.kits / "nobody")
    assert missing.returncode == 3
    assert "is no kit: it has neither he-client.key nor he-server.key" in missing.stderr
    (federation.kits / "server.kit").touch()
    packed = secagg("serve", federation.kits / "server.kit")
    assert packed.returncode == 3
    assert "server.kit is a file; open it with `secagg unpack " in packed.stderr
    assert "is the kit of a site; give the server's" in secagg("serve", federation["a"]).stderr
    swapped = secagg("site", federation["server"], "--server", "127.0.0.1:1", "--rounds", 1)
    assert swapped.returncode == 3
    assert "is the server's kit; give that of a site" in swapped.stderr
    for command in ("unpack", "doctor"):
        assert "there is no 'nothing.kit'; name the file" in secagg(command, "nothing.kit").stderr
    (federation["server"] / "he-server.key").write_bytes((federation["a"] / "he-client.key").read_bytes())
    wrong = secagg("serve", federation["server"], "--address", "127.0.0.1:0")
    assert wrong.returncode == 3
    assert "a server key (he-server.key) is needed" in wrong.stderr
    nobody = secagg("site", federation["a"], "--server", "nowhere", "--rounds", "0")
    assert nobody.returncode == 2


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("grpc", ("site", "kits/a", "--server", "127.0.0.1:1")),
        ("torch", ("site", "kits/a", "--server", "127.0.0.1:1")),
        ("cryptography", ("provision", "project.yaml", "--out", "new")),
        ("pyrage", ("provision", "project.yaml", "--out", "new")),
        ("grpc", ("doctor", "kits/a")),
    ],
)
def test_a_missing_library_is_named_with_the_extras(
    federation: Federation, tmp_path: Path, module: str, command: tuple[str, ...]
) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from secagg.cli import main; sys.exit(main({command!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path
    )
    assert result.returncode == 4, result.stderr
    assert module in result.stderr
    assert "pip install 'secagg[tenseal,monai,grpc]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority", "kits", "project.yaml"]


def test_inspect_a_manifest(secagg: Secagg, made: Federation, tmp_path: Path) -> None:
    fewer = made.change(tmp_path, lambda provisioner, *folders: provisioner.remove(("b",), *folders))
    project = fewer.provisioner.project
    shown = secagg("inspect", fewer["server"] / "project.secagg")
    assert shown.returncode == 0, shown.stderr
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert {"kind project manifest; its signature fits", "project brain, serial 2", f"key {project.key}"} <= {*lines}
    assert "encrypt all" in lines
    before = made.provisioner.project
    assert f"manifest {project.digest.hex()}" in lines
    assert f"earlier {before.digest.hex()[:16]}… (0 revoked)" in lines
    a, b, _ = project.sites
    assert f"a signs with {a.public.hex()}, certificate {a.certificate}" in lines
    assert f"b REVOKED, certificate {b.certificate}" in lines
