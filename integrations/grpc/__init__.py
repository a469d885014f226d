"""secagg over gRPC: a server that adds encrypted updates, and the sessions of the sites that send them.

=====================  =====================================================================
`Server`               listens, adds uploads just in time, serves the aggregates
`SiteSession`          joins, uploads, downloads; waits and retries until its deadline
=====================  =====================================================================

Server: ``with Server(config, keys.server, "run", address="0.0.0.0:8443", tls=Tls.load("certs/server")): ...``

What it has acknowledged survives a crash: a server that is started again on the folder goes on with the round.

Site::

    with SiteSession("server.example:8443", "site-1", tls=Tls.load("certs/site-1")) as session:
        round = session.join().round
        with session.calibrate(site.calibrate(state, 128, round), "scales.secagg") as scales:
            update = site.encrypt(state, 128, round, calibration=scales)
        with session.exchange(update, "aggregate.secagg") as aggregate:
            mean = site.decrypt(aggregate, like=state)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secagg.integrations import exported

if TYPE_CHECKING:
    from .server import Server
    from .session import SiteSession

__all__ = ["Server", "SiteSession"]

_MODULES = {"Server": "server", "SiteSession": "session"}


def __getattr__(name: str) -> Any:
    # grpc and cryptography load when a name is first used.
    return exported(__name__, _MODULES, name, "over gRPC", ("grpc", "grpc_health", "google", "cryptography"))
