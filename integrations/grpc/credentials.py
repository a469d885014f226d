"""A party's certificate as gRPC wants it."""

from __future__ import annotations

import ssl

import grpc

from secagg.trust import Project, Tls


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return credentials of a server that admits only clients with a certificate of the authority."""
    ca, cert, key = tls.read()
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)


def channel_credentials(tls: Tls, project: Project | None = None) -> grpc.ChannelCredentials:
    """Return credentials of a site.

    With a project, a handshake takes no other certificate than that which its manifest gives the server: the only root
    is that certificate itself (gRPC sets X509_V_FLAG_PARTIAL_CHAIN), also when the channel connects again. Host and
    dates are checked as ever. Without one, any that the authority has issued for the host.

    Raises
    ------
    IdentityError
        If the manifest has no certificate of the server.
    KeyFileError
        If a file of `tls` cannot be read.
    """
    ca, cert, key = tls.read()
    roots = ca if project is None else ssl.DER_cert_to_PEM_cert(project.pinned()).encode()
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=cert)
