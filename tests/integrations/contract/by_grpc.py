"""Our own server over gRPC and TLS, and a `Participant` in the folder of each site's kit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from provisioned import Federation
from schedule import Run, Task, Turn, arrays

import secagg
from secagg.integrations.grpc import Server, SiteSession
from secagg.site import GlobalModel, Participant
from secagg.trust import Tls, load_server_kit, load_site_kit

SECONDS = 120.0  # that nothing should take


def run_grpc(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    run, sites = Run(), dict[str, Site]()
    with ExitStack() as stack:
        server = stack.enter_context(serve(kits))

        def joined(site: str) -> Site:
            if site not in sites:
                sites[site] = Site(kits, task, site, server.address)
                stack.callback(sites[site].session.close)
            sites[site].participant.join()
            return sites[site]

        for round, turn in enumerate(schedule):
            for site in turn.trains:
                assert joined(site).model.round == round
            for site in sites.keys() - set(turn.sites):
                sites[site].session.skip(round)  # or the server would wait for it to the round timeout
            for site in turn.trains:
                local = run.train(task, site, round, sites[site].model.state)
                sites[site].participant.encrypt(local, task.weights[site])
                if site in turn.sites:
                    sites[site].participant.upload(lambda done, total: None)
            for site in turn.restarts:
                sites.pop(site).session.close()
            for site in turn.sites:
                if site in sites:
                    sites[site].finish()
        for site in {site: None for turn in schedule for site in turn.trains}:
            run.final[site] = arrays(joined(site).model.state)
    return run


def serve(kits: Federation) -> Server:
    kit = load_server_kit(kits["server"])
    return Server(
        kit.config,
        kit.key,
        kits.kits.parent / "run",
        tls=Tls.load(kit.folder),
        round_timeout=SECONDS,
        project=kit.project,
        identity=kit.identity,
    )


class Site:
    """A process of a site."""

    def __init__(self, kits: Federation, task: Task, name: str, address: str) -> None:
        kit = load_site_kit(kits[name])
        self.model = GlobalModel(secagg.Client.load(kit), task.initial())
        self.session = SiteSession(
            address, name, tls=Tls.load(kit.folder), timeout=SECONDS, project=kit.project, layout=self.model.layout
        )
        self.participant = Participant(kit, self.session, self.model)

    def finish(self) -> None:
        with self.participant.download(lambda done, total: None) as aggregate:
            self.participant.receive(aggregate)
            self.participant.store_model(aggregate.header)
