"""A round's updates, signed by their sites, in a folder or a store: some are encrypted, the others repeat their words.

How long a sum takes does not depend on what words say. Each update has a head of its own, though, and so every frame
another digest.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ...client import Client
from ...config import Config
from ...keygen import generate_keys
from ...setup.progress import Report
from ...storage import objects
from ...trust.identity import Identity
from ...trust.kit_files import CONFIG_FILE, IDENTITY_FILE, PROJECT_FILE, SERVER, SERVER_KEY_FILE
from ...trust.parties import Party
from ...trust.project import Project
from ...wire.header import NONCE_NBYTES, Contribution
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
    kit : Path
        Folder of the kit of whoever adds them.
    urls : tuple of str
        Where they lie.
    nbytes : int
        Their sizes, added.
    """

    kit: Path
    urls: tuple[str, ...]
    nbytes: int


def lay(
    place: str,
    kit: Path,
    setting: str,
    parameters: int,
    sites: int,
    bits: int | None = None,
    report: Report = lambda done, total: None,
) -> Round:
    """Write the updates of a round, and the kit of whoever adds them.

    Parameters
    ----------
    place : str
        A folder, or the URL of one.
    kit : Path
        The folder of the kit, which is made.
    setting : str
        One of `SETTINGS`, whose values have a bound.
    parameters : int
        Of the model.
    sites : int
        How many updates.
    bits : int, optional
        Bits of a value, in place of those of the setting.
    report : callable, optional
        Told of each update, and of how many there are.
    """
    config = SETTINGS[setting].config(sites, max_abs=BOUND, min_clients=min(sites, 3))
    if bits is not None:
        he = dict(SETTINGS[setting].he)
        he["config"] = {**he["config"], "value_bits": bits}
        config = Config.from_dict({**config.to_dict(), "he": he})
    keys = generate_keys(config)
    authority, server = Identity.generate(), Identity.generate()
    identities = {f"site-{number + 1:04}": Identity.generate() for number in range(sites)}
    now = int(time.time())
    project = Project(
        name="bench",
        serial=0,
        issued=now - _DAY,
        expires=now + 30 * _DAY,
        config=config,
        epoch=0,
        key=keys.client.fingerprint,
        authority=authority.public,
        server=_party(SERVER, server),
        sites=tuple(_party(name, identity) for name, identity in identities.items()),
    )
    kit.mkdir(parents=True)
    project.save(kit / PROJECT_FILE, authority)
    server.save(kit / IDENTITY_FILE)
    keys.server.save(kit / SERVER_KEY_FILE)
    (kit / CONFIG_FILE).write_text(json.dumps(config.to_dict()), encoding="utf-8")  # which is YAML, too
    project = Project.load(kit / PROJECT_FILE)
    urls = [f"{place}/{name}.secagg" for name in identities]
    for number, (name, identity) in enumerate(identities.items()):
        report(number, sites)
        if number < ENCRYPTED:
            client = Client(config, keys.client, name, identity=identity, project=project)
            client.encrypt_to(urls[number], make_model(parameters), round=ROUND, base=bytes(32))
        else:
            _repeat(urls[number % ENCRYPTED], urls[number], name, identity)
    report(sites, sites)
    return Round(kit, tuple(urls), sum(objects.pin(url).nbytes for url in urls))


def _party(name: str, identity: Identity) -> Party:
    return Party(name, identity.public, identity.public[::-1].hex())  # nobody connects: any certificate does


def _repeat(source: str, url: str, site: str, identity: Identity) -> None:
    """Write the words of an update as another site's: under its name, with a new nonce, new digests, its signature."""
    with Update.open(source) as update, objects.write(url) as file:
        header = replace(update.header, contributions=(Contribution(site, secrets.token_bytes(NONCE_NBYTES)),))
        writer = UpdateWriter(file, header)
        for frame, payload in update.frames():
            writer.write(frame, payload)
        writer.finish(lambda _: update.tail.tags, identity.sign)
