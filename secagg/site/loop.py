"""The rounds of a federation at one site: train, encrypt, upload, wait, check and decrypt, and go on from the sum."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

from ..client import Client
from ..errors import (
    ConfigError,
    ManifestMismatchError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    show_size,
)
from ..scheme.report import TensorReport
from ..setup.progress import Report
from ..wire.update import Update
from .participant import Participant
from .record import SiteRecord, show_metrics
from .task import CheckedTask
from .validation import Validation


def take_part(
    participant: Participant, task: CheckedTask, rounds: int, keep: Callable[[SiteRecord], None]
) -> dict[str, float]:
    """Go through the rounds of a federation that this site has joined, until it has done so many.

    Of what the task measures of the model that a round begins from, the metrics of the configuration go with the
    update.

    A round that ended without this site is missed, and the site goes on with the open one. For one that was voided,
    because a site was revoked in it, this one encrypts again, and does not train again. One for which the task has no
    examples is skipped: nobody waits for this site, which takes over the mean of the others.

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
    validation = Validation(participant, task)
    with closing(rounds_to_train(participant, task, rounds, keep, validation)) as turns:
        for report in turns:
            task.train(participant.model.round, report)
    return validation()


def rounds_to_train(
    participant: Participant,
    task: CheckedTask,
    rounds: int,
    keep: Callable[[SiteRecord], None],
    validation: Validation,
) -> Generator[Report, None, None]:
    """Do as `take_part`, but leave training to the caller, whenever this yields: `task` holds the global model then.

    Yields
    ------
    callable
        To be called with how far training is.
    """
    model, news = participant.model, participant.reporter.news
    if model.round < rounds:
        validation.check()
    while (missed := model.round) < rounds:
        try:
            keep((yield from _one_round(participant, task, rounds, validation)))
            if model.round < rounds:
                participant.join()  # sites may have been added or removed since: the server shows the manifest
        except RoundMismatchError as error:  # the round ended without this site
            participant.join()
            if model.round == missed:
                raise
            news(f"{round_name(missed, rounds)}: missed: {error}")
    participant.clear()
    participant.leave()


def check_rounds(rounds: object) -> None:
    """Raise `ConfigError` unless it is a number of rounds."""
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"{rounds!r} rounds are to be trained; give a whole number of at least 1")


def check_examples(site: Client, task: CheckedTask) -> float:
    """Return the weight of a task, its examples; 0, with which it skips a round. `RangeError` if it can be neither."""
    weight = task.examples
    if weight != 0:
        site.check_weight(weight)
    return weight


@dataclass(frozen=True)
class _Given:
    """What a site has given to a round: fields of `SiteRecord`."""

    nbytes: int = 0
    train_seconds: float = 0.0
    encrypt_seconds: float = 0.0
    upload_seconds: float = 0.0
    calibration_nbytes: int = 0
    calibrate_seconds: float = 0.0
    bits: float = 0.0
    clipped: int = 0


def _one_round(
    participant: Participant, task: CheckedTask, rounds: int, validation: Validation
) -> Generator[Report, None, SiteRecord]:
    """Take part in the round that the global model is at."""
    model, reporter = participant.model, participant.reporter
    round, here = model.round, round_name(model.round, rounds)
    given = yield from _give(participant, task, here, validation)
    while True:
        try:
            start = sent = time.perf_counter()
            if given.nbytes:
                with reporter.step(f"{here}: upload {show_size(given.nbytes)}") as report:
                    participant.upload(report)
                sent = time.perf_counter()
            given = replace(given, upload_seconds=given.upload_seconds + sent - start)
            with _wait(participant, given, here) as aggregate:
                received, header = time.perf_counter(), aggregate.header
                participant.receive(aggregate)
            break
        except (ManifestMismatchError, ScalesMismatchError) as error:  # a site that gives nothing learns by the sum
            if not participant.renew(error):
                given = yield from _give(participant, task, here, validation)
    try:
        participant.store_model(header)
    except SecAggError as error:  # another site stores the next one
        reporter.warning(f"{here}: the global model is not stored on the server: {error}")
    metrics, sums = validation(), f"sum of {len(header.sites)} updates, verified"
    reporter.news(f"{here}: {show_metrics(metrics)}; {sums}" if metrics else f"{here}: {sums}")
    return SiteRecord(
        round=round,
        metrics=metrics,
        wait_seconds=received - sent,
        decrypt_seconds=participant.decrypt_seconds,
        verified=model.site.verified,
        means=dict(model.metrics),
        **asdict(given),
    )


def _wait(participant: Participant, given: _Given, here: str) -> Update:
    """Wait for the aggregate of the round."""
    with participant.reporter.step(f"{here}: wait for others") as report:
        try:
            return participant.download(report)
        except QuorumError as error:
            if not given.nbytes:
                raise
            raise QuorumError(
                f"{error}; this site's update stays in the sum: the same command, started again, goes on waiting, and "
                "does not train again"
            ) from error


def _give(
    participant: Participant, task: CheckedTask, here: str, validation: Validation
) -> Generator[Report, None, _Given]:
    """Train and encrypt, or skip the round if there is nothing to train with."""
    model, reporter = participant.model, participant.reporter
    if participant.has_update():
        reporter.news(f"{here}: going on with the update that was encrypted before")
        return _Given(participant.update_nbytes)
    start = trained = time.perf_counter()
    if participant.has_trained():
        reporter.news(f"{here}: going on with what was trained before")
        participant.encrypt_again()
    elif weight := check_examples(model.site, task):  # they may have changed since the last round
        metrics = validation.to_send(weight)
        task.load(model.state)  # validation may have changed it, as BatchNorm's statistics
        with reporter.step(f"{here}: train") as report:
            yield report
        trained = time.perf_counter()
        participant.encrypt(task.state, weight, metrics)
    else:
        reporter.news(f"{here}: skipped, for lack of examples")
        participant.skip()
        return _Given()
    waited, bits, clipped = participant.calibrate_seconds, 0.0, 0
    if (sent := model.site.report) is not None:
        bits, clipped = sent.overall.bits, sent.overall.clipped
        reporter.news(f"{here}: {_show_precision(sent.overall)}")
    elif model.site.config.aggregation.precision == "previous":
        reporter.news(f"{here}: this update measures only, and leaves the global model as it is")
    return _Given(
        nbytes=participant.update_nbytes,
        train_seconds=trained - start,
        encrypt_seconds=time.perf_counter() - trained - waited,
        calibration_nbytes=participant.calibration_nbytes,
        calibrate_seconds=waited,
        bits=bits,
        clipped=clipped,
    )


def _show_precision(sent: TensorReport) -> str:
    """Return how precisely an update was sent, for a line of text."""
    clipped = f", {sent.clipped:,} of {sent.values:,} clipped" if sent.clipped else ""
    return f"{sent.bits:.1f} bits a value{clipped}"


def round_name(round: int, rounds: int) -> str:
    """Return a round for a line of text: ``round 0 (1 of 4)``."""
    return f"round {round} ({round + 1} of {rounds})"
