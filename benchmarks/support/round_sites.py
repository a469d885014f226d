"""Sites of a federation as threads of one process: ``python round_sites.py ADDRESS FOLDER {tls,insecure} SITE …``.

All of them join, and the process says so; for each line on stdin they go through a round, and it answers when they have
the new global model. In the end it prints the digest of that, which is the same at all sites.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import secagg
from secagg.integrations.grpc import SiteSession
from secagg.site import GlobalModel
from secagg.trust import Tls

#: A small model: 40 kB.
SIZE = 10_000


class Site:
    """One site, whose training adds one to every value."""

    def __init__(self, address: str, folder: Path, tls: bool, name: str) -> None:
        project = secagg.Project.load(folder / "project.secagg")
        key = secagg.load_key(folder / "client.key")
        assert isinstance(key, secagg.ClientKey)
        identity = secagg.Identity.load(folder / name / "signing.key")
        client = secagg.Client(project.config, key, name, identity=identity, project=project)
        self.model = GlobalModel(client, {"weight": np.zeros(SIZE, np.float32)})
        self.session = SiteSession(address, name, tls=Tls.load(folder / name) if tls else None, project=project)
        self.session.join()
        self._path = folder / name / "aggregate.secagg"

    def take_part(self) -> None:
        model = self.model
        update = model.encrypt({name: value + 1 for name, value in model.state.items()}, 1.0)
        with self.session.exchange(update, self._path) as aggregate:
            model.apply(aggregate, self.session.receipt(model.round))


def main() -> None:
    address, folder, security, *names = sys.argv[1:]
    with ExitStack() as stack, ThreadPoolExecutor(len(names)) as pool:
        sites = list(pool.map(lambda name: Site(address, Path(folder), security == "tls", name), names))
        for site in sites:
            stack.enter_context(site.session)
        print("joined", flush=True)
        for _ in sys.stdin:
            list(pool.map(Site.take_part, sites))
            print("done", flush=True)
        (base,) = {site.model.base for site in sites}
        print(base.hex(), flush=True)


if __name__ == "__main__":
    main()
