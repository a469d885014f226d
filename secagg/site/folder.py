"""What a site keeps in the folder of its kit, so that it can be interrupted at any moment.

=====================  ============================================================================
``model.secagg``       the global model that its current round begins from, encrypted and signed
``update.secagg``      its update of the round, from the end of training on; written as ``update.secagg.new``
``own``                the tensors that are the site's own, as training left them, for its owner alone
``carry``              what error feedback carries from that update to the next, for its owner alone
``receipt.secagg``     the server's receipt for that update, until it is in an aggregate
``download.secagg``    the aggregate or model that was downloaded last
``failures``           which key did not decrypt an aggregate, as often as that happened
``lock``               held by the process that works here
=====================  ============================================================================
"""

from __future__ import annotations

import time
from dataclasses import replace

from ..client import Client
from ..errors import SecAggError
from ..trust.kit import SiteKit
from ..trust.project import Project
from ..trust.receipt import Receipt
from ..wire.header import Header
from ..wire.update import Update

MODEL_FILE = "model.secagg"
UPDATE_FILE = "update.secagg"
NEW_UPDATE_FILE = "update.secagg.new"
OWN_FILE = "own"
CARRY_FILE = "carry"
RECEIPT_FILE = "receipt.secagg"
DOWNLOAD_FILE = "download.secagg"

_DAY_SECONDS = 86_400


def make_old_client(kit: SiteKit, epoch: int) -> Client:
    """Return a client that reads what was made under the key of an earlier epoch; errors as of `SiteKit.old_epoch`."""
    old = kit.old_epoch(epoch)
    # Under the manifest of that time but for three things: it need not be valid any more, since what it is for was made
    # when it was; who has been revoked since is revoked; and there may have been later ones in that epoch.
    revoked = {site.name for site in kit.project.sites if site.revoked}
    project = replace(
        old.project,
        expires=max(old.project.expires, int(time.time()) + _DAY_SECONDS),
        sites=tuple(replace(site, revoked=site.revoked or site.name in revoked) for site in old.project.sites),
        earlier=kit.project.earlier,
    )
    return Client.load(replace(old, project=project))


def voids(project: Project, summed: Header, sent: Header) -> bool:
    """Return whether a site was revoked between the manifest of an update and that of the sum of its round.

    Then the round was void when the update was acknowledged already, and began anew: the receipt counts for nothing.
    """
    revoked = {item.digest: item.revoked for item in project.earlier} | {project.digest: project.revoked}
    before, after = (revoked.get(header.manifest or b"") for header in (sent, summed))
    return before is not None and after is not None and before < after


def read_receipt(kit: SiteKit) -> tuple[Header, Receipt] | None:
    """Return header and receipt of the update in the folder, if the server has acknowledged it.

    An update of an earlier epoch has a receipt by the server's signing key of that time.
    """
    try:
        receipt = Receipt.from_bytes((kit.folder / RECEIPT_FILE).read_bytes())
        with Update.open(kit.folder / UPDATE_FILE) as update:
            header = update.header
            project = kit.project if header.epoch == kit.project.epoch else kit.old_epoch(header.epoch).project
            receipt.check(update, project)
            return header, receipt
    except (OSError, SecAggError):  # there is none, or it is for another update
        return None
