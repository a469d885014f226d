"""The rounds of a federation at one site: train, encrypt, upload, wait, check and decrypt, and go on from the sum."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import QuorumError, RoundMismatchError, SecAggError
from ..scheme.params import QuantisedParams
from .participant import Participant
from .record import SiteRecord, show_metrics
from .task import CheckedTask


def take_part(
    participant: Participant, task: CheckedTask, rounds: int, keep: Callable[[SiteRecord], None]
) -> dict[str, float]:
    """Go through the rounds of a federation that this site has joined, until it has done so many.

    A round that ended without this site is missed, and the site goes on with the open one.

    Parameters
    ----------
    participant : Participant
        Has joined.
    task : CheckedTask
        What is trained.
    rounds : int
        Of the federation, also those without this site.
    keep : callable
        Called with the record of each round of this site.

    Returns
    -------
    dict of str to float
        The metrics of the global model after them, which the model of `task` holds then.

    Raises
    ------
    TaskError
        If the code of the task raises anything. This site goes on when it is started again.
    SecAggError
        Whatever an update, an aggregate or a call is refused for.
    """
    model, news = participant.model, participant.reporter.news
    while model.round < rounds:
        try:
            keep(_one_round(participant, task, rounds))
            if model.round < rounds:
                participant.join()  # sites may have been added or removed since: the server shows the manifest
        except RoundMismatchError as error:  # the round ended without this site
            missed = model.round
            participant.join()
            if model.round == missed:
                raise
            news(f"{_name(missed, rounds)}: missed: {error}")
    participant.clear()
    return _measure(participant, task)


def _one_round(participant: Participant, task: CheckedTask, rounds: int) -> SiteRecord:
    """Take part in the round that the global model is at."""
    model, reporter = participant.model, participant.reporter
    round, here, params = model.round, _name(model.round, rounds), model.site.config.params
    train_seconds, encrypt_seconds, clipped = 0.0, 0.0, 0
    if participant.has_update():
        reporter.news(f"{here}: going on with the update that was encrypted before")
    else:
        weight = task.examples
        model.site.check_weight(weight)  # it may have changed since the last round
        task.load(model.state)
        start = time.perf_counter()
        with reporter.step(f"{here}: train") as report:
            task.train(round, report)
            trained = time.perf_counter()
            participant.encrypt(task.state, weight)
        train_seconds, encrypt_seconds = trained - start, time.perf_counter() - trained
        if isinstance(params, QuantisedParams) and params.overflow == "clip":
            clipped = model.site.clipped
            reporter.news(f"{here}: clipped {clipped:,} values beyond max_abs")
    start = time.perf_counter()
    with reporter.step(f"{here}: upload {participant.update_nbytes / 1e6:.1f} MB") as report:
        participant.upload(report)
    sent = time.perf_counter()
    with reporter.step(f"{here}: wait for others") as report:
        try:
            aggregate = participant.download(report)
        except QuorumError as error:
            raise QuorumError(
                f"{error}; this site's update stays in the sum: the same command, started again, goes on waiting, and "
                "does not train again"
            ) from error
    received = time.perf_counter()
    with aggregate:
        participant.receive(aggregate)
        header = aggregate.header
    try:
        participant.store_model(header)
    except SecAggError as error:  # another site stores the next one
        reporter.warning(f"{here}: the global model is not stored on the server: {error}")
    metrics, verified = _measure(participant, task), model.site.verified
    how = "verified" if verified else f"not ({params.scheme} is approximate) verified"
    sums = f"sum of {len(header.sites)} updates, {how}"
    reporter.news(f"{here}: {show_metrics(metrics)}; {sums}" if metrics else f"{here}: {sums}")
    return SiteRecord(
        round=round,
        metrics=metrics,
        nbytes=participant.update_nbytes,
        train_seconds=train_seconds,
        encrypt_seconds=encrypt_seconds,
        upload_seconds=sent - start,
        wait_seconds=received - sent,
        decrypt_seconds=participant.decrypt_seconds,
        clipped=clipped,
        verified=verified,
    )


def _measure(participant: Participant, task: CheckedTask) -> dict[str, float]:
    """Return the metrics of the global model."""
    task.load(participant.model.state)
    return task.validate()


def _name(round: int, rounds: int) -> str:
    return f"round {round} ({round + 1} of {rounds})"
