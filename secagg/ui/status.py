"""How a server stands, held against the own kit and clock: what needs attention; all of it for people, or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..errors import QuorumError, SecAggError, show_size
from ..protocol.messages import ServerStatus
from ..setup.disk import LEAST_FREE_NBYTES, round_nbytes
from ..trust.project import CLOCK_SKEW_SECONDS, EXPIRES_SOON_SECONDS, Project
from ..wire.header import SUMS
from .units import show_seconds

if TYPE_CHECKING:
    from ..site import Session

#: Share of the quota from which on the run folder is full.
_FULL = 0.9


def ask(session: Session) -> tuple[ServerStatus, float]:
    """Return how the server stands, and by how many seconds its clock is ahead of this one."""
    session.status()  # connects: the answer to the next call is quick, and says what time it is
    before = time.time()
    status = session.status()
    return status, status.time - (before + time.time()) / 2


@dataclass(frozen=True)
class Report:
    """What the server says, held against the own kit and clock.

    Parameters
    ----------
    server : str
        Where it listens.
    status : ServerStatus
        Its answer.
    project : Project
        The manifest of the own kit.
    clock_difference : float
        Seconds by which the server's clock is ahead of this one.
    now : float
        Seconds since 1970.
    """

    server: str
    status: ServerStatus
    project: Project
    clock_difference: float
    now: float

    @property
    def not_joined(self) -> list[str] | None:
        """Sites of the project that the round neither has nor waits for; None if the kit's list is an older one."""
        if self._has_older_list:
            return None
        known = {*self.status.added, *self.status.skipped, *self.status.waiting_for}
        return sorted({site.name for site in self.project.sites if not site.revoked} - known)

    def problems(self) -> Iterable[str]:
        """What needs attention, each with its remedy."""
        status, project = self.status, self.project
        if self._failed:
            yield self._quorum()
        if self._out_of_reach:
            skipped, least = status.skipped, project.config.aggregation.min_clients
            what = f"{status.stage or 'update'}s"
            yield f"{', '.join(skipped)} {'skips' if len(skipped) == 1 else 'skip'}, so {least} {what} cannot come"
        if project.epoch < status.epoch:
            yield (
                f"this kit is out of date, it has epoch {project.epoch} of the HE key, the server {status.epoch}: "
                "unpack the newest kit here"
            )
        if project.serial > status.project_serial:
            yield (
                f"the server is under manifest {status.project_serial}, this kit has {project.serial}: if the server "
                "was started with its newest kit, that serves from the next round on, as its log says; else unpack "
                "the newest kit there, and start the server again"
            )
        if abs(self.clock_difference) > CLOCK_SKEW_SECONDS:
            yield f"the clocks are {show_seconds(abs(self.clock_difference))} apart: set both by NTP"
        if status.trouble:
            what = f"the {self._sum} of round {status.round}"
            yield f"the server could not store {what}, and tries again: {status.trouble}"
        yield from self._disk_problems()
        if self.now > project.expires - EXPIRES_SOON_SECONDS:
            left = project.expires - self.now
            when = f"expires in {show_seconds(left)}" if left > 0 else "has expired"
            yield f"the project {when}: have it renewed by `secagg rotate`"

    def check(self) -> None:
        """Raise `QuorumError` or `SecAggError` if something needs attention."""
        if self._failed:
            raise QuorumError(self._quorum())
        problems = "; ".join(self.problems())
        if problems:
            raise SecAggError(problems)

    def json(self) -> str:
        """Return all of it as one line."""
        data = asdict(self.status)
        data |= {
            "server": self.server,
            "base": self.status.base.hex() if self.status.base else None,
            "not_joined": self.not_joined,
            "own_project_serial": self.project.serial,
            "clock_difference": round(self.clock_difference, 3),
            "problems": list(self.problems()),
        }
        return json.dumps(data, sort_keys=True)

    def text(self) -> str:
        """Return all of it as lines for people."""
        status, project = self.status, self.project
        left = "" if status.seconds_left is None else f", {show_seconds(status.seconds_left)} left"
        stage = f"stage {status.stage}, " if status.stage else ""
        ahead = "ahead of" if self.clock_difference >= 0 else "behind"
        rows = [
            ("server", f"{self.server}, epoch {status.epoch} of the key"),
            ("project", f"{project.name}, manifest {status.project_serial} (this kit: {project.serial})"),
            ("round", f"{status.round}, {stage}attempt {status.attempt}, {status.state}{left}"),
            ("added", f"{_names(status.added)} (at least {project.config.aggregation.min_clients} are needed)"),
            ("skipped", _names(status.skipped)),
            ("waiting for", _names(status.waiting_for)),
            ("not joined", self._not_joined()),
            ("aggregates", _rounds(status.aggregates)),
            ("models", _rounds(status.models)),
            ("uploads", f"{status.uploads_in_flight} in flight"),
            ("disk", self._disk()),
            ("clock", f"{abs(self.clock_difference):.1f} s {ahead} this one"),
        ]
        lines = [f"{name:<12} {text}" for name, text in rows]
        return "\n".join([*lines, *(f"ATTENTION    {problem}" for problem in self.problems())])

    @property
    def _sum(self) -> str:
        return SUMS.get(self.status.stage, "aggregate")

    @property
    def _failed(self) -> bool:
        # While the clock stands still, nobody waits: the federation has ended, say.
        return self.status.attempt > 1 and self.status.state == "open"

    @property
    def _out_of_reach(self) -> bool:
        # Where nothing was added, nobody waits for more: sites skip the round after their last one.
        status = self.status
        if not (status.added and status.skipped) or self.not_joined is None:
            return False
        most = len(status.added) + len(status.waiting_for) + len(self.not_joined)
        return most < self.project.config.aggregation.min_clients

    @property
    def _has_older_list(self) -> bool:
        # No fault: sites that stay get no new kit when others come and go.
        return self.project.serial < self.status.project_serial

    def _not_joined(self) -> str:
        if self.not_joined is not None:
            return _names(self.not_joined)
        return (
            f"unknown: this kit has manifest {self.project.serial}, the server {self.status.project_serial}; "
            "`secagg site` takes it when it joins"
        )

    def _quorum(self) -> str:
        missing = ", ".join([*self.status.waiting_for, *(self.not_joined or ())]) or "nobody"
        if self.not_joined is None and missing == "nobody":
            missing = f"unknown to this kit, of manifest {self.project.serial}"
        often = "once" if self.status.attempt == 2 else f"{self.status.attempt - 1} times"
        what = "scales" if self._sum == "scales" else "a sum"
        return (
            f"round {self.status.round} has ended {often} without {what}, for too few sites or since one was removed, "
            f"and is open again; missing: {missing}"
        )

    def _disk(self) -> str:
        free = "" if self.status.disk_free is None else f", {show_size(self.status.disk_free)} free"
        return f"{show_size(self.status.disk_used)} of {show_size(self.status.disk_quota)}{free}"

    def _disk_problems(self) -> Iterator[str]:
        status, rounds = self.status, round_nbytes(self.project) or 0
        left = max(status.disk_quota - status.disk_used, 0)
        if status.disk_used >= _FULL * status.disk_quota:
            yield f"the run folder takes {self._disk()}: raise --disk-quota, if the disk has room"
        elif status.disk_quota < rounds:
            yield (
                f"rounds take up to {show_size(rounds)}, the quota is {show_size(status.disk_quota)}: uploads may be "
                "refused; raise --disk-quota"
            )
        # What the quota forbids to use, the disk need not have.
        least = min(max(rounds - status.disk_used, LEAST_FREE_NBYTES), left)
        if status.disk_free is not None and status.disk_free < least:
            yield f"the disk of the run folder has {show_size(status.disk_free)} free, rounds may take more: make room"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)}: {', '.join(names)}" if names else "nobody"


def _rounds(rounds: Iterable[int]) -> str:
    return ", ".join(f"round {round}" for round in rounds) or "none"
