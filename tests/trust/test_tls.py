"""Certificates of a project: what is written, what is read, and what is refused."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secagg.errors import ConfigError, KeyFileError
from secagg.trust import Authority, Tls


def certificate(tls: Tls) -> x509.Certificate:
    return x509.load_pem_x509_certificate(tls.cert.read_bytes())


def purposes(tls: Tls) -> list[x509.ObjectIdentifier]:
    return list(certificate(tls).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_party_gets_a_folder(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    server, site = authority.issue_server(["fl.example.org", "10.0.0.7"]), authority.issue_site("site-1", days=30)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "ca.crt",
        "ca.key",
        *(f"{party}/{file}" for party in ("server", "site-1") for file in ("ca.crt", "tls.crt", "tls.key")),
    ]
    for path in tmp_path.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Tls.load(tmp_path / "server") == server
    assert Tls.load(tmp_path / "site-1") == site

    authority_certificate = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    for tls in (server, site):
        certificate(tls).verify_directly_issued_by(authority_certificate)
        assert not certificate(tls).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    # The server is a client, too, when its operator asks it for its status.
    assert purposes(server) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert purposes(site) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = certificate(server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.0.0.7"]
    [name] = certificate(site).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "site-1"
    names = certificate(site).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["site-1"]
    lifetime = certificate(site).not_valid_after_utc - certificate(site).not_valid_before_utc
    assert timedelta(days=30) <= lifetime < timedelta(days=31)


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, days=10)
    end = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes()).not_valid_after_utc
    assert certificate(authority.issue_site("site-1", days=1000)).not_valid_after_utc == end


def test_an_authority_adds_sites_later(tmp_path: Path) -> None:
    Authority.create(tmp_path).issue_site("site-1")
    late = Authority.load(tmp_path).issue_site("site-2")
    certificate(late).verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes()))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    key = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        Authority.create(tmp_path)
    assert (tmp_path / "ca.key").read_bytes() == key
    tls = authority.issue_site("site-1")
    key = tls.key.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        authority.issue_site("site-1")
    assert tls.key.read_bytes() == key


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 65, "sité", "site\n", "*"])
def test_names_of_sites(tmp_path: Path, name: str) -> None:
    authority = Authority.create(tmp_path)
    with pytest.raises(ConfigError, match="letters"):
        authority.issue_site(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "ca.key"]


def test_a_host_must_be_ascii(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="IDNA"):
        Authority.create(tmp_path).issue_server(["bücher.example"])


def test_days_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 days"):
        Authority.create(tmp_path, days=0)


@pytest.mark.parametrize("file", ["ca.crt", "ca.key"])
def test_a_damaged_authority(tmp_path: Path, file: str) -> None:
    Authority.create(tmp_path)
    (tmp_path / file).write_bytes(b"-----BEGIN NOTHING-----\n")
    with pytest.raises(KeyFileError, match="damaged"):
        Authority.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(KeyFileError, match="cannot read"):
        Authority.load(tmp_path)


def test_an_authority_with_the_key_of_another(tmp_path: Path) -> None:
    Authority.create(tmp_path / "one")
    Authority.create(tmp_path / "two")
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(KeyFileError, match="do not belong together"):
        Authority.load(tmp_path / "one")
