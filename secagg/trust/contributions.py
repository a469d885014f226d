"""The contributions of an aggregate: what a site checks in the list before it uses a sum."""

from __future__ import annotations

from ..errors import ConfigError, IdentityError, QuorumError, RoundMismatchError, VerificationError, show
from ..wire.header import Contribution, check_base, check_nonce, check_round
from ..wire.update import Update
from .project import Project
from .receipt import Receipt


def check_contributions(
    aggregate: Update,
    min_clients: int,
    project: Project | None,
    *,
    round: int | None,
    base: bytes | None,
    own: Contribution | None,
    receipt: Receipt | None,
) -> None:
    """Check which updates an aggregate says that it is the sum of; see `secagg.Client.decrypt`.

    A header lists no site and no nonce twice: so many contributions are so many sites. All have signed the manifest
    that it names, this site too if its own update is listed; under an earlier one, none may have been revoked since.
    """
    header = aggregate.header
    # What the caller got wrong is no fault of the server.
    if base is not None:
        check_base(base)
    if own is not None:
        check_nonce(own.nonce)
    if receipt is not None and not isinstance(receipt, Receipt):
        raise ConfigError(
            f"receipt is {show(receipt)}; give a Receipt, as SiteSession.receipt or Receipt.from_bytes does"
        )
    what = f"the {'sum of calibrations' if header.kind == 'scales' else header.kind} of round {header.round}"
    if len(header.contributions) < min_clients:
        raise QuorumError(f"{what} has {len(header.contributions)} contributions, min_clients is {min_clients}")
    if round is not None and header.round != check_round(round):
        if header.kind == "scales":
            raise RoundMismatchError(
                f"the scales are of round {header.round}, not of round {round}: calibrate in each round, and pass the "
                "sum of its own calibrations"
            )
        raise RoundMismatchError(
            f"the aggregate is of round {header.round}, not of round {round}: apply those between first, or load a "
            "model that was stored since"
        )
    if base is not None and header.base != base:
        raise VerificationError(
            f"{what} began from another global model than this site: the server shows sites different models, or this "
            "site has missed a round"
        )
    if project is not None:
        project.check_time()
        project.check_manifest(header.manifest, what)
        for name in project.revoked_since(header):
            raise IdentityError(
                f"site {name!r} has been revoked since it gave to round {header.round}, whose aggregate cannot be used "
                "any more: go on from a global model that a site has stored since"
            )
    covered = receipt is None
    for contribution, proof in zip(header.contributions, aggregate.tail.proofs, strict=True):
        update = header.of(contribution)  # one head at a time: each is as large as the layout makes it
        covered = covered or (receipt is not None and receipt.covers(update.head, proof))
        if project is not None:
            project.check_contribution(update, proof)
    if not covered:
        raise VerificationError(
            "the server has given a receipt for this site's update, and has left it out of the aggregate of round "
            f"{header.round}: keep both as evidence"
        )
    if own is not None and own not in header.contributions:
        which = "another" if own.site in header.sites else "no"
        raise VerificationError(
            f"the aggregate of round {header.round} lists {which} update of site {own.site!r}: it is of another run, "
            "the server has left this site's out, or another process works under its name. If this site's was refused "
            "or too late, or the site was started again in this round, call GlobalModel.withdraw(), and apply it again"
        )
