"""The plain loop: `Client`, `Aggregator` and `GlobalModel`; its training may be an engine with a handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from provisioned import Federation
from schedule import Run, Task, Turn, arrays

import secagg
from secagg.site import GlobalModel

#: Trains the global model of a site, and encrypts what has come out.
Encrypt = Callable[[Run, Task, str, GlobalModel], secagg.Update]


def encrypt(run: Run, task: Task, site: str, model: GlobalModel) -> secagg.Update:
    local = run.train(task, site, model.round, model.state)
    return model.encrypt(local, task.weights[site])


def run_loop(kits: Federation, task: Task, schedule: Sequence[Turn], encrypt: Encrypt = encrypt) -> Run:
    run, loop = Run(), Loop(kits, task)
    for round, turn in enumerate(schedule):
        updates = {}
        for site in turn.trains:
            model = loop.model(site)
            assert model.round == round
            updates[site] = encrypt(run, task, site, model)
        for site in turn.restarts:
            loop.restart(site)
        loop.add([updates[site] for site in turn.sites])
    for site in {site: None for turn in schedule for site in turn.trains}:
        run.final[site] = arrays(loop.model(site).state)
    return run


class Loop:
    """A federation in one process: what the server has, and each site's global model, as it left it."""

    def __init__(self, kits: Federation, task: Task) -> None:
        self._kits, self._task = kits, task
        self._aggregates: list[bytes] = []
        self._models: dict[str, GlobalModel] = {}
        self._kept: dict[str, bytes] = {}

    def model(self, site: str) -> GlobalModel:
        """The global model of a site, with all aggregates that there are."""
        model = self._models.get(site) or self._start(site)
        self._models[site] = model
        for blob in self._aggregates[model.round :]:
            aggregate = secagg.Update.from_bytes(blob)
            if site not in aggregate.header.sites:
                model.withdraw()
            assert model.apply(aggregate)
        return model

    def restart(self, site: str) -> None:
        """Let a site's process end."""
        self._kept[site] = self._models.pop(site).to_bytes()

    def add(self, updates: list[secagg.Update]) -> None:
        header = updates[0].header
        aggregator = secagg.Aggregator.load(self._kits["server"], header.round, header.layout, base=header.base)
        for update in updates:
            aggregator.add(secagg.Update.from_bytes(update.to_bytes()))
        self._aggregates.append(aggregator.finish().to_bytes())

    def _start(self, site: str) -> GlobalModel:
        client = secagg.Client.load(self._kits[site])
        if site in self._kept:
            return GlobalModel.from_bytes(client, self._kept.pop(site))
        return GlobalModel(client, self._task.initial())
