"""A site's session with a server over gRPC."""

from __future__ import annotations

import secagg
from secagg.site import Session
from secagg.trust import Tls

from .link import GrpcLink


class SiteSession(Session):
    """A site's connection to the server. Use it from one thread, as a context manager or with `close`.

    Parameters
    ----------
    address : str
        The server's ``host:port``.
    site_name : str
        Common name of the site's certificate, and the site's name in its updates.
    tls : Tls or None
        The site's certificate; None only towards a loopback address.
    project : secagg.Project, optional
        As of `secagg.site.Session`. With `tls`, no server but the one whose certificate is in it is sent anything.
    timeout, layout
        As of `secagg.site.Session`, which has all calls.

    Raises
    ------
    ConfigError
        For an address that is none, no certificate towards another machine, or an unusable name or timeout.
    IdentityError
        If the manifest has no certificate of the server.
    KeyFileError
        If a file of `tls` cannot be read.
    """

    def __init__(
        self,
        address: str,
        site_name: str,
        *,
        tls: Tls | None,
        timeout: float = 600.0,
        project: secagg.Project | None = None,
        layout: secagg.Layout | None = None,
    ) -> None:
        link = GrpcLink(address, tls, project)
        super().__init__(link, site_name, timeout=timeout, project=project, layout=layout)
