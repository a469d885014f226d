"""What a site keeps in the folder of its kit, so that it can be interrupted at any moment.

=====================  ============================================================================
``model.secagg``       the global model that its current round begins from, encrypted and signed
``update.secagg``      its update of the round, from the end of training on; written as ``update.secagg.new``
``own``                the tensors that are the site's own, as training left them, for its owner alone
``carry``              what error feedback carries from that update to the next, for its owner alone
``trained``            where a round begins with a calibration: what it has trained for it, for its owner alone
``scales.secagg``      the scales of the round, under which the update is encrypted
``receipt.secagg``     the server's receipt for that update, until it is in an aggregate
``download.secagg``    the aggregate or model that was downloaded last
``best.secagg``        where metrics are averaged: the global model with the best mean so far, encrypted and signed;
                       written as ``best.secagg.new``
``best``               that mean, and the round that began from the model
``failures``           which key did not decrypt an aggregate, as often as that happened
``lock``               held by the process that works here
=====================  ============================================================================
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

from ..client import Client
from ..trust.kit import SiteKit
from ..trust.project import Project

MODEL_FILE = "model.secagg"
UPDATE_FILE = "update.secagg"
NEW_UPDATE_FILE = "update.secagg.new"
OWN_FILE = "own"
CARRY_FILE = "carry"
TRAINED_FILE = "trained"
SCALES_FILE = "scales.secagg"
RECEIPT_FILE = "receipt.secagg"
DOWNLOAD_FILE = "download.secagg"
BEST_FILE = "best.secagg"
NEW_BEST_FILE = "best.secagg.new"
BEST_FACTS_FILE = "best"

_DAY_SECONDS = 86_400


def make_old_client(kit: SiteKit, epoch: int) -> Client:
    """Return a client that reads what was made under the key of an earlier epoch; errors as of `SiteKit.old_epoch`."""
    revoked = [site.name for site in kit.project.sites if site.revoked]
    return Client.load(replace(kit.old_epoch(epoch), project=project_of(kit, epoch, revoked)))


def project_of(kit: SiteKit, epoch: int, revoked: Collection[str]) -> Project:
    """Return the manifest of an epoch, to check by it what was made then; errors as of `SiteKit.old_epoch`.

    It is as it was but for three things: it need not be valid any more, since what it is for was made when it was; the
    sites of these names are revoked; and there may have been later ones in that epoch.
    """
    project = kit.project if epoch == kit.project.epoch else kit.old_epoch(epoch).project
    return replace(
        project,
        expires=max(project.expires, int(time.time()) + _DAY_SECONDS),
        sites=tuple(replace(site, revoked=site.name in revoked) for site in project.sites),
        earlier=kit.project.earlier,
    )
