"""Certificates for mutual TLS: one authority, one certificate for the server, one a site.

A site's name is the common name of its certificate; the server takes an update only over a connection whose
certificate bears the name in the update's header. Keys are ECDSA on P-256.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import ConfigError, KeyFileError
from ..storage.files import absolute, os_errors
from ..wire.header import check_site

#: The server's certificate always names these, beside the hosts that are asked for.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

_CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Tls:
    """Where one party's certificate, its private key and the authority's certificate lie, all in PEM.

    Parameters
    ----------
    ca, cert, key : Path
        Certificate of the authority; own certificate; own private key.
    """

    ca: Path
    cert: Path
    key: Path

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, absolute(getattr(self, field.name)))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tls:
        """Return the files ``ca.crt``, ``tls.crt`` and ``tls.key`` of a party's folder.

        Raises
        ------
        KeyFileError
            If one of them cannot be read.
        """
        tls = cls(Path(folder, "ca.crt"), Path(folder, "tls.crt"), Path(folder, "tls.key"))
        tls.read()
        return tls

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return the contents of the three files.

        Raises
        ------
        KeyFileError
            If one of them cannot be read.
        """
        return _read(self.ca), _read(self.cert), _read(self.key)


class Authority:
    """The certificate authority of a federation, kept off the server and the sites.

    It writes a folder a party, with ``ca.crt``, ``tls.crt`` and ``tls.key``, to be handed to that party.
    `create` makes a new one, `load` reads one to add sites later.
    """

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._folder = absolute(folder)
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, folder: str | os.PathLike[str], *, days: int = 365) -> Authority:
        """Make an authority; its ``ca.crt`` and ``ca.key`` are written to `folder`.

        Parameters
        ----------
        folder : path
            Made if it does not exist.
        days : int
            How long its certificate is valid; no certificate that it issues is valid for longer.

        Raises
        ------
        KeyFileError
            If the folder already holds an authority, or cannot be written.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secagg authority")])
        builder = (
            _builder(name, key.public_key(), days)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
        )
        certificate = builder.sign(key, hashes.SHA256())
        path = Path(folder)
        _write(path / "ca.key", _private_pem(key), secret=True)
        _write(path / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(path, certificate, key)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Authority:
        """Read the authority that `create` wrote to `folder`.

        Raises
        ------
        KeyFileError
            If its files are missing or damaged.
        """
        path = Path(folder)
        try:
            certificate = x509.load_pem_x509_certificate(_read(path / "ca.crt"))
            key = serialization.load_pem_private_key(_read(path / "ca.key"), password=None)
        except ValueError as error:
            raise KeyFileError(
                f"the authority in {path} is damaged; restore ca.crt and ca.key, or make a new one"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise KeyFileError(f"ca.key and ca.crt in {path} do not belong together")
        return cls(path, certificate, key)

    @property
    def expires(self) -> float:
        """Until when its own certificate is valid, in seconds since 1970, UTC."""
        return self._certificate.not_valid_after_utc.timestamp()

    def issue_server(
        self, hosts: Iterable[str] = (), *, name: str = "server", days: int = 365, folder: Path | None = None
    ) -> Tls:
        """Make the server's certificate, which is good for a client too: with it one asks the server for its status.

        Parameters
        ----------
        hosts : iterable of str
            Host names and IP addresses under which sites reach the server, beside those of the loopback.
        name : str
            Common name.
        days : int
            How long it is valid.
        folder : Path, optional
            Where to write it; by default the folder `name` beside the authority's files.
        """
        alternatives = [_alternative(host) for host in dict.fromkeys((*LOOPBACK_HOSTS, *hosts))]
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(name, alternatives, purposes, days, folder)

    def issue_site(self, name: str, *, days: int = 365, folder: Path | None = None) -> Tls:
        """Make the certificate of the site `name`, in `folder` or the folder of that name beside the authority's files.

        Raises
        ------
        ConfigError
            If the name is not 1 to 64 letters, digits, dots, hyphens or underscores.
        KeyFileError
            If the folder already has one, or cannot be written.
        """
        alternatives: list[x509.GeneralName] = [x509.DNSName(check_site(name))]
        return self._issue(name, alternatives, [ExtendedKeyUsageOID.CLIENT_AUTH], days, folder)

    def _issue(
        self,
        name: str,
        alternatives: list[x509.GeneralName],
        purposes: list[x509.ObjectIdentifier],
        days: int,
        folder: Path | None,
    ) -> Tls:
        check_site(name)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority_key = self._key.public_key()
        builder = (
            _builder(subject, key.public_key(), days, self._certificate.not_valid_after_utc)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        target = self._folder / name if folder is None else folder
        tls = Tls(*(target / file for file in ("ca.crt", "tls.crt", "tls.key")))
        _write(tls.key, _private_pem(key), secret=True)
        _write(tls.cert, certificate.public_bytes(serialization.Encoding.PEM))
        _write(tls.ca, self._certificate.public_bytes(serialization.Encoding.PEM))
        return tls


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int, latest: datetime.datetime | None = None
) -> x509.CertificateBuilder:
    if days < 1:
        raise ConfigError(f"a certificate valid for {days} days is of no use; use 1 or more")
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(end, latest) if latest else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"host {host!r}: write it in ASCII (IDNA), or use its IP address") from error


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    with os_errors(KeyFileError, f"cannot read {path}", "it is part of a kit, which `secagg unpack` opens"):
        return path.read_bytes()


def _write(path: Path, data: bytes, *, secret: bool = False) -> None:
    # O_EXCL: the mode holds from the first byte on, and nothing that exists is overwritten or followed.
    with os_errors(KeyFileError, f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
        except FileExistsError as error:
            raise KeyFileError(
                f"{path} exists already; choose another folder, or remove it if nobody uses it"
            ) from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
