"""Addresses of a server: ``host:port``, and whether they stay on this machine."""

from __future__ import annotations

import ipaddress
import re

from ..errors import ConfigError, show

_MAX_HOST_LENGTH = 253
#: Underscores are of no host, strictly; container networks have them.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII | re.IGNORECASE)
_NUMBERS = re.compile(r"[0-9.]+", re.ASCII)


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


def check_host(host: str) -> str:
    """Return `host` if a certificate can be made out to it, under which a server is reached.

    Raises
    ------
    ConfigError
        If it is neither an IP address nor the name of a host (RFC 1123, section 2.1; ASCII, as IDNA has it).
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if len(host) > _MAX_HOST_LENGTH or not _HOST.fullmatch(host) or _NUMBERS.fullmatch(host):
            raise ConfigError(
                f"host {show(host)}: give the name of a host, in ASCII and without a port, as fl.example.org, or an "
                "IP address"
            ) from None
    return host


def is_loopback(host: str) -> bool:
    """Return whether `host` is ``localhost`` or an address of the loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
