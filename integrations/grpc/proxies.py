"""Which proxy gRPC goes through to a server: variables of the environment decide, as of its ``http_proxy_mapper.cc``.

A connection that fails on the way says nothing of it, so that one looks for the fault at the server.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from secagg.errors import one_line
from secagg.protocol import is_loopback, parse_address

#: In the order in which gRPC asks for them; the first that is set counts, empty: no proxy. Upper case it does not read.
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """A proxy between this machine and a server.

    Parameters
    ----------
    variable : str
        What names it.
    address : str
        Its host and port, without the user and password that may stand there.
    remedy : str
        How to do without it.
    """

    variable: str
    address: str
    remedy: str

    def __str__(self) -> str:
        return f"the proxy of {self.variable}=http://{self.address}"


def proxy_of(address: str) -> Proxy | None:
    """Return the proxy through which gRPC goes to a server at ``host:port``; None if there is none.

    To a loopback address it goes by itself: `GrpcLink` says so.
    """
    host, _ = parse_address(address)
    variable = _first(_VARIABLES)
    exception = _first(_EXCEPTIONS)
    if variable is None or is_loopback(host) or (exception and _is_among(os.environ[exception], host)):
        return None
    try:
        parts = urlsplit(os.environ[variable])
        named = parts.netloc.rpartition("@")[2]
    except ValueError:  # gRPC takes no notice of it either
        return None
    if parts.scheme != "http" or not named:
        return None
    known = exception and os.environ[exception]
    remedy = f"add {host} to {exception}={one_line(known)[:200]}" if known else f"set {exception or 'no_proxy'}={host}"
    return Proxy(variable, one_line(named), f"{remedy} to connect without it")


def _first(variables: tuple[str, ...]) -> str | None:
    return next((name for name in variables if name in os.environ), None)


def _is_among(entries: str, host: str) -> bool:
    """Return whether `host` is in a list of names, ends of names, and networks in CIDR."""
    for entry in (entry.strip().lower() for entry in entries.split(",") if entry):
        if host.lower().endswith(entry):
            return True
        with suppress(ValueError):
            if "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
    return False
