"""What the rounds of a federation take on a disk."""

from __future__ import annotations

from ..trust.kit import active_sites
from ..trust.project import Project
from .sizes import header, sizes_of

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
    sizes = sizes_of(project.config, project.layout, count)
    model = header("model", 1, project.config, project.layout).nbytes
    if server:
        return count * sizes.up_nbytes + 3 * sizes.down_nbytes + 3 * model
    return sizes.up_nbytes + sizes.down_nbytes + 2 * model
