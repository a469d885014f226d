"""Rounds of a federation for a training loop that is there already, such as a framework's."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ..client import Client
from ..trust.kit import SiteKit, site_kit
from ..trust.kit_files import locked
from .global_model import GlobalModel
from .loop import check_examples, check_rounds, round_name, rounds_to_train
from .participant import Participant
from .record import SiteRecord
from .reporter import Logged, Reporter
from .session import Session
from .task import CheckedTask
from .validation import Validation


def train_rounds(
    kit: SiteKit | str | os.PathLike[str],
    session: Session,
    model: Any,
    examples: float,
    rounds: int,
    reporter: Reporter | None = None,
) -> Generator[int, None, None]:
    """Join a federation, and yield each of its rounds that is to be trained.

    ::

        for round in train_rounds("site-1", session, network, len(dataset), rounds=5):
            train(network)

    The model holds the global model when a round is yielded, and after the last one; training changes it in place.
    When the caller comes back for the next round, what was trained is encrypted, calibrated if need be, and sent; this
    waits for the others, checks, decrypts and applies the mean. Who breaks off the loop, or closes what this returns,
    says so to the server, and the reporter has a warning: the others do not wait for this site in the open round.
    Whatever interrupts it, also while it waits for the others, another call goes on, in another process too: what was
    encrypted counts, and is not trained again.

    Parameters
    ----------
    kit : path or SiteKit
        The site's kit: its folder is locked until the end, and holds what another process goes on from.
    session : Session
        Its connection, with the kit's project; it is not closed.
    model : torch.nn.Module, or dict of str to torch.Tensor or numpy.ndarray
        Alike at all sites in the beginning. Wrappers count for nothing, see `network_state`.
    examples : float
        The private weight of this site in the mean: its number of training examples. With 0 it takes over the mean of
        the others, and nothing is yielded.
    rounds : int
        Of the federation, also those without this site.
    reporter : Reporter, optional
        Is told what happens; without one, the logger ``secagg.site`` is.

    Raises
    ------
    ConfigError
        If the number of rounds is none, or another process of the site is at work.
    KeyFileError, IdentityError
        If the kit is damaged, or not that of a site; if it has expired, or the site has been revoked.
    LayoutError, MismatchError
        If the model is another than the project's, or than that of the others.
    RangeError
        If the configuration does not allow that many examples.
    QuorumError
        If the others stay away.
    SecAggError
        Whatever else an update, an aggregate or a call is refused for.
    """
    check_rounds(rounds)
    kit = site_kit(kit)
    kit.project.check_time()
    with locked(kit.folder):
        site, task = Client.load(kit), CheckedTask("of this loop", _Trained(model, examples))
        check_examples(site, task)
        participant = Participant(kit, session, GlobalModel(site, task.state), reporter or Logged())
        participant.join()
        with closing(rounds_to_train(participant, task, rounds, _forget, Validation(participant, task))) as turns:
            for _ in turns:
                try:
                    yield participant.model.round
                except GeneratorExit:  # the caller has had enough of it
                    here = round_name(participant.model.round, rounds)
                    participant.reporter.warning(f"{here}: this site leaves, and has not trained for it")
                    participant.leave()
                    raise
        task.load(participant.model.state)


@dataclass
class _Trained:
    """A task that is trained elsewhere."""

    model: Any
    examples: float

    def train(self, round: int) -> None:
        """Do nothing."""


def _forget(record: SiteRecord) -> None:
    """What a round was, the reporter has been told."""
