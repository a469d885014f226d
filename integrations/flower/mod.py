"""The mod: what leaves a ClientApp is encrypted, and what comes to it is the global model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from secagg.errors import ConfigError, ImplausibleSumError, LayoutError, RangeError, StateError
from secagg.site import Follower

from .records import WEIGHT, log, only, tensors_of, to_array, to_bytes, unpack

KIT, STATE, METRICS, ROUND = "secagg-kit", "secagg", "secagg-metrics", "secagg-round"


def secagg_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Take part in encrypted aggregation: ``ClientApp(mods=[secagg_mod, …])``, as the outermost of the app's mods.

    The app finds the global model in ``train`` and ``evaluate`` where it always does, and replies as always. Its
    integer tensors stay its own. Its ``num-examples`` is the private weight, in whose place 1 is told; metrics that
    `SecAggStrategy` names travel encrypted with the next update, and their mean over all nodes is told once the sum of
    the round after has confirmed it.

    The kit is the folder ``secagg-kit`` of the SuperNode's ``--node-config``. Where the environment says
    ``SECAGG_SIMULATION=1``, it may be ``secagg-kit`` of the run's configuration, or ``SECAGG_KIT`` of the environment,
    with the node's ``partition-id`` for ``{partition}``.

    Whatever is wrong is raised here, and becomes an error reply, which sends nothing: `StateError` if the strategy is
    not `SecAggStrategy`, or this node has lost its state, all of which comes with the next message; `ConfigError` if
    there is no kit, or the run's configuration names one in a deployment; what `secagg.site.Follower` refuses.
    """
    kind = message.metadata.message_type.partition(".")[0]
    if kind == MessageType.QUERY:  # all others are held against what is encrypted
        return call_next(message, context)
    content = RecordDict(dict(message.content))
    handout, arrays_key, first = unpack(content)
    found = context.state.get(STATE)
    runs = dict(found) if isinstance(found, ArrayRecord) else {}  # the strategy may start twice
    before = to_bytes(runs[handout.run]) if handout.run in runs else None
    if before == b"":
        raise StateError("this node has left the run for a later one, and goes through none twice")
    follower = Follower(_find_kit(context), before or b"")
    with _untold("the sum cannot be used"):
        model = follower.receive(handout, first)
    content[arrays_key] = ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})
    message.content = content
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    records = dict(reply.content)
    place, told = only(MetricRecord, records)
    weight = _pop(told, WEIGHT)
    private = {name: _pop(told, name) for name in handout.metrics if name in told}
    if kind == MessageType.TRAIN:
        key, local = only(ArrayRecord, records)
        kept = context.state.pop(METRICS, None)
        if not isinstance(kept, MetricRecord) or kept.get(ROUND) != handout.round:  # of an older model
            kept = MetricRecord()
        evaluated = {name: _pop(kept, name) for name in handout.metrics if name in kept}
        if (never := sorted(set(handout.metrics) - private.keys() - evaluated.keys())) and ROUND in kept:
            log.warning("secagg: the app has no metric %s; in the clear it tells %s", ", ".join(never), sorted(told))
        if evaluated.keys() & private:
            raise LayoutError(f"train and evaluate both tell {', '.join(evaluated.keys() & private)}: name them apart")
        with _untold("a value or the weight is out of bounds"):
            sent = {"update": to_array(follower.encrypt(tensors_of(local), weight, private | evaluated))}
        records[key] = ArrayRecord(sent | ({"model": to_array(follower.stored())} if handout.store else {}))
    elif any(isinstance(record, ArrayRecord) for record in records.values()):
        raise LayoutError("what evaluate replies has arrays, which would leave in the clear: take them out")
    else:
        context.state[METRICS] = MetricRecord({**private, ROUND: handout.round})
    means = {name: follower.confirmed[name] for name in private if name in follower.confirmed}
    records[place] = MetricRecord({**told, **means, WEIGHT: 1})
    reply.content = RecordDict(records)
    left = {name: to_array(b"") for name in runs}
    context.state[STATE] = ArrayRecord(left | {handout.run: to_array(follower.to_bytes())})
    return reply


@contextmanager
def _untold(what: str) -> Iterator[None]:
    """Keep back weights and values that an error names: the server reads what an app raises."""
    try:
        yield
    except (RangeError, ImplausibleSumError) as error:
        log.error("secagg: %s", error)
        raise type(error)(f"{what}: the log of this node tells why") from None


def _find_kit(context: Context) -> str:
    place, remedy = context.node_config.get(KIT), f"start each node by flower-supernode --node-config \"{KIT}='/kit'\""
    if os.environ.get("SECAGG_SIMULATION") == "1":
        place = str(place or context.run_config.get(KIT) or os.environ.get("SECAGG_KIT", ""))
        place = place.replace("{partition}", str(context.node_config.get("partition-id")))
    elif KIT in context.run_config:
        raise ConfigError(f"the run's configuration names {KIT}: who starts a run would choose the keys; {remedy}")
    if not place or not isinstance(place, str):
        raise ConfigError(f"this node has no kit; {remedy}; a simulation has SECAGG_SIMULATION=1 and SECAGG_KIT")
    return place


def _pop(metrics: MetricRecord, name: str) -> float:
    value = metrics.pop(name, None)
    if not isinstance(value, (int, float)):  # nor is it told what is there: the server reads it
        raise LayoutError(f"the app's metrics have no number {name!r}")
    return value
