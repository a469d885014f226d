"""A party's certificate as gRPC wants it."""

from __future__ import annotations

import grpc

from secagg.trust import Tls


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return credentials of a server that admits only clients with a certificate of the authority."""
    ca, cert, key = tls.read()
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Return credentials of a site."""
    ca, cert, key = tls.read()
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
