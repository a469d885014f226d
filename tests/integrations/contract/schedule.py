"""What happens in the federated run that is the same through each integration, and what is seen of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from provisioned import Federation

State = Mapping[str, Any]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Turn:
    """A round. Who is in neither list gives nothing to it, and may not know that there is one.

    Parameters
    ----------
    sites : tuple of str
        Whose updates are in the sum.
    lost : tuple of str
        Who trains and encrypts, and whose update gets lost on its way. It takes part in the next round: a site that
        returns when only a stored model leads back cannot tell whether what it sent last was in a sum.
    restarts : tuple of str
        Whose process ends after it has encrypted: another one applies the aggregate, and trains in the next rounds,
        with what the first has kept.
    """

    sites: tuple[str, ...]
    lost: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()

    @property
    def trains(self) -> tuple[str, ...]:
        return tuple(sorted(self.sites + self.lost))


SITES = ("site-1", "site-2", "site-3", "site-4")

#: One site misses a round, one comes late, the update of one is lost, and some are restarted, that one among them.
SCHEDULE = (
    Turn(("site-1", "site-2", "site-3")),
    Turn(("site-1", "site-3"), restarts=("site-3",)),
    Turn(("site-1", "site-2", "site-4"), lost=("site-3",), restarts=("site-1", "site-3")),
    Turn(SITES, restarts=("site-2",)),
)

#: The same, where nothing is restarted.
UNDISTURBED = tuple(replace(turn, restarts=()) for turn in SCHEDULE)


class Task(Protocol):
    """What sites train: a function of the global model, the site and the round alone, bit for bit."""

    weights: Mapping[str, int]

    def initial(self) -> State:
        """The first global model, in tensors of the task's library."""

    def train(self, site: str, round: int, state: State) -> State:
        """What the training of a site makes of a global model, which stays as it is."""


@dataclass
class Run:
    """What sites have seen: the global model before each training and at the end, and what each training has made."""

    begun: dict[tuple[int, str], Arrays] = field(default_factory=dict)
    trained: dict[tuple[int, str], Arrays] = field(default_factory=dict)
    final: dict[str, Arrays] = field(default_factory=dict)

    def train(self, task: Task, site: str, round: int, state: State) -> State:
        """Train, and remember it."""
        begun = arrays(state)
        local = task.train(site, round, state)
        self.saw(site, round, begun, local)
        return local

    def saw(self, site: str, round: int, begun: State, local: State) -> None:
        assert (round, site) not in self.begun, f"{site} trains twice in round {round}"
        self.begun[round, site], self.trained[round, site] = arrays(begun), arrays(local)

    def models(self, round: int) -> dict[str, Arrays]:
        """The global model that each site had at the beginning of a round."""
        return {site: state for (number, site), state in self.begun.items() if number == round}


#: Kits of the federation, in a folder of the run's own; what is trained; and when.
Driver = Callable[[Federation, Task, Sequence[Turn]], Run]


def arrays(state: State) -> Arrays:
    """Copies of tensors of either library, as NumPy arrays."""
    return {
        name: np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
        for name, value in state.items()
    }
