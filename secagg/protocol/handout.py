"""What a server hands to a site where a framework carries the messages, one exchange a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, FormatError, show
from ..scheme.metric_names import check_metrics
from ..wire.header import check_round

#: Characters of the name of a run.
MAX_RUN_LENGTH = 64

#: Aggregates in one handout.
MAX_AGGREGATES = 10_000

_FACTS = {"run": str, "round": int, "first": bool, "store": bool, "metrics": list}


@dataclass(frozen=True)
class Handout:
    """What brings a site to the current round; nothing in it has been verified but its form.

    Parameters
    ----------
    run : str
        Name of the run, which goes into the digest of its first global model.
    round : int
        The round that is trained next.
    manifest : bytes
        The server's project manifest, signed.
    first : bool
        Whether the site may have no global model yet. Then the framework brings the first one, in the clear.
    model : bytes
        An encrypted global model, for who has an older one; or empty.
    aggregates : tuple of bytes
        Those that follow, the oldest first.
    store : bool
        Whether the site is to return the encrypted global model with its update.
    metrics : tuple of str
        Names of the metrics that travel encrypted with updates.
    """

    run: str
    round: int
    manifest: bytes = field(repr=False)
    first: bool = False
    model: bytes = field(default=b"", repr=False)
    aggregates: tuple[bytes, ...] = field(default=(), repr=False)
    store: bool = False
    metrics: tuple[str, ...] = ()

    def facts(self) -> dict[str, str | int | bool | list[str]]:
        """Return what is small, as JSON has it."""
        return {
            "run": self.run,
            "round": self.round,
            "first": self.first,
            "store": self.store,
            "metrics": list(self.metrics),
        }

    def blobs(self) -> dict[str, bytes]:
        """Return what may be large."""
        aggregates = {f"aggregate-{index}": blob for index, blob in enumerate(self.aggregates)}
        return {"manifest": self.manifest} | ({"model": self.model} if self.model else {}) | aggregates

    @classmethod
    def from_parts(cls, facts: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Handout:
        """Make it again from what `facts` and `blobs` have returned.

        Raises
        ------
        FormatError
            If they are something else.
        """
        if facts.keys() != _FACTS.keys():
            raise FormatError(
                f"a handout has {', '.join(_FACTS)}; this one has {', '.join(sorted(facts)) or 'nothing'}"
            )
        for name, kind in _FACTS.items():
            if type(facts[name]) is not kind:
                raise FormatError(f"{name} of a handout is {show(facts[name])}, not of type {kind.__name__}")
        if len(facts["run"]) > MAX_RUN_LENGTH:
            raise FormatError(f"a run's name has at most {MAX_RUN_LENGTH} characters; got {len(facts['run'])}")
        for name, blob in blobs.items():
            if not isinstance(blob, bytes):
                raise FormatError(f"{name} of a handout is bytes, not {type(blob).__name__}")
        names = [f"aggregate-{index}" for index in range(min(len(blobs), MAX_AGGREGATES + 1))]
        aggregates = tuple(blobs[name] for name in names if name in blobs)
        known = {"manifest", "model", *names[: len(aggregates)]}
        if "manifest" not in blobs or not blobs.keys() <= known:
            raise FormatError(
                f"a handout has a manifest, perhaps a model, and aggregates in order; this has {sorted(blobs)}"
            )
        try:
            round, metrics = check_round(facts["round"]), check_metrics(facts["metrics"])
        except ConfigError as error:
            raise FormatError(f"a handout is invalid: {error}") from error
        return cls(
            facts["run"],
            round,
            blobs["manifest"],
            facts["first"],
            blobs.get("model", b""),
            aggregates,
            facts["store"],
            metrics,
        )
