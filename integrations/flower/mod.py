"""The mod: what leaves a ClientApp is encrypted, and what comes to it is the global model."""

from __future__ import annotations

import os

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from secagg.errors import ConfigError, LayoutError, RangeError
from secagg.site import Follower

from .records import Order, log, only, tensors_of, to_array, to_bytes

KIT, STATE, METRICS = "secagg-kit", "secagg", "secagg-metrics"


def secagg_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Take part in encrypted aggregation: ``ClientApp(mods=[secagg_mod, …])``, as the outermost of the app's mods.

    The app finds the global model in ``train`` and ``evaluate`` where it always does, and replies as always. Its
    integer tensors stay its own. Its number of examples is the private weight, in whose place 1 is told; metrics that
    `SecAggStrategy` names travel encrypted with the next update, and what is told is their latest mean over all nodes.

    The kit is the folder ``secagg-kit`` of the SuperNode's ``--node-config``. Where the environment says
    ``SECAGG_SIMULATION=1``, it may be ``secagg-kit`` of the run's configuration, or ``SECAGG_KIT`` of the environment,
    with the node's ``partition-id`` for ``{partition}``.

    Raises
    ------
    StateError
        If the strategy is not `SecAggStrategy`; if the node has lost its state, before the next message brings all.
    ConfigError
        If there is no kit, or the run's configuration names one in a deployment.
    LayoutError
        If the app's reply is not one record of metrics and, after training alone, one of arrays.
    SecAggError
        Whatever `secagg.site.Follower` refuses.
    """
    kind = message.metadata.message_type.partition(".")[0]
    if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        return call_next(message, context)
    content = RecordDict(dict(message.content))
    order, first = Order.take(content)
    run, kept = context.state.get(STATE), context.state.get(METRICS)
    before = run.get(order.handout.run) if isinstance(run, ArrayRecord) else None  # the strategy may start twice
    follower = Follower(_find_kit(context), to_bytes(before) if before else b"")
    model = follower.receive(order.handout, first)
    content[order.arrays_key] = ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})
    message.content = content
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    records = dict(reply.content)
    place, told = only(MetricRecord, records)
    weight = _pop(told, order.weight_key)
    private = {name: _pop(told, name) for name in order.handout.metrics if name in told}
    if kind == MessageType.TRAIN:
        key, local = only(ArrayRecord, records)
        evaluated = {name: _pop(kept, name) for name in tuple(kept)} if isinstance(kept, MetricRecord) else {}
        if evaluated.keys() & private:
            raise LayoutError(f"train and evaluate both tell {', '.join(evaluated.keys() & private)}: name them apart")
        try:
            sent = {"update": to_array(follower.encrypt(tensors_of(local), weight, private | evaluated))}
        except RangeError as error:  # it names a weight or value, and the server reads what an app raises
            log.error("secagg: %s", error)
            raise RangeError("a value or the weight is out of bounds: the log of this node tells which") from None
        records[key] = ArrayRecord(sent | ({"model": to_array(follower.stored())} if order.handout.store else {}))
        context.state.pop(METRICS, None)
    elif any(isinstance(record, ArrayRecord) for record in records.values()):
        raise LayoutError("what evaluate replies has arrays, which would leave in the clear: take them out")
    else:
        context.state[METRICS] = MetricRecord({**private})
    means = {name: follower.means[name] for name in private if name in follower.means}
    records[place] = MetricRecord({**told, **means, order.weight_key: 1})
    reply.content = RecordDict(records)
    context.state[STATE] = ArrayRecord({order.handout.run: to_array(follower.to_bytes())})
    return reply


def _find_kit(context: Context) -> str:
    place, start = context.node_config.get(KIT), f"flower-supernode --node-config \"{KIT}='/folder'\""
    if os.environ.get("SECAGG_SIMULATION") == "1":
        place = str(place or context.run_config.get(KIT) or os.environ.get("SECAGG_KIT", ""))
        place = place.replace("{partition}", str(context.node_config.get("partition-id")))
    elif KIT in context.run_config:
        raise ConfigError(
            f"{KIT} is in the run's configuration: whoever starts a run would choose the keys; take it out, and start "
            f"nodes by {start}; a simulation, by SECAGG_SIMULATION=1"
        )
    if not place or not isinstance(place, str):
        raise ConfigError(
            f"this node has no kit: start it by {start}; a simulation, by SECAGG_SIMULATION=1 "
            "SECAGG_KIT=/kits/site-{partition}"
        )
    return place


def _pop(metrics: MetricRecord, name: str) -> float:
    value = metrics.pop(name, None)
    if not isinstance(value, (int, float)):  # nor is it told what is there: the server reads it
        raise LayoutError(f"the app's metrics have no number {name!r}")
    return value
