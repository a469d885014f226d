"""What ``secagg doctor`` looks at in the network: the server's port, and a site's way to the server."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from ..errors import IdentityError, KeyMismatchError, SecAggError, TransportError
from ..integrations.grpc import SiteSession
from ..integrations.grpc.proxies import Proxy, proxy_of
from ..protocol import ServerStatus
from ..protocol.address import parse_address
from ..protocol.handshake import check_handshake
from ..trust import Tls
from ..trust.kit import ServerKit, SiteKit
from ..trust.project import CLOCK_SKEW_SECONDS
from ..ui.findings import Doubt, Finding, examine
from ..ui.status import ask
from ..ui.units import show_seconds

_TIMEOUT_SECONDS = 10.0
_CLOCK_DOUBT_SECONDS = 10.0
#: What gRPC takes if a proxy is named without one.
_PROXY_PORT = 443


def check_port(kit: ServerKit, address: str) -> str:
    """Say whether the server can listen, or this very one does already."""
    host, port = parse_address(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
        return f"{address} is free"
    except socket.gaierror as error:
        raise TransportError(f"{address}: {error.strerror}; name an address of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_own_server(kit, host, port):
            return f"this federation's server listens on {address}"
        remedy = {
            errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
            errno.EACCES: "ports below 1024 take the capability CAP_NET_BIND_SERVICE: choose another port",
            errno.EADDRNOTAVAIL: "this machine has no such address: use one of its own, or 0.0.0.0",
        }
        raise TransportError(f"{address}: {remedy.get(error.errno or 0, error.strerror)}") from error


def _is_own_server(kit: ServerKit, host: str, port: int) -> bool:
    here = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host  # noqa: S104
    try:
        tls, own = Tls.load(kit.folder), kit.project
        with SiteSession(f"{here}:{port}", kit.name, tls=tls, timeout=_TIMEOUT_SECONDS, project=own) as session:
            session.status()
    except SecAggError:
        return False
    return True


def check_server(kit: SiteKit, address: str) -> Iterator[Finding]:
    """Yield what is found on the way to the server: connection, certificates, clock, key."""
    tls, proxy = Tls.load(kit.folder), proxy_of(address)

    def shake_hands() -> str:
        check_handshake(address, tls, kit.project)
        return f"{kit.name} and the server accept each other's certificates"

    # Through a proxy, what is found on the straight way says nothing.
    steps = [("server", lambda: _connect(address)), ("TLS", shake_hands)]
    if proxy is not None:
        steps = [("proxy", lambda: _connect_to_proxy(proxy))]
    for what, step in steps:
        yield (finding := examine(what, step))
        if finding.level == "FAIL":
            return
    answers: list[tuple[ServerStatus, float]] = []

    def answer() -> str:
        with SiteSession(address, kit.name, tls=tls, timeout=_TIMEOUT_SECONDS, project=kit.project) as session:
            try:
                status, ahead = ask(session)
            except IdentityError as error:
                raise _which_is_old(kit, error) from error
        answers.append((status, ahead))
        return f"answers: round {status.round}, {status.state}"

    yield (finding := examine("service", answer))
    for status, ahead in answers:
        yield examine("clock", lambda ahead=ahead: _clock(ahead))  # type: ignore[misc]
        yield examine("epoch", lambda status=status: _epoch(kit, status))  # type: ignore[misc]


def _connect(address: str) -> str:
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS):
            return f"{address} can be reached"
    except socket.gaierror as error:
        raise TransportError(f"the name {host} cannot be resolved ({error.strerror}): is it spelled right?") from error
    except TimeoutError as error:
        raise TransportError(f"{address} does not answer: do firewalls on the way let port {port} through?") from error
    except ConnectionRefusedError as error:
        raise TransportError(f"nothing listens on {address}: is `secagg serve` running, on that port?") from error
    except OSError as error:
        raise TransportError(f"{address} cannot be reached: {error.strerror or error}") from error


def _connect_to_proxy(proxy: Proxy) -> str:
    parts = urlsplit(f"//{proxy.address}")
    try:
        port = parts.port or _PROXY_PORT
        with socket.create_connection((parts.hostname or "", port), timeout=_TIMEOUT_SECONDS):
            return f"{proxy} can be reached, through which the way goes; it must pass TLS through"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TransportError(f"{proxy} cannot be reached: {reason}; {proxy.remedy}") from error


def _clock(ahead: float) -> str:
    apart = f"the server's clock is {show_seconds(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this one"
    if abs(ahead) > CLOCK_SKEW_SECONDS:
        raise TransportError(
            f"{apart}: set both by NTP; from {show_seconds(CLOCK_SKEW_SECONDS)} on kits may be refused"
        )
    if abs(ahead) > _CLOCK_DOUBT_SECONDS:
        raise Doubt(f"{apart}: set both by NTP")
    return "agrees with the server's"


def _which_is_old(kit: SiteKit, error: IdentityError) -> IdentityError:
    """Return a refusal of a server with another manifest with the remedy: the server does not know the kit's."""
    theirs, own = error.manifest, kit.project.serial
    if theirs is None or theirs == own:
        return error
    remedy = (
        "unpack the newest kit of the server, and start it again"
        if theirs < own
        else f"unpack the newest kit of {kit.name}"
    )
    return IdentityError(
        f"the server does not know {kit.name} by this kit: the server has manifest {theirs}, this kit {own}: {remedy}"
    )


def _epoch(kit: SiteKit, status: ServerStatus) -> str:
    own, theirs = kit.project, status.project_serial
    if status.epoch != own.epoch:
        who = f"of {kit.name}" if status.epoch > own.epoch else "of the server"
        raise KeyMismatchError(
            f"the server has epoch {status.epoch} of the HE key, this kit {own.epoch}: unpack the newest kit {who}"
        )
    if theirs < own.serial:
        raise Doubt(
            f"the server is under manifest {theirs}, this kit has {own.serial}: unpack the newest kit of the server, "
            "unless its log says that it serves from the next round on"
        )
    return f"{own.epoch}, as the server's; manifest {theirs}, this kit's is {own.serial}"
