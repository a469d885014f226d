"""Why a TLS connection fails.

gRPC reports a refused certificate as it reports a server that is not up yet: unavailable. One must be told at once,
the other is worth waiting for.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time

from ..errors import IdentityError, KeyFileError, one_line
from ..trust import Project, Tls
from .address import parse_address

_TIMEOUT_SECONDS = 5.0
_PAUSES_SECONDS = (0.0, 0.5, 1.0)

_FOREIGN = "it is of another project, or a proxy ends TLS: use the kit of this federation"

#: By OpenSSL's codes (X509_V_ERR_…): what to do about a certificate that was refused.
_REMEDIES = {
    2: _FOREIGN,
    9: "set the clock of this machine, or of the provisioner's, by NTP",
    10: "`secagg rotate` at the provisioner renews it",
    18: _FOREIGN,
    19: _FOREIGN,
    20: _FOREIGN,
    21: _FOREIGN,
    26: "a site's certificate is no server's: does `secagg serve` have the server's kit?",
}
_OTHER_NAME = (62, 64)


def check_handshake(address: str, tls: Tls, project: Project | None = None) -> None:
    """Shake hands with the server at `address`, and say so if a certificate is refused.

    Returns also when the server cannot be reached: only the certificates are in question here.

    Parameters
    ----------
    address : str
        The server's ``host:port``.
    tls : Tls
        Certificate and authority of the site.
    project : Project, optional
        The manifest, whose certificate of the server must be the one that is shown.

    Raises
    ------
    IdentityError
        If the server's certificate does not fit the authority or the host, or is not the one in the manifest; if that
        has none; or the server refuses the site's.
    KeyFileError
        If the files of `tls` do not make a certificate and its key.
    """
    # A server that goes down in this moment hangs up too, and so does a bad connection; one that refuses does it again.
    for seconds in _PAUSES_SECONDS:
        time.sleep(seconds)
        if not _hangs_up(address, tls, project):
            return
    raise IdentityError(
        f"the server at {address} refuses the certificate {tls.cert}: it has expired, or the server is of another "
        "project; unpack the newest kit, at the site or at the server"
    )


def _hangs_up(address: str, tls: Tls, project: Project | None) -> bool:
    """Return whether the server closes the connection right after the handshake.

    In TLS 1.3 a server judges the client's certificate when the client has finished; gRPC's closes without an alert.
    One that accepts it speaks first: HTTP/2 begins with the server's settings. What ends before the handshake does is
    no server: a proxy with none behind it, say.
    """
    try:
        context = authority = ssl.create_default_context(cafile=tls.ca)
        if project is not None:
            context = ssl.create_default_context(cadata=project.pinned())
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the root is the server's certificate itself
        context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:  # ssl.SSLError is one
        raise KeyFileError(
            f"{tls.ca}, {tls.cert} and {tls.key} are not an authority, a certificate and its key"
        ) from error
    context.set_alpn_protocols(["h2"])
    host, port = parse_address(address)
    try:
        connection = socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS)
    except OSError:
        return False
    with connection:
        try:
            secure = context.wrap_socket(connection, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise _refusal(address, authority, project, error) from error
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")
        except OSError:
            return False
        with secure:
            try:
                return not secure.recv(1)
            except TimeoutError:
                return False
            except OSError:
                return True


def _refusal(
    address: str, authority: ssl.SSLContext, project: Project | None, error: ssl.SSLCertVerificationError
) -> IdentityError:
    """Return what to say of a server's certificate that was refused.

    With a manifest all but one are refused alike: the authority's word, which takes a handshake without the site's own
    certificate, tells another one of this project from that of a stranger.
    """
    try:
        names, certificate = _look_at(address, authority)
    except ssl.SSLCertVerificationError as other:
        names, certificate, error = "", None, other
    if project is not None and certificate not in (None, project.server_certificate):
        shown, own = hashlib.sha256(certificate).hexdigest(), project.server.certificate
        return IdentityError(
            f"the server at {address} shows the certificate {shown[:16]}…, project {project.name} names {own[:16]}… "
            f"(serial {project.serial}): one of the two kits is from before a rotation, or it is not this federation's "
            "server; unpack the newest kit at the server, or here"
        )
    remedy = _REMEDIES.get(error.verify_code, "unpack the newest kit, at the site or at the server")
    if error.verify_code in _OTHER_NAME:
        known = f" ({one_line(names):.500})" if names else ""
        remedy = f"use one of the names that the certificate has{known}, or have `hosts` of project.yaml name this one"
    reason = error.verify_message.rstrip(".")
    return IdentityError(f"the certificate of the server at {address} is refused: {reason}; {remedy}")


def _look_at(address: str, authority: ssl.SSLContext) -> tuple[str, bytes | None]:
    """Return names and DER of a server's certificate that the authority has issued, for any host.

    Nothing, and None, if the server cannot be reached; `ssl.SSLCertVerificationError` if the authority has not issued
    it, or its time is over.
    """
    authority.check_hostname = False
    try:
        with (
            socket.create_connection(parse_address(address), timeout=_TIMEOUT_SECONDS) as connection,
            authority.wrap_socket(connection) as secure,
        ):
            certificate = secure.getpeercert() or {}
            names = ", ".join(str(name[1]) for name in certificate.get("subjectAltName", ()))
            return names, secure.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError:
        raise
    except OSError:
        return "", None
