"""How a site that is behind comes to the open round: by the aggregates since, or by a model that a site has stored."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import StateError


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
        Rounds whose models and aggregates the server has.
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
        f"{missing}: wait until a site has stored a model"
    )


def stores_model(site: str, round: int, sites: Collection[str]) -> bool:
    """Return whether it is the turn of `site` to store the model that a round begins from.

    The sites of the aggregate that the model is made of, `sites`, take turns. If the one whose turn it is has gone, the
    model of the round is missing: the server keeps two models, and the aggregates of two rounds.
    """
    return sorted(sites)[round % len(sites)] == site
