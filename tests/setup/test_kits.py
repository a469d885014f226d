"""Both roles from a kit by one call, and kits of an earlier release, whose HE keys had the names of TLS keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from provisioned import Federation, files_of
from signed import Parts

import secagg as library
from secagg.cli.doctor_kit import check_kit
from secagg.errors import (
    ConfigError,
    DecryptionError,
    EpochError,
    IdentityError,
    KeyFileError,
    KitWarning,
    ManifestMismatchError,
)
from secagg.scheme.codec import codec_for
from secagg.setup.installing import install
from secagg.setup.packing import pack, unpack
from secagg.setup.provisioner import Provisioner
from secagg.trust import Authority, SiteKit, load_kit, load_server_kit, load_site_kit
from secagg.trust.kit_files import FAILURES_FILE, SERVER_FILES, SITE_FILES, find_file, is_secret, older_files

STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}
SITES = ("a", "b", "c")


def make_older(folder: Path) -> None:
    """Give files of a kit, or of the provisioner's folder, the names that they had."""
    for path in folder.rglob("he-*.key"):
        path.rename(path.with_name(path.name.removeprefix("he-")))


@contextmanager
def one_warning(message: str) -> Iterator[None]:
    with pytest.warns(KitWarning, match=message) as caught:
        yield
    assert len(caught) == 1


def test_a_round_by_kits_alone(federation: Federation) -> None:
    aggregator = library.Aggregator.load(federation["server"], round=2)
    sites = [library.Client.load(federation[name]) for name in SITES]
    assert [site.name for site in sites] == list(SITES)
    for site in sites:
        site.restore_carry(b"")  # they begin late
        aggregator.add(site.encrypt(STATE, weight=2, round=2))
    config = sites[0].config
    error = codec_for(config.params, config.aggregation).mean_error(3, 3 * 2 / config.aggregation.max_weight, 1.0)
    mean = sites[0].decrypt(aggregator.finish(), round=2)["w"]
    np.testing.assert_allclose(mean, STATE["w"], rtol=0, atol=error + 2**-24)
    stranger = library.Client(config, load_site_kit(federation["a"]).key, "a")
    stranger.restore_carry(b"")
    with pytest.raises(ManifestMismatchError, match="under no project manifest"):  # the project is the kit's
        library.Aggregator.load(federation["server"], round=2).add(stranger.encrypt(STATE, round=2))


@pytest.mark.parametrize("given", [str, Path, load_site_kit], ids=["text", "path", "kit"])
def test_what_client_load_takes(federation: Federation, given: Callable[[Path], Any]) -> None:
    assert library.Client.load(given(federation["b"])).name == "b"


@pytest.mark.parametrize("given", [str, Path, load_server_kit], ids=["text", "path", "kit"])
def test_what_aggregator_load_takes(federation: Federation, given: Callable[[Path], Any]) -> None:
    site = library.Client.load(federation["a"])
    site.restore_carry(b"")
    layout = site.layout(STATE)
    aggregator = library.Aggregator.load(given(federation["server"]), np.int64(3), layout, base=bytes(32))
    assert aggregator.layout == layout
    with pytest.raises(library.SecAggError, match="for round 2, this is round 3"):
        aggregator.add(site.encrypt(STATE, round=2))


def test_what_is_no_kit_of_that_role(federation: Federation, tmp_path: Path) -> None:
    site, server = load_site_kit(federation["a"]), load_server_kit(federation["server"])
    for kit in (federation["server"], server):
        with pytest.raises(KeyFileError, match="is the server's kit; give that of a site"):
            library.Client.load(kit)
    for kit in (federation["a"], site):
        with pytest.raises(KeyFileError, match="is the kit of a site; give the server's"):
            library.Aggregator.load(kit)
    for load in (library.Client.load, library.Aggregator.load):
        for nothing in (None, 7, b"kit", site.key, site.config):
            with pytest.raises(KeyFileError, match=rf"a kit is given as {type(nothing).__name__}; pass its folder"):
                load(nothing)  # type: ignore[arg-type]
        with pytest.raises(KeyFileError, match="is no kit: it has neither"):
            load(tmp_path)
    with pytest.raises(ConfigError, match="round is -1"):
        library.Aggregator.load(server, -1)


def test_a_revoked_site(made: Federation, tmp_path: Path) -> None:
    fewer = made.change(tmp_path, lambda provisioner, *folders: provisioner.remove(("a",), *folders))
    revoked = replace(load_site_kit(made["a"]), project=fewer.provisioner.project)
    with pytest.raises(IdentityError, match="has been revoked"):
        library.Client.load(revoked)


def test_failures_are_counted_in_the_kit(federation: Federation) -> None:
    updates = [library.Client.load(federation[name]).encrypt(STATE) for name in SITES]
    aggregator = library.Aggregator.load(federation["server"])
    for update in updates:
        aggregator.add(update)
    good = aggregator.finish()
    parts = Parts.of(good)
    parts.payloads[0] = bytes(len(parts.payloads[0]))
    bad = parts.build()
    for _ in range(8):
        with pytest.raises(DecryptionError):
            library.Client.load(federation["a"]).decrypt(bad)
    assert (federation["a"] / FAILURES_FILE).read_text().count("\n") == 8
    with pytest.raises(EpochError):
        library.Client.load(federation["a"]).decrypt(good)


# Kits of an earlier release


def test_an_older_kit_is_read_and_says_so(federation: Federation) -> None:
    for name in ("a", "server"):
        make_older(federation[name])
    advice = r"rename client\.key to he-client\.key"
    with one_warning(advice):
        site = library.Client.load(federation["a"])
    with one_warning(advice):
        assert isinstance(load_kit(federation["a"]), SiteKit)
    with one_warning(r"rename server\.key to he-server\.key"):
        aggregator = library.Aggregator.load(federation["server"])
    aggregator.add(site.encrypt(STATE))
    for folder, older in ((federation["a"], "client.key"), (federation["server"], "server.key")):
        (folder / older).rename(folder / f"he-{older}")  # what the warning says
        load_kit(folder)
    assert is_secret("client.key")
    assert not is_secret("server.key")


def test_a_key_of_somebody_else_is_no_earlier_epoch(federation: Federation) -> None:
    """NVFlare's kits have TLS keys of such names."""
    for name in ("client-3.key", "client.key"):
        (federation["a"] / name).write_text("-----BEGIN PRIVATE KEY-----\n")
    assert load_site_kit(federation["a"]).old_epochs == ()
    shutil.copy(federation["a"] / "he-client.key", federation["a"] / "client-5.key")
    shutil.copy(federation["a"] / "he-client.key", federation["a"] / "he-client-4.key")
    with one_warning(r"rename client-5\.key to he-client-5\.key$"):
        assert load_site_kit(federation["a"]).old_epochs == (4, 5)


def test_doctor_reads_an_older_kit(federation: Federation) -> None:
    for name in ("a", "server"):
        make_older(federation[name])
        findings = {finding.what: (finding.level, finding.text) for finding in check_kit(federation[name])}
        level, text = findings.pop("files")
        assert level == "warning"
        assert "rename" in text
        assert {level for level, _ in findings.values()} <= {"ok", "warning"}
    shutil.copy(federation["a"] / "client.key", federation["server"])
    for older in ("client.key", "client-0.key"):
        (federation["server"] / "client.key").rename(federation["server"] / older)
        (finding, *_) = check_kit(federation["server"])
        assert "the server must never hold the HE key" in finding.text
        (federation["server"] / older).rename(federation["server"] / "client.key")


@pytest.mark.parametrize("rotations", [0, 1, 2])
def test_a_newer_kit_over_an_older_one(made: Federation, tmp_path: Path, rotations: int) -> None:
    """Whatever there was has its new name then, and all epochs stay readable."""
    kits = [made]
    for number in range(rotations):
        kits.append(kits[-1].change(tmp_path / f"{number}", lambda provisioner, *rest: provisioner.rotate(None, *rest)))
    out, models = tmp_path / "out", []
    for epoch, federation in enumerate(kits):
        install(files_of(federation["a"]), out)
        models.append(tmp_path / f"model-{epoch}")
        library.Client.load(out).encrypt_model(models[-1], STATE, round=1)
        make_older(out)
    if rotations:
        with one_warning(r"rename client-0\.key to he-client-0\.key"):
            kit = load_site_kit(out)
        assert kit.old_epochs == tuple(range(rotations))
        with library.Update.open(models[0]) as model:
            reader = library.Client.load(kit.old_epoch(0))
            np.testing.assert_array_equal(reader.decrypt_model(model)["w"], STATE["w"])
    install(files_of(kits[-1]["a"]), out)
    assert not older_files(out, "he-client.key")
    kit = load_site_kit(out)
    names = {path.name for path in out.iterdir()}
    assert names == SITE_FILES | {FAILURES_FILE} | {
        f"{stem}-{epoch}.{end}"
        for epoch in range(rotations)
        for stem, end in (("he-client", "key"), ("signing", "key"), ("project", "secagg"))
    }
    for epoch in range(rotations):
        with library.Update.open(models[epoch]) as model:
            reader = library.Client.load(kit.old_epoch(epoch))
            np.testing.assert_array_equal(reader.decrypt_model(model)["w"], STATE["w"])
    install(files_of(made["server"]), tmp_path / "server")
    make_older(tmp_path / "server")
    install(files_of(kits[-1]["server"]), tmp_path / "server")
    assert {path.name for path in (tmp_path / "server").iterdir()} == SERVER_FILES


def test_an_older_packed_kit(federation: Federation, tmp_path: Path) -> None:
    expected = files_of(federation["a"])
    make_older(federation["a"])
    pack(federation["a"], tmp_path / "a.kit", "a long passphrase")
    assert unpack(tmp_path / "a.kit", "a long passphrase") == expected


def test_an_older_provisioner(federation: Federation, tmp_path: Path) -> None:
    folder = federation.provisioner.folder
    make_older(folder)
    with one_warning(r"rename client-0\.key to he-client-0\.key"):
        provisioner = Provisioner.load(folder)
    (tmp_path / "changed").mkdir()
    (tmp_path / "new").mkdir()
    provisioner.rotate(None, tmp_path / "changed", tmp_path / "new")
    assert (tmp_path / "changed" / "he-client-1.key").exists()
    assert library.Client.load(tmp_path / "new" / "a").name == "a"


def test_tls_keys_are_no_he_keys(federation: Federation, tmp_path: Path) -> None:
    """A kit of NVFlare has `client.key` or `server.key`, in PEM."""
    flare = tmp_path / "flare"
    tls = Authority.create(flare / "authority").issue_site("site-1", folder=flare / "startup")
    for name in ("client.key", "server.key"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(tls.key, folder / name)
        message = rf"is no kit: .*its {name} is no key of secagg: a TLS key, as NVFlare's kits have\?.*secagg unpack"
        for load in (library.Client.load, library.Aggregator.load, load_kit):
            with pytest.raises(KeyFileError, match=message):
                load(folder)
        with pytest.raises(KeyFileError, match="exists, and is not a kit's folder"):
            install(files_of(federation["a"]), folder)
        # And beside them lies a kit of ours undisturbed.
        for kit in (federation["a"], federation["server"]):
            shutil.copy(tls.key, kit / name)
            load_kit(kit)
            before = (kit / name).read_bytes()
            install({file: data for file, data in files_of(kit).items() if file != name}, kit)
            assert (kit / name).read_bytes() == before
            assert {finding.level for finding in check_kit(kit)} <= {"ok", "warning"}
    (tmp_path / "folder" / "client.key").mkdir(parents=True)
    with pytest.raises(KeyFileError, match="cannot read the kit"):
        library.Client.load(tmp_path / "folder")


def test_a_new_name_goes_before_an_older_one(federation: Federation) -> None:
    shutil.copy(federation["b"] / "he-client.key", federation["a"] / "client.key")
    assert find_file(federation["a"], "he-client.key").name == "he-client.key"
    (federation["a"] / "client.key").unlink()
    shutil.copy(federation["server"] / "he-server.key", federation["a"] / "server.key")
    assert library.Client.load(federation["a"]).name == "a"  # of another role, which is nobody's affair


@pytest.mark.parametrize("party", ["a", "server"])
def test_a_file_of_a_kit_is_no_kit(federation: Federation, party: str) -> None:
    folder = federation[party]
    load = library.Client.load if party == "a" else lambda path: library.Aggregator.load(path, round=0)
    for path in folder.glob("*.key"):
        with pytest.raises(KeyFileError) as caught:
            load(path)
        assert str(caught.value) == f"{path} is a file of a kit; give the kit's folder, {folder}"
