"""The strategy: adds what it cannot read, where the strategy that it wraps would average."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from secagg.errors import ConfigError, FormatError, QuorumError, SecAggError, StateError, TransportError, show
from secagg.protocol import shown
from secagg.server import Relay
from secagg.trust import ServerKit

from .grid import OneByOne
from .records import BLOBS, FACTS, FIRST, WEIGHT, log, only, pack, tensors_of, to_array, to_bytes


class SecAggStrategy(Strategy):
    """Encrypted federated averaging: ``SecAggStrategy(FedAvg(…), "/kits/server")``, and `secagg_mod` in the ClientApp.

    The wrapped strategy chooses nodes, configures what they do, and averages metrics; models are added encrypted, one
    reply at a time. `Result.arrays` is the last aggregate, which the sites alone can decrypt.

    Parameters
    ----------
    strategy : FedAvg
        Or one that differs from it only in what it sends, such as FedProx; `ConfigError` for others. It weighs by
        ``num-examples``.
    kit : path or ServerKit
        The server's kit.
    metrics : sequence of str
        Names of numbers, of train or evaluate, that travel encrypted, weighted by the private numbers of examples.
    """

    def __init__(
        self, strategy: FedAvg, kit: ServerKit | str | os.PathLike[str], *, metrics: Sequence[str] | None = None
    ) -> None:
        aggregates = getattr(getattr(strategy, "aggregate_train", None), "__func__", None)
        if not isinstance(strategy, FedAvg) or aggregates is not FedAvg.aggregate_train:
            raise ConfigError(
                f"{type(strategy).__name__} computes with models, which are encrypted here: wrap FedAvg, or a strategy "
                "that differs from it only in what it sends, such as FedProx"
            )
        if strategy.weighted_by_key != WEIGHT:
            raise ConfigError(
                f"weighted_by_key is {strategy.weighted_by_key!r}: what secagg_mod keeps back is {WEIGHT!r}"
            )
        self.strategy, self._kit, self._metrics = strategy, kit, metrics
        self._relay: Relay | None = None
        self._first = ArrayRecord()
        self._known: dict[int, int] = {}  # node: round that its global model is of
        self._asked: set[int] = set()
        self._storing: int | None = None  # node that is asked for its global model

    def summary(self) -> None:
        """Log what is wrapped."""
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds, as `Strategy.start` of Flower; `QuorumError` if one has fewer updates than ``min_clients``.

        Before: `ConfigError` if there is an `evaluate_fn`, and whatever `secagg.server.Relay` refuses.
        """
        if evaluate_fn is not None:
            raise ConfigError("evaluate_fn would get an encrypted model: let the nodes evaluate it (fraction_evaluate)")
        self._relay = Relay(self._kit, tensors_of(initial_arrays), metrics=self._metrics)
        self._first, self._known = initial_arrays, {}
        if self.strategy.fraction_evaluate == 0.0:
            log.warning("secagg: fraction_evaluate is 0: no node gets the last aggregate, so none has the final model")
        one_by_one = cast(Grid, OneByOne(grid))
        return super().start(one_by_one, initial_arrays, num_rounds, timeout, train_config, evaluate_config)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the nodes that the wrapped strategy chooses what they need to train."""
        messages = self.strategy.configure_train(server_round, ArrayRecord(), config, grid)
        return self._address(messages, store=self._begun().wants_model)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send the nodes that the wrapped strategy chooses what they need to evaluate."""
        return self._address(self.strategy.configure_evaluate(server_round, ArrayRecord(), config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the updates as they come, and average the metrics by the function of the wrapped strategy."""
        accepted, reasons = self._accept(replies, self._add)
        try:
            aggregate = self._begun().finish()
        except QuorumError as error:
            hint = "what leaves a node is decided by its ClientApp: mods=[secagg_mod, …], and no mod outside it"
            raise QuorumError("; ".join([f"round {server_round} failed: {error}", hint, *reasons])) from error
        arrays, contents = ArrayRecord({"aggregate": to_array(aggregate.to_bytes())}), [r.content for r in accepted]
        if not _alike(contents):
            return arrays, None
        return arrays, self.strategy.train_metrics_aggr_fn(contents, WEIGHT)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the wrapped strategy average the metrics."""
        accepted = self._accept(replies, _keep_metrics)[0]
        return self.strategy.aggregate_evaluate(server_round, accepted if _alike(r.content for r in accepted) else [])

    def _begun(self) -> Relay:
        if self._relay is None:
            raise StateError("SecAggStrategy was not started: call its own start, and wrap it in no other strategy")
        return self._relay

    def _address(self, messages: Iterable[Message], *, store: bool = False) -> list[Message]:
        """Give each message a content of its own: what its node needs, and nothing in the clear but the first model."""
        addressed = list(messages)
        self._storing = addressed[0].metadata.dst_node_id if store and addressed else None
        shared: dict[int | None, ArrayRecord] = {}  # an object of Flower's is hashed once
        for message in addressed:
            since = self._known.pop(message.metadata.dst_node_id, None)  # until it answers, it may be anywhere
            handout = self._begun().handout(since, store=message.metadata.dst_node_id == self._storing)
            facts, blobs = pack(handout, self.strategy.arrayrecord_key)
            content = RecordDict(dict(message.content))  # the wrapped strategy gives all the same one
            content.pop(self.strategy.arrayrecord_key, None)
            content[FACTS], content[BLOBS] = facts, shared.setdefault(since, blobs)
            if handout.first:  # not where an app looks for it: one without the mod fails, and sends nothing
                content[FIRST] = self._first
            message.content = content
        self._asked = {message.metadata.dst_node_id for message in addressed}
        return addressed

    def _accept(self, replies: Iterable[Message], take: Callable[[Message], None]) -> tuple[list[Message], list[str]]:
        """Return the replies that `take` accepts, without their arrays; and why there are no others."""
        accepted, reasons, silent = [], [], set(self._asked)
        for reply in replies:
            node = reply.metadata.src_node_id
            silent.discard(node)
            try:
                if reply.has_error():
                    raise TransportError(shown(_last_line(reply.error.reason)))
                take(reply)
                accepted.append(reply)
                self._known[node] = self._begun().round
            except SecAggError as error:
                reasons.append(f"node {node}: {error}")
            del reply  # its arrays, before the next one comes
        reasons += [f"node {node}: no reply" for node in sorted(silent)]
        for reason in reasons:
            log.warning("secagg: %s", reason)
        return accepted, reasons

    def _add(self, reply: Message) -> None:
        sent = {name: to_bytes(array) for name, array in only(ArrayRecord, reply.content)[1].items()}
        if not {"update"} <= sent.keys() <= {"update", "model"}:
            raise FormatError(f"the reply has arrays {show(sorted(sent))}, where 'update' is due")
        if "model" in sent and reply.metadata.src_node_id != self._storing:
            raise FormatError("the reply has a global model, for which another node is asked, or none")
        _keep_metrics(reply)
        self._begun().add(sent["update"], sent.get("model", b""))


def _alike(contents: Iterable[RecordDict]) -> bool:
    """Return whether means can be taken of the metrics of replies, and say if not: one odd node must not end a run."""
    told = (only(MetricRecord, content) for content in contents)
    kinds = {
        (place, frozenset((name, len(value) if isinstance(value, list) else None) for name, value in record.items()))
        for place, record in told
    }
    if len(kinds) > 1:
        log.warning("secagg: the nodes tell different metrics, so there are no means")
    return len(kinds) <= 1


def _keep_metrics(reply: Message) -> None:
    if only(MetricRecord, reply.content)[1].get(WEIGHT) != 1:
        raise FormatError(f"the reply tells {WEIGHT!r}, where 1 is due: it has not gone through secagg_mod")
    for key in [key for key, record in reply.content.items() if isinstance(record, ArrayRecord)]:
        del reply.content[key]


def _last_line(reason: str | None) -> str:
    """Return what an error says: of Ray's traceback, in which line ends are written out, the end."""
    lines = (reason or "").replace("\\n", "\n").split("\n")
    return next((line for line in reversed(lines) if any(map(str.isalnum, line))), "")
