"""Addresses of a server: ``host:port``, and whether they stay on this machine."""

from __future__ import annotations

import ipaddress

from secagg.errors import ConfigError


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[IPv6 address]:port``.

    Raises
    ------
    ConfigError
        If `address` is anything else.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {address!r}: write an IPv6 address in brackets, as [::1]:8443")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"address {address!r}: use host:port, as 127.0.0.1:8443")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Return whether `host` is ``localhost`` or an address of the loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
