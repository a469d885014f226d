"""What the server has promised a site: its receipt for the update in the folder, held against the sum of that round."""

from __future__ import annotations

from ..errors import SecAggError, VerificationError
from ..protocol.messages import KEPT_ROUNDS, ServerStatus
from ..trust.contributions import check_contributions
from ..trust.kit import SiteKit
from ..trust.project import Project
from ..trust.receipt import Receipt
from ..wire.header import Header
from ..wire.update import Update
from .folder import RECEIPT_FILE, UPDATE_FILE, project_of
from .reporter import Reporter


def promised_round(kit: SiteKit, here: int, status: ServerStatus, reporter: Reporter) -> int | None:
    """Return the round whose aggregate must hold an update of this site, which the server has acknowledged.

    None if there is none to hold against the receipt any more, at the round `here` or since.

    Raises
    ------
    VerificationError
        If the server must still have the aggregate, and does not show it.
    """
    sent, _ = _receipt(kit) or (None, None)
    if sent is None or not here <= sent.round < status.round:
        return None
    round = sent.round
    if round in status.aggregates:
        return round
    what = f"the server has acknowledged this site's update of round {round}, and shows no aggregate of that round"
    evidence = f"{kit.folder / UPDATE_FILE} and {kit.folder / RECEIPT_FILE} are the evidence"
    if status.round - round <= KEPT_ROUNDS:
        raise VerificationError(
            f"{what}, which it must still have: ask its operators why; {evidence}. This site goes on when "
            f"{RECEIPT_FILE} has been moved away"
        )
    reporter.warning(f"ATTENTION: {what} any more: whether the update is in it, nobody can tell; {evidence}")
    return None


def binding_receipt(kit: SiteKit, aggregate: Header, reporter: Reporter) -> Receipt | None:
    """Return the receipt that an aggregate must be held against; None if there is none of its round, or it is void."""
    sent, receipt = _receipt(kit) or (None, None)
    if sent is None or sent.round != aggregate.round:
        return None
    if sent.epoch < aggregate.epoch:  # a round that was open when the key was rotated began anew
        return None
    if _voids(kit.project, aggregate, sent):  # and so did one in which a site was revoked
        reporter.news(
            f"round {aggregate.round} was voided, and done again, when a site was revoked: the receipt for what this "
            "site had sent counts for nothing"
        )
        return None
    return receipt


def check_kept(kit: SiteKit, aggregate: Update, receipt: Receipt) -> None:
    """Hold an aggregate that cannot be used, since sites in it were revoked, against a receipt; nothing is decrypted.

    Raises
    ------
    VerificationError
        If it lacks the update.
    SecAggError
        Whatever else makes its list unfit, or its digests; see `check_contributions`.
    """
    header = aggregate.header
    project = project_of(kit, header.epoch, revoked=())  # what they signed when they took part
    fewest = kit.config.aggregation.min_clients
    check_contributions(aggregate, fewest, project, round=header.round, base=None, own=None, receipt=receipt)
    for _ in aggregate.frames():  # checks each digest
        pass


def is_acknowledged(kit: SiteKit, round: int) -> bool:
    """Return whether there is a receipt for the update in the folder, and that is of this round."""
    sent, _ = _receipt(kit) or (None, None)
    return sent is not None and sent.round == round


def release(kit: SiteKit, round: int) -> None:
    """Remove the receipt for a round: the server has kept its word."""
    if is_acknowledged(kit, round):
        (kit.folder / RECEIPT_FILE).unlink(missing_ok=True)


def _voids(project: Project, summed: Header, sent: Header) -> bool:
    """Return whether a site was revoked between the manifest of an update and that of the sum of its round.

    Then the round was void when the update was acknowledged already, and began anew: the receipt counts for nothing.
    """
    revoked = {item.digest: item.revoked for item in project.earlier} | {project.digest: project.revoked}
    before, after = (revoked.get(header.manifest or b"") for header in (sent, summed))
    return before is not None and after is not None and before < after


def _receipt(kit: SiteKit) -> tuple[Header, Receipt] | None:
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
