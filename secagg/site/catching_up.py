"""How a site that is behind comes to the open round: by the aggregates since, or by a model that a site has stored."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ..errors import MismatchError, RoundMismatchError, StateError
from ..protocol.messages import ServerStatus
from .global_model import GlobalModel

#: How often a server may say that it has a model or an aggregate, and then that it has not.
MAX_MISSES = 5

_BEHIND = "was restored from a backup, or plays back what has been"


def catch_up(
    model: GlobalModel, ask: Callable[[], ServerStatus], step: Callable[[ServerStatus], None], advice: str = ""
) -> None:
    """Bring a global model to the open round, step by step.

    Parameters
    ----------
    model : GlobalModel
        The site's.
    ask : callable
        Asks the server how it stands.
    step : callable
        Brings the model nearer to the open round: by a stored model or an aggregate, as `model_to_load` says.
    advice : str
        What to do about a server that is behind this site.

    Raises
    ------
    StateError
        If the server is behind this site.
    MismatchError
        If the others train from another global model.
    RoundMismatchError
        If the server has, again and again, not what it said to have.
    """
    misses, status = 0, ask()
    while model.round != status.round:
        if model.round > status.round:
            raise StateError(
                f"the server is at round {status.round}, this site at round {model.round}: it {_BEHIND}{advice}"
            )
        try:
            step(status)
        except RoundMismatchError:  # it has been replaced by a newer one since
            misses += 1
            if misses == MAX_MISSES:
                raise
        status = ask()
    if status.base not in (None, model.base):
        raise MismatchError(
            f"round {status.round} begins from another global model than this site has: give all sites the same "
            f"initial model; or the server {_BEHIND}{advice}"
        )


def model_to_load(
    here: int, until: int, models: Collection[int], aggregates: Collection[int], begun: bool
) -> int | None:
    """Return the round of the stored model that a site loads next; None if it applies the aggregate of its own round.

    Parameters
    ----------
    here : int
        The round that the site's global model is at.
    until : int
        The round that it is to come to.
    models, aggregates : collection of int
        Rounds whose models and aggregates the server has, and which the site can use.
    begun : bool
        Whether the site's model is more than the initial one, so that the aggregates since are enough.

    Raises
    ------
    StateError
        If the server keeps too little.
    """
    missing = next((number for number in range(here, until) if number not in aggregates), None)
    later = [number for number in models if number > here]
    if later and (missing is not None or not begun):
        return max(later)
    if missing is None:
        return None
    raise StateError(
        f"this site has the model of round {here}; the server keeps no later model, and no aggregate of round "
        f"{missing} that this site can use: wait until a site has stored a model, and start again"
    )


def stores_model(site: str, round: int, sites: Collection[str]) -> bool:
    """Return whether it is the turn of `site` to store the model that a round begins from.

    The sites of the aggregate that the model is made of, `sites`, take turns. If the one whose turn it is has gone, the
    model of the round is missing: the server keeps two models, and the aggregates of two rounds.
    """
    return sorted(sites)[round % len(sites)] == site
