"""Four sites whose federation changes in the middle of a round, in their kits' folders, over a toy transport."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from provisioned import Federation as Provisioned
from toy_transport import Pipe, ToyLink, ToyServer

import secagg
from secagg.protocol import BusyError
from secagg.server import Federation, Limits
from secagg.setup.installing import install
from secagg.setup.provisioner import Provisioner
from secagg.site import GlobalModel, Session
from secagg.site.participant import Participant
from secagg.site.reporter import Reporter
from secagg.trust import load_server_kit, load_site_kit

NAMES = ("a", "b", "c", "d")
MODEL = {"w": np.zeros(3000, np.float32)}


def provision(folder: Path, **params: Any) -> Provisioned:
    config = {"scheme": "FLASHE", "value_bits": 12, "rounding": "nearest", **params}
    aggregation = {"min_clients": 2, "max_clients": 5, "max_abs": 1.0, "max_weight": 4}
    he = {"lib": "flashe", "config": config}
    return Provisioned.make(folder, hosts=[], sites=list(NAMES), he=he, aggregation=aggregation)


def removed(*names: str) -> Callable[[Provisioner, Path, Path], Any]:
    return lambda made, changed, kits: made.remove(names, changed, kits)


def added(*names: str) -> Callable[[Provisioner, Path, Path], Any]:
    return lambda made, changed, kits: made.add(names, changed, kits)


def made(round: int, name: str) -> Any:
    """What training makes of the global model; a step is 1/31."""
    return np.random.default_rng([round, ord(name)]).uniform(-0.02, 0.03, 3000).astype(np.float32)


class Told(Reporter):
    """Keeps what a site is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def news(self, line: str) -> None:
        self.lines.append(line)

    def warning(self, line: str) -> None:
        self.lines.append(f"warning: {line}")


class World:
    """A federation, the folders of its parties, and the server, which comes back with other kits."""

    def __init__(self, provisioned: Provisioned, folder: Path, round_timeout: float = 600.0) -> None:
        shutil.copytree(provisioned.kits.parent, folder, dirs_exist_ok=True)
        self.folder, self.run, self.round_timeout = folder, folder / "run", round_timeout
        self.newest = Provisioned(Provisioner.load(folder / "authority"), folder / "kits")
        self.kits = {path.name: path for path in (folder / "kits").iterdir()}
        self.lock = threading.Lock()
        self.server: ToyServer | None = None
        self.federation: Federation

    def __enter__(self) -> World:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.federation = self.open(self.run)
        server = ToyServer(self.federation)
        server.__enter__()
        with self.lock:
            self.server = server

    def open(self, run: Path, kit: Path | None = None) -> Federation:
        """A federation on a run folder under the server's kit."""
        opened = load_server_kit(kit or self.kits["server"])
        return Federation(
            opened.config,
            opened.key,
            run,
            round_timeout=self.round_timeout,
            project=opened.project,
            identity=opened.identity,
            limits=Limits(idle_seconds=60.0),
        )

    def stop(self) -> None:
        with self.lock:
            server, self.server = self.server, None
        if server is not None:
            server.__exit__()

    def change(self, change: Callable[[Provisioner, Path, Path], Any]) -> None:
        """Let the provisioner change something, and unpack the server's new kit, and those of new sites."""
        self.newest = self.newest.change(self.folder / f"change-{self.newest.provisioner.project.serial}", change)
        for kit in self.newest.kits.iterdir():
            self.kits.setdefault(kit.name, self.folder / "kits" / kit.name)
            install({path.name: path.read_bytes() for path in kit.iterdir()}, self.kits[kit.name])

    def restart(self, change: Callable[[Provisioner, Path, Path], Any] | None = None) -> None:
        self.stop()
        if change is not None:
            self.change(change)
        self.start()

    @property
    def project(self) -> secagg.Project:
        """The newest manifest."""
        return load_server_kit(self.kits["server"]).project

    def link(self, name: str) -> ToyLink:
        return Line(self, (self.kits[name] / "tls.crt").read_bytes())

    def session(self, name: str, timeout: float = 60.0) -> Session:
        kit = load_site_kit(self.kits[name])
        return Session(self.link(name), kit.name, timeout=timeout, project=kit.project)

    def site(self, name: str, *, join: bool = True) -> Site:
        return Site(self, name, join)

    def sites(self, *names: str) -> list[Site]:
        return [self.site(name) for name in names]


class Line(ToyLink):
    """Reaches whichever server is up."""

    def __init__(self, world: World, certificate: bytes) -> None:
        self._world, self._certificate, self.cuts = world, certificate, []

    def _call(self, name: str, argument: Any, seconds: float) -> Pipe:
        with self._world.lock:
            if self._world.server is None:
                raise BusyError("no server is up")
            self._world.server.calls.put(pipe := Pipe(self._certificate, name, argument, seconds))
        return pipe


class Site:
    """One life of a site in its kit's folder."""

    def __init__(self, world: World, name: str, join: bool = True) -> None:
        self.name, self.folder = name, world.kits[name]
        kit = load_site_kit(self.folder)
        self.model = GlobalModel(secagg.Client.load(kit), MODEL)
        self.told = Told()
        self.participant = Participant(kit, world.session(name), self.model, self.told)
        if join:
            self.participant.join()

    @property
    def w(self) -> Any:
        return self.model.state["w"]

    @property
    def local(self) -> dict[str, Any]:
        return {"w": self.w + made(self.model.round, self.name)}

    def give(self) -> None:
        """Train, encrypt, and upload."""
        if not self.participant.has_update():
            self.participant.encrypt(self.local, 2.0)
        self.participant.upload(ignored)

    def take(self) -> secagg.Header:
        """Wait for the aggregate, and apply it."""
        with self.participant.download(ignored) as aggregate:
            self.participant.receive(aggregate)
        self.participant.store_model(aggregate.header)
        return aggregate.header


def ignored(done: float, total: float) -> None:
    pass


def run_round(sites: list[Site]) -> secagg.Header:
    for site in sites:
        site.give()
    header, *_ = [site.take() for site in sites]
    for site in sites[1:]:
        np.testing.assert_array_equal(site.w, sites[0].w)
    return header
