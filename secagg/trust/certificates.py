"""What a certificate says, and whether it belongs to the files beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import KeyFileError
from .tls import Tls


@dataclass(frozen=True)
class Certificate:
    """One party's certificate, in short.

    Parameters
    ----------
    name : str
        Common name: the party's name.
    fingerprint : str
        SHA-256 of the certificate in DER, 64 hexadecimal digits, as in the project manifest.
    begins, expires : float
        From when to when it is valid, in seconds since 1970, UTC.
    hosts : tuple of str
        Host names and IP addresses that it vouches for.
    for_server, for_client : bool
        Whether it is good for the server's end of a connection, and for the other.
    der : bytes
        The certificate itself, in DER.
    """

    name: str
    fingerprint: str
    begins: float
    expires: float
    hosts: tuple[str, ...]
    for_server: bool
    for_client: bool
    der: bytes = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes, where: str = "the certificate") -> Certificate:
        """Read a certificate; `where` names it in the error.

        Raises
        ------
        KeyFileError
            If it is no certificate in PEM that `Authority` could have issued.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            extensions = certificate.extensions
            purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise KeyFileError(f"{where} is not a certificate that `secagg provision` made; unpack the kit") from error
        hosts = alternatives.get_values_for_type(x509.DNSName)
        addresses = alternatives.get_values_for_type(x509.IPAddress)
        return cls(
            name=str(name.value),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            begins=certificate.not_valid_before_utc.timestamp(),
            expires=certificate.not_valid_after_utc.timestamp(),
            hosts=(*hosts, *map(str, addresses)),
            for_server=ExtendedKeyUsageOID.SERVER_AUTH in purposes,
            for_client=ExtendedKeyUsageOID.CLIENT_AUTH in purposes,
            der=certificate.public_bytes(serialization.Encoding.DER),
        )

    @classmethod
    def load(cls, tls: Tls) -> Certificate:
        """Read a party's certificate and hold it against the authority's and the private key beside it.

        Raises
        ------
        KeyFileError
            If a file is missing or damaged, the authority did not issue the certificate, or the key is another's.
        """
        ca, cert, key = tls.read()
        certificate = cls.from_pem(cert, str(tls.cert))
        try:
            issued = x509.load_pem_x509_certificate(cert)
            issued.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise KeyFileError(f"{tls.cert} was not issued by the authority {tls.ca}; unpack the kit again") from error
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise KeyFileError(f"{tls.key} is not a private key in PEM; unpack the kit again") from None
        if private.public_key() != issued.public_key():
            raise KeyFileError(f"{tls.key} is not the key of {tls.cert}; unpack the kit again")
        return certificate
