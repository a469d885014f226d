"""The manifest of an aggregate, its list of contributions, and what a site checks in it before it uses a sum."""

from __future__ import annotations

from ..config import Config
from ..errors import MismatchError, QuorumError, RoundMismatchError, VerificationError, show
from ..wire.header import check_round
from ..wire.update import Update
from .key import ServerKey
from .project import Project
from .receipt import Receipt


def check_project(config: Config, key: ServerKey, project: Project) -> None:
    """Hold configuration and key against the project.

    Raises
    ------
    KeyFileError
        If the project has another HE key.
    MismatchError
        If it has another configuration; the library of ``he.lib``, and to ask for more sites, is each party's choice.
    """
    project.check_key(key.epoch, key.fingerprint)
    fewest = project.config.aggregation.min_clients
    if config.aggregation.min_clients < fewest:
        raise MismatchError(
            f"the configuration has aggregation.min_clients {config.aggregation.min_clients}, project {project.name} "
            f"(serial {project.serial}) demands {fewest} or more"
        )
    mine, theirs = config.to_dict(), project.config.to_dict()
    for party in (mine, theirs):
        del party["he"]["lib"], party["aggregation"]["min_clients"]
    for block in mine:
        if mine[block] != theirs[block]:
            raise MismatchError(
                f"the configuration has {block} {show(mine[block])}, project {project.name} (serial {project.serial}) "
                f"has {show(theirs[block])}"
            )


def check_manifest(
    aggregate: Update,
    min_clients: int,
    project: Project | None,
    *,
    round: int | None,
    base: bytes | None,
    receipt: Receipt | None,
) -> None:
    """Check which updates an aggregate says that it is the sum of; see `secagg.Client.decrypt`.

    A header lists no site and no nonce twice: so many contributions are so many sites.
    """
    header = aggregate.header
    if len(header.contributions) < min_clients:
        raise QuorumError(f"the aggregate has {len(header.contributions)} contributions, min_clients is {min_clients}")
    if round is not None and header.round != check_round(round):
        raise RoundMismatchError(f"the aggregate is of round {header.round}, not of round {round}")
    if base is not None and header.base != base:
        raise VerificationError(
            f"the aggregate of round {header.round} began from another global model than this site: the server shows "
            "sites different models, or this site has missed a round"
        )
    if project is not None:
        project.check_time()
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
