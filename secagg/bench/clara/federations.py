"""Federations whose sites are objects of this process, and go through a round one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...client import Client
from ...config import Config
from ...demo.children import Children
from ...demo.raw import RawServer, RawSite, flatten, unflatten
from ...demo.serving import ServerProcess
from ...errors import TransportError
from ...integrations.grpc import SiteSession
from ...setup import ProjectFile, Provisioner
from ...site import GlobalModel, network_state
from ...trust import Tls
from ...trust.kit import load_site_kit
from ...trust.kit_files import SERVER
from ...wire.update import Update
from .settings import config
from .task import Task

#: How long the server may take to write down a round whose aggregate it has given.
_RECORD_SECONDS = 30.0

#: How long one call may take: nothing here is away for long.
_CALL_SECONDS = 120.0

State = Mapping[str, NDArray[Any]]


@dataclass
class SiteCost:
    """What a round has cost one site: bytes sent, and seconds of each step.

    Where scales are measured, `encrypt` has what measuring takes, and `upload` what the exchange takes; `nbytes` has
    both messages.
    """

    nbytes: int = 0
    train: float = 0.0
    encrypt: float = 0.0
    upload: float = 0.0
    download: float = 0.0
    decrypt: float = 0.0

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add what a block takes to a step."""
        start = time.perf_counter()
        yield
        setattr(self, step, getattr(self, step) + time.perf_counter() - start)


@dataclass
class RoundCost:
    """What a round has cost: each site, and the seconds that the server took to add the updates of all."""

    sites: list[SiteCost] = field(default_factory=list)
    add: float = 0.0


class Federation(Protocol):
    """A server, which has been started, and sites."""

    def join(self, state: State) -> None:
        """Connect all sites, with an initial model."""

    def state(self) -> State:
        """Return the global model."""

    def load(self, network: torch.nn.Module) -> None:
        """Copy the global model into a network."""

    def take_part(self, task: Task, round: int) -> RoundCost:
        """Take all sites through a round; `round` is that of the training."""


def start(setting: str, sites: int, folder: Path, children: Children, stack: ExitStack) -> Federation:
    """Make kits, and start the server of a federation.

    Parameters
    ----------
    setting : str
        ``"raw"`` or one of those of `config`.
    sites : int
        How many.
    folder : Path
        New folder for kits, logs and the server's files.
    children : Children
        Ends the server, if it is a process.
    stack : ExitStack
        Ends everything else.
    """
    return Raw(sites, folder, stack) if setting == "raw" else Encrypted(setting, sites, folder, children, stack)


class Encrypted:
    """Sites that send encrypted differences to ``secagg serve``."""

    def __init__(self, setting: str, sites: int, folder: Path, children: Children, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._kits = _make_kits(folder, config(setting, sites), sites)
        self._server = ServerProcess(children, f"server-{setting}", folder / SERVER, folder / "run", folder)
        self._models: list[GlobalModel] = []
        self._sessions: list[SiteSession] = []

    def join(self, state: State) -> None:
        """Connect all sites, with an initial model."""
        address = self._server.address()
        for folder in self._kits:
            kit = load_site_kit(folder)
            session = SiteSession(address, kit.name, tls=Tls.load(kit.tls), timeout=_CALL_SECONDS, project=kit.project)
            self._sessions.append(self._stack.enter_context(session))
            self._models.append(GlobalModel(Client.load(kit), state))
        for session in self._sessions:
            session.join()

    def state(self) -> State:
        """Return the global model."""
        return self._models[0].state

    def load(self, network: torch.nn.Module) -> None:
        """Copy the global model into a network."""
        self._models[0].load(network)

    def take_part(self, task: Task, round: int) -> RoundCost:
        """Take all sites through a round: train, measure scales if need be, encrypt, upload, download, decrypt."""
        costs = [SiteCost() for _ in self._models]
        trained = []
        for site, (model, cost) in enumerate(zip(self._models, costs, strict=True)):
            model.load(task.network)
            with cost.measure("train"):
                task.train(site, round)
            trained.append({name: value.clone() for name, value in network_state(task.network).items()})
        weights = [float(task.examples(site)) for site in range(len(costs))]
        scales = self._calibrate(trained, weights, costs) if self._models[0].calibrates else [None] * len(costs)
        for model, session, local, weight, measured, cost in zip(
            self._models, self._sessions, trained, weights, scales, costs, strict=True
        ):
            with cost.measure("encrypt"):
                update = model.encrypt(local, weight, measured)
            with cost.measure("upload"):
                session.upload(update)
            cost.nbytes += update.nbytes
            if measured is not None:
                measured.close()
        own = self._models[0].round
        for number, (model, session, cost) in enumerate(zip(self._models, self._sessions, costs, strict=True)):
            path = self._folder / f"aggregate-{number}"
            with cost.measure("download"):
                aggregate = session.download(own, path)
            with aggregate, cost.measure("decrypt"):
                model.apply(aggregate, session.receipt(own))
            path.unlink()
        return RoundCost(costs, self._add_seconds(own))

    def _calibrate(
        self, trained: Sequence[Mapping[str, Any]], weights: Sequence[float], costs: Sequence[SiteCost]
    ) -> list[Update | None]:
        """Return the scales of the round, as each site has them. Each waits for all others: they exchange together."""
        calibrations = []
        for model, local, weight, cost in zip(self._models, trained, weights, costs, strict=True):
            with cost.measure("encrypt"):
                calibrations.append(model.calibrate(local, weight))
            cost.nbytes += calibrations[-1].nbytes

        def exchange(site: int) -> Update:
            with costs[site].measure("upload"):
                return self._sessions[site].calibrate(calibrations[site], self._folder / f"scales-{site}")

        with ThreadPoolExecutor(len(costs)) as pool:
            return list(pool.map(exchange, range(len(costs))))

    def _add_seconds(self, round: int) -> float:
        deadline = time.monotonic() + _RECORD_SECONDS
        while time.monotonic() < deadline:
            seconds = self._server.add_seconds()
            if len(seconds) > round:
                return seconds[round]
            time.sleep(0.01)
        raise TransportError(f"the server has not written down round {round}: is its disk full? See {self._folder}")


class Raw:
    """Sites that send float32 differences in the clear, to a server that is a thread of this process."""

    def __init__(self, sites: int, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._kits = _make_kits(folder, config("smallest", sites), sites)
        self._server = RawServer(sites, Tls.load(folder / SERVER))
        stack.callback(self._server.stop)
        self._names: tuple[str, ...] = ()
        self._shapes: list[tuple[int, ...]] = []
        self._model = np.zeros(0, np.float32)
        self._sites: list[RawSite] = []
        self._round = 0

    def join(self, state: State) -> None:
        """Connect all sites, with an initial model."""
        self._names, self._shapes = tuple(state), [value.shape for value in state.values()]
        self._model = np.concatenate([np.asarray(value, np.float32).reshape(-1) for value in state.values()])
        for kit in self._kits:
            self._sites.append(self._stack.enter_context(RawSite(self._server.address, Tls.load(kit))))

    def state(self) -> State:
        """Return the global model."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes])[:-1]
        parts = np.split(self._model, ends)
        return {name: part.reshape(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)}

    def load(self, network: torch.nn.Module) -> None:
        """Copy the global model into a network."""
        unflatten(self._model, network)

    def take_part(self, task: Task, round: int) -> RoundCost:
        """Take all sites through a round: train, upload, download."""
        costs = []
        for site, connection in enumerate(self._sites):
            cost = SiteCost()
            self.load(task.network)
            with cost.measure("train"):
                task.train(site, round)
            with cost.measure("upload"):
                cost.nbytes = connection.upload(task.examples(site), flatten(task.network) - self._model)
            costs.append(cost)
        for connection, cost in zip(self._sites, costs, strict=True):
            with cost.measure("download"):
                mean = connection.download(self._round)
            with cost.measure("decrypt"):  # for all others, this is a part of it
                model = self._model + mean
        self._model, self._round = model, self._round + 1
        return RoundCost(costs, sum(self._server.add_seconds[-len(costs) :]))


def _make_kits(folder: Path, config: Config, sites: int) -> list[Path]:
    """Make the kits of a server and its sites in a new folder, and return those of the sites."""
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    folder.mkdir(mode=0o700)
    with TemporaryDirectory() as authority:
        Provisioner.create(ProjectFile("bench", config, names), Path(authority), folder)
    return [folder / name for name in names]
