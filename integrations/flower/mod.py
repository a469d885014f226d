"""The mod: what leaves a ClientApp is encrypted, and what comes to it is the global model."""

from __future__ import annotations

import os

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from secagg.errors import ConfigError, LayoutError, RangeError
from secagg.site import Follower

from .records import Order, from_model, log, only, to_array, to_bytes, to_model

KIT, STATE, METRICS = "secagg-kit", "secagg", "secagg-metrics"


def secagg_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Take part in encrypted aggregation: ``ClientApp(mods=[secagg_mod, …])``, as the outermost of the app's mods.

    The app finds the global model in ``train`` and ``evaluate`` where it always does, and replies as always. Its
    integer tensors stay its own. Its number of examples is the private weight, in whose place 1 is told; metrics that
    `SecAggStrategy` names travel encrypted with the next update, and what is told is their latest mean over all nodes.

    The kit is the folder ``secagg-kit`` of the SuperNode's ``--node-config``. Where the environment says
    ``SECAGG_SIMULATION=1``, it is ``secagg-kit`` of the run's configuration, or ``SECAGG_KIT`` of the environment, with
    the node's ``partition-id`` for ``{partition}``.

    Raises
    ------
    StateError
        If the strategy is not `SecAggStrategy`: nothing is sent. If the node has lost its state: then the next message
        brings all.
    ConfigError
        If there is no kit, or the run's configuration names one in a deployment.
    LayoutError
        If the app's reply is not one record of arrays, after training alone, and one of metrics.
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
    content[order.arrays_key] = to_model(follower.receive(order.handout, first))
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
        if evaluated.keys() & private.keys():
            raise LayoutError(f"train and evaluate both tell {', '.join(evaluated.keys() & private)}: name them apart")
        records[key] = _encrypt(follower, order, local, weight, private | evaluated)
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


def _encrypt(
    follower: Follower, order: Order, local: ArrayRecord, weight: float, metrics: dict[str, float]
) -> ArrayRecord:
    """Return what leaves in the place of a trained model."""
    try:
        sent = {"update": to_array(follower.encrypt(from_model(local), weight, metrics))}
    except RangeError as error:  # it names a weight or value, and the server reads what an app raises
        log.error("secagg: %s", error)
        raise RangeError("a value or the weight is out of bounds: the log of this node tells which") from None
    return ArrayRecord(sent | ({"model": to_array(follower.stored())} if order.handout.store else {}))


def _find_kit(context: Context) -> str:
    """Return the folder of a node's kit; `ConfigError` if there is none, or whoever starts the run would choose it."""
    place = context.node_config.get(KIT)
    if os.environ.get("SECAGG_SIMULATION") == "1":
        place = str(place or context.run_config.get(KIT) or os.environ.get("SECAGG_KIT", ""))
        place = place.replace("{partition}", str(context.node_config.get("partition-id")))
    elif KIT in context.run_config:
        raise ConfigError(
            f"the run's configuration names {KIT}: whoever starts a run would choose the keys; take it out, and start "
            f"each node by flower-supernode --node-config \"{KIT}='/folder'\" (a simulation: set SECAGG_SIMULATION=1)"
        )
    if not place or not isinstance(place, str):
        raise ConfigError(
            f"this node has no kit: start it by flower-supernode --node-config \"{KIT}='/folder'\" (a simulation: set "
            "SECAGG_SIMULATION=1 and SECAGG_KIT=/kits/site-{partition})"
        )
    return place


def _pop(metrics: MetricRecord, name: str) -> float:
    """Take a number out of the app's metrics; an error does not say what is there, for the server reads it."""
    value = metrics.pop(name, None)
    if not isinstance(value, (int, float)):
        raise LayoutError(f"the app's metrics have no number {name!r}")
    return value
