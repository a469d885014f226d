"""Hosts of the object stores that sites of a federation may send their updates to: the manifest names them."""

from __future__ import annotations

import ipaddress
import re

from ..errors import ConfigError, FormatError, show

#: A presigned URL has a signature and, with temporary credentials, a token of one or two thousand characters.
MAX_URL_LENGTH = 8192

_MAX_HOSTS = 16
_MAX_HOST_LENGTH = 253
_HTTPS_PORT = 443

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_NUMBERS = re.compile(r"[0-9.]+", re.ASCII)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
#: Behind the host what can be printed, but for # and the backslash.
_URL = re.compile(r"https://([a-z0-9_.:-]+)(/[!\"$-\[\]-~]*)", re.ASCII)


def check_storage(hosts: object) -> tuple[str, ...]:
    """Return the hosts of a manifest.

    Parameters
    ----------
    hosts : list or tuple of str
        Each ``host`` or ``host:port``, in lower case.

    Raises
    ------
    ConfigError
        If one is something else, or stands twice, or there are too many.
    """
    if not isinstance(hosts, (list, tuple)) or len(hosts) > _MAX_HOSTS:
        raise ConfigError(
            f"storage is {show(hosts)}; give a list of at most {_MAX_HOSTS} hosts, such as "
            "[updates.s3.eu-central-1.amazonaws.com]"
        )
    for host in hosts:
        if not isinstance(host, str) or not _is_place(host):
            raise ConfigError(
                f"storage names {show(host)}; write host or host:port in lower case, without a scheme, and without the "
                f"port {_HTTPS_PORT}, as updates.s3.eu-central-1.amazonaws.com"
            )
    if len(set(hosts)) != len(hosts):
        raise ConfigError(f"storage names a host twice: {show(list(hosts))}")
    return tuple(hosts)


def split_url(url: str) -> tuple[str, str]:
    """Return of a URL host and port, as a manifest names them, and what follows them.

    Raises
    ------
    FormatError
        If it is not https, or too long, or has a user's name or a fragment; the URL is not in the message.
    """
    if len(url) > MAX_URL_LENGTH:
        raise FormatError(f"a URL of {len(url)} characters; {MAX_URL_LENGTH} are the most")
    match = _URL.fullmatch(url)
    place = match[1].removesuffix(f":{_HTTPS_PORT}") if match else ""
    if match is None or not _is_place(place):
        raise FormatError(
            "a URL that is no https://host/…, in ASCII and lower case, or has a user's name or a fragment"
        )
    return place, match[2]


def parse_place(place: str) -> tuple[str, int]:
    """Return host and port of one place that a manifest names."""
    host, _, port = place.partition(":")
    return host, int(port or _HTTPS_PORT)


def _is_place(place: str) -> bool:
    host, colon, port = place.partition(":")
    if colon and not (_PORT.fullmatch(port) and int(port) < 1 << 16 and int(port) != _HTTPS_PORT):
        return False
    if _NUMBERS.fullmatch(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
        return True
    return len(host) <= _MAX_HOST_LENGTH and _HOST.fullmatch(host) is not None
