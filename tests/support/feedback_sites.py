"""Three sites with error feedback and deterministic rounding, in the folders of their kits, over a toy transport."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from provisioned import Federation as Provisioned
from toy_transport import ToyLink, ToyServer

import secagg
from secagg.server import Federation, Limits
from secagg.site import GlobalModel, Session
from secagg.site.participant import Participant
from secagg.site.reporter import Reporter
from secagg.trust import load_server_kit, load_site_kit

NAMES = ("a", "b", "c")
MODEL = {"w": np.zeros(3000, np.float32)}


def provision(folder: Path) -> Provisioned:
    params = {"scheme": "FLASHE", "value_bits": 6, "rounding": "nearest", "error_feedback": True}
    aggregation = {"min_clients": 3, "max_clients": 3, "max_abs": 1.0, "max_weight": 4}
    return Provisioned.make(folder, hosts=[], he={"lib": "flashe", "config": params}, aggregation=aggregation)


def change(round: int, name: str, attempt: int) -> np.ndarray:
    """What training makes of the global model; a step is 1/31."""
    return np.random.default_rng([round, ord(name), attempt]).uniform(-0.02, 0.03, 3000).astype(np.float32)


class Warned(Reporter):
    """Keeps what a site is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, line: str) -> None:
        self.warnings.append(line)


class Site:
    """One life of a site in its kit's folder."""

    def __init__(self, server: ToyServer, folder: Path) -> None:
        self.folder, kit = folder, load_site_kit(folder)
        self.model = GlobalModel(secagg.Client.load(kit), MODEL)
        link = ToyLink(server, (folder / "tls.crt").read_bytes())
        session = Session(link, kit.name, timeout=60.0, project=kit.project, layout=self.model.layout)
        self.reporter = Warned()
        self.participant = Participant(kit, session, self.model, self.reporter)
        self.participant.join()

    def encrypt(self, attempt: int = 0) -> None:
        """What the training of a round makes, which depends on the round, the site and the attempt alone."""
        made = change(self.model.round, self.folder.name, attempt)
        self.participant.encrypt({"w": self.model.state["w"] + made}, weight=2.0)

    def upload(self) -> None:
        if not self.participant.has_update():
            self.encrypt()
        self.participant.upload(lambda done, total: None)

    def receive(self) -> None:
        with self.participant.download(lambda done, total: None) as aggregate:
            self.participant.receive(aggregate)
        self.participant.store_model(aggregate.header)


@contextmanager
def opened(provisioned: Provisioned, folder: Path) -> Iterator[Callable[[str], Site]]:
    """A server; what starts a site."""
    for name in NAMES:
        shutil.copytree(provisioned[name], folder / name)
    kit = load_server_kit(provisioned["server"])
    federation = Federation(
        kit.config,
        kit.key,
        folder / "run",
        round_timeout=600.0,
        project=kit.project,
        identity=kit.identity,
        limits=Limits(idle_seconds=60.0),
    )
    with ToyServer(federation) as server:
        yield lambda name: Site(server, folder / name)
