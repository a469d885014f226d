"""What the rounds of a federation take on a disk."""

from __future__ import annotations

from ..trust.kit import active_sites
from ..trust.project import Project
from .choices import header

#: A disk with less free is as good as full, whatever rounds take: the system and its logs live on it, too. Rounds of a
#: model that is not known yet are taken to need as much.
LEAST_FREE_NBYTES = 1 << 30


def round_nbytes(project: Project, *, server: bool = True) -> int | None:
    """Return what rounds take on the disk, of the server or of a site, in bytes; None while the model is not known.

    Of the server: the updates of the open round, the aggregates of the last two rounds and the one that is being
    written, two models and the next one; calibrations as updates, and scales as aggregates. Of a site: its update, what
    it downloads, and two models.
    """
    if project.layout is None:
        return None
    count = len(active_sites(project))
    sent, sums = ["update"], ["aggregate"]
    if project.config.aggregation.precision == "auto":
        sent, sums = [*sent, "calibration"], [*sums, "scales"]
    update = sum(header(kind, 1, project.config, project.layout).nbytes for kind in sent)
    aggregate = sum(header(kind, count, project.config, project.layout).nbytes for kind in sums)
    model = header("model", 1, project.config, project.layout).nbytes
    return count * update + 3 * aggregate + 3 * model if server else update + aggregate + 2 * model
