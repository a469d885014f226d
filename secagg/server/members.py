"""Who may call: what a connection's certificate says, held against the project and the clock at each call."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import secagg

from ..errors import IdentityError, KeyFileError, show_time
from ..protocol.messages import BusyError
from .manifests import Manifests

if TYPE_CHECKING:
    from ..trust import Certificate

#: Calls of one party at a time. A site needs two: one uploads or waits, another asks for the status; and as many again,
#: while what was broken off has not ended yet.
MAX_CALLS = 4

_KNOWN_CERTIFICATES = 4096


@dataclass(frozen=True)
class Caller:
    """A party that was let in. `name` is None if there are no certificates: then it is whoever it says it is."""

    name: str | None
    is_server: bool = False


class Members:
    """Lets parties in.

    Parameters
    ----------
    manifests : callable
        Returns who takes part, now and from the next round on. Without a manifest, every certificate of the authority
        that is not a server's is a site's.
    certified : bool
        Whether connections have certificates.
    clock : callable
        Returns seconds since 1970, UTC.
    """

    def __init__(
        self, manifests: Callable[[], Manifests], *, certified: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self._manifests = manifests
        self._certified = certified
        self._clock = clock
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def caller(self, certificates: Sequence[bytes]) -> Caller:
        """Return who calls.

        A connection may outlive its certificate, and its site's membership: both are checked at each call.

        Parameters
        ----------
        certificates : sequence of bytes
            Of the connection, in PEM, as the transport tells it.

        Raises
        ------
        IdentityError
            If the certificate is not valid now, or not that of a party of the project; if the project has expired.
        BusyError
            If it is that of a site that takes part from the next round on.
        """
        now, manifests = self._clock(), self._manifests()
        if manifests.project is not None:
            manifests.project.check_time(now)
        if not self._certified:
            return Caller(None)
        if len(certificates) != 1:
            raise IdentityError(f"the connection has {len(certificates)} certificates; a party has one")
        certificate = _read(certificates[0])
        if not certificate.begins <= now < certificate.expires:
            raise IdentityError(
                f"the certificate of {certificate.name!r} is valid from {show_time(certificate.begins)} to "
                f"{show_time(certificate.expires)}, and now it is {show_time(now)}: get a new kit, or set the clock"
            )
        return _party(certificate, manifests)

    def check_site(self, caller: Caller, site: str, what: str) -> None:
        """Refuse what bears another name than the caller's, and sites that do not take part.

        Parameters
        ----------
        caller : Caller
            Who calls.
        site : str
            The name under which it speaks.
        what : str
            What it does, for the message: ``"an update of site 'site-1' came"``.

        Raises
        ------
        IdentityError
            As said.
        """
        if caller.is_server or (caller.name is not None and caller.name != site):
            raise IdentityError(f"{what} under the certificate of {caller.name!r}")
        project = self._manifests().project
        if project is not None:
            project.site(site)

    @contextmanager
    def counted(self, caller: Caller) -> Iterator[bool]:
        """Count a call while it lasts; the block gets whether the caller may have one more."""
        if caller.name is None:  # on the loopback, without certificates: nobody to tell from others
            yield True
            return
        with self._lock:
            self._calls[caller.name] += 1
            allowed = self._calls[caller.name] <= MAX_CALLS
        try:
            yield allowed
        finally:
            with self._lock:
                self._calls[caller.name] -= 1
                self._calls += Counter()  # forgets those at zero


def _party(certificate: Certificate, manifests: Manifests) -> Caller:
    project = manifests.project
    if project is None:
        return Caller(certificate.name, is_server=certificate.for_server)
    name, is_server = certificate.name, certificate.name == project.server.name
    if not is_server and all(site.name != name for site in project.sites):
        if _takes_part(certificate, manifests.later):
            raise BusyError(
                f"site {name!r} takes part from round {manifests.since} on, and round {manifests.since - 1} goes on "
                f"under manifest {project.serial}: start again when it has ended"
            )
        raise _unknown(project, f"site {name!r} is not in project {project.name}")
    member = project.server if is_server else project.site(name)
    if certificate.fingerprint != member.certificate:
        who = "the server" if is_server else repr(name)
        raise _unknown(project, f"the certificate of {who} is not the one in project {project.name}")
    return Caller(name, is_server)


def _takes_part(certificate: Certificate, project: secagg.Project | None) -> bool:
    sites = () if project is None else project.sites
    return any((site.name, site.certificate) == (certificate.name, certificate.fingerprint) for site in sites)


def _unknown(project: secagg.Project, what: str) -> IdentityError:
    """Return the error of who is not in the manifest: which of two kits is old, only the other side can tell."""
    error = IdentityError(
        f"{what} (the server has manifest {project.serial}): if this kit has a later one, the server needs its newest "
        "kit, else the newest is needed here"
    )
    error.manifest = project.serial
    return error


@lru_cache(maxsize=_KNOWN_CERTIFICATES)
def _read(pem: bytes) -> Certificate:
    from ..trust import Certificate  # what reads certificates loads with the first of them

    try:
        return Certificate.from_pem(pem)
    except KeyFileError as error:
        raise IdentityError(str(error)) from None
