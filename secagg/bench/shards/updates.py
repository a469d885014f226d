"""A round's updates, signed by their sites, in a folder or a store: some are encrypted, the others repeat their words.

How long a sum takes does not depend on what words say. Each update has a head of its own, though, and so every frame
another digest.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ...client import Client
from ...keygen import generate_keys
from ...setup.progress import Report
from ...storage import objects
from ...trust.identity import Identity
from ...trust.kit import ServerKit
from ...trust.parties import Party
from ...trust.project import Project
from ...wire.header import Contribution
from ...wire.update import Update, UpdateWriter
from ..growth.model import BOUND, make_model
from ..settings import SETTINGS

#: Of which the updates are.
ROUND = 1

#: Updates that are encrypted; from the third on they repeat.
ENCRYPTED = 2

_DAY = 86_400


@dataclass(frozen=True)
class Round:
    """A round's updates.

    Parameters
    ----------
    kit : ServerKit
        Of whoever adds them.
    urls : tuple of str
        Where they lie.
    nbytes : int
        Their sizes, added.
    """

    kit: ServerKit
    urls: tuple[str, ...]
    nbytes: int


def lay(place: str, setting: str, parameters: int, sites: int, report: Report | None = None, bits: int = 0) -> Round:
    """Write the updates of a round.

    Parameters
    ----------
    place : str
        A folder, or the URL of one.
    setting : str
        One of `SETTINGS`.
    parameters : int
        Of the model.
    sites : int
        How many updates.
    report : callable, optional
        Is told of each update written, and of how many there are.
    bits : int, optional
        Bits a value in place of the setting's own.
    """
    he = SETTINGS[setting].he
    config = SETTINGS[setting].config(sites, max_abs=BOUND)
    if bits:
        he = {**he, "config": {**he["config"], "value_bits": bits}}
        config = type(config).from_dict({**config.to_dict(), "he": he})
    keys = generate_keys(config)
    authority, server = Identity.generate(), Identity.generate()
    identities = {f"site-{number + 1:03}": Identity.generate() for number in range(sites)}
    now = int(time.time())
    project = Project(
        "bench",
        0,
        now - _DAY,
        now + 30 * _DAY,
        config,
        0,
        keys.client.fingerprint,
        authority.public,
        Party("server", server.public, server.public.hex()),
        tuple(Party(name, identity.public, identity.public[::-1].hex()) for name, identity in identities.items()),
    )
    project = Project.from_bytes(project.sign(authority))
    urls = [f"{place}/{name}.secagg" for name in identities]
    for number, (name, identity) in enumerate(identities.items()):
        if report is not None:
            report(number, sites)
        if number < ENCRYPTED:
            client = Client(config, keys.client, name, identity=identity, project=project)
            client.encrypt_to(urls[number], make_model(parameters), round=ROUND, base=bytes(32))
        else:
            _repeat(urls[number % ENCRYPTED], urls[number], name, identity)
    if report is not None:
        report(sites, sites)
    kit = ServerKit(Path(), config, keys.server, project, server)
    return Round(kit, tuple(urls), sum(objects.pin(url).nbytes for url in urls))


def _repeat(source: str, url: str, site: str, identity: Identity) -> None:
    """Write the words of an update as another site's: under its name, with a new nonce, new digests, its signature."""
    with Update.open(source) as update, objects.write(url) as file:
        header = replace(update.header, contributions=(Contribution(site, secrets.token_bytes(32)),))
        writer = UpdateWriter(file, header)
        for frame, payload in update.frames():
            writer.write(frame, payload)
        writer.finish(lambda _: update.tail.tags, identity.sign)
