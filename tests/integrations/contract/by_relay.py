"""What is below the frameworks: a `Relay` at the server, a `Follower` at each site."""

from __future__ import annotations

from collections.abc import Sequence

from provisioned import Federation
from schedule import Run, Task, Turn, arrays

from secagg.protocol import Handout
from secagg.server import Relay
from secagg.site import Follower


def run_relay(kits: Federation, task: Task, schedule: Sequence[Turn]) -> Run:
    run, initial = Run(), task.initial()
    relay = Relay(kits["server"], initial)
    since: dict[str, int] = {}  # what the server knows of each site
    followers: dict[str, Follower] = {}
    kept: dict[str, bytes] = {}

    def receive(site: str, handout: Handout) -> Follower:
        handout = Handout.from_parts(handout.facts(), handout.blobs())
        follower = followers.get(site) or Follower(kits[site], kept.pop(site, b""))
        follower.receive(handout, initial if handout.first else None)
        followers[site] = follower
        return follower

    for round, turn in enumerate(schedule):
        storing = turn.sites[0] if relay.wants_model else None
        handouts = {site: relay.handout(since.get(site), store=site == storing) for site in turn.trains}
        for site, handout in handouts.items():
            follower = receive(site, handout)
            assert follower.model is not None
            local = run.train(task, site, round, follower.model.state)
            update = follower.encrypt(local, task.weights[site])
            model = follower.stored() if handout.store else b""
            if site in turn.restarts:
                kept[site] = followers.pop(site).to_bytes()
            if site in turn.sites:
                relay.add(update, model)
                since[site] = round
        relay.finish()
    for site in {site: None for turn in schedule for site in turn.trains}:
        model = receive(site, relay.handout(since.get(site))).model
        assert model is not None
        run.final[site] = arrays(model.state)
    return run
