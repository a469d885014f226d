"""A grid of Flower's in one process: what it carries is serialised as a SuperLink does, and its nodes are functions."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

RUN = 7


@dataclass
class ToyGrid(Grid):
    """Each node is an app, which runs for each message anew, with its Context out of bytes, as in a deployment."""

    apps: dict[int, Callable[[Message, Context], Message]]
    node_configs: dict[int, dict[str, Any]]
    run_config: dict[str, Any] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)  # nodes that never answer
    contexts: dict[int, bytes] = field(default_factory=dict)
    sent: list[tuple[Message, int]] = field(default_factory=list)  # messages to nodes, and the bytes of all objects
    replied: list[tuple[Message, int]] = field(default_factory=list)
    held: int = 0  # replies whose arrays the server has in memory
    most_held: int = 0

    def __post_init__(self) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
        self._waiting: dict[str, tuple[str, dict[str, bytes]]] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:  # twice over them, as HttpGrid
            message.metadata.__dict__["_message_id"] = message.object_id
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for identity in set(message_ids) & self._waiting.keys():
            reply = inflate(*self._waiting.pop(identity))
            for record in reply.content.values() if reply.has_content() else ():
                if type(record).__name__ == "ArrayRecord":
                    self.held += 1
                    self.most_held = max(self.most_held, self.held)
                    weakref.finalize(record, self._freed)
            found.append(reply)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _push(self, message: Message) -> str:
        identity, node = message.metadata.message_id, message.metadata.dst_node_id
        deflated = deflate(message)
        self.sent.append((inflate(*deflated), size(deflated)))
        if node not in self.silent:
            received = inflate(*deflated)
            received.metadata.__dict__["_message_id"] = identity
            self._waiting[identity] = self._answer(node, received)
        return identity

    def _answer(self, node: int, message: Message) -> tuple[str, dict[str, bytes]]:
        context = Context(RUN, node, self.node_configs.get(node, {}), RecordDict(), self.run_config)
        if node in self.contexts:
            context = context_from_proto(ProtoContext.FromString(self.contexts[node]))
        try:
            reply = self.apps[node](message, context)
        except Exception as error:  # noqa: BLE001 - as run_clientapp does
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        self.contexts[node] = context_to_proto(context).SerializeToString()  # also then
        deflated = deflate(reply)
        self.replied.append((inflate(*deflated), size(deflated)))
        return deflated

    def _freed(self) -> None:
        self.held -= 1


def deflate(message: Message) -> tuple[str, dict[str, bytes]]:
    return message.object_id, {name: item.deflate() for name, item in get_all_nested_objects(message).items()}


def inflate(identity: str, objects: dict[str, bytes]) -> Message:
    message = inflate_object_from_contents(identity, dict(objects))
    assert isinstance(message, Message)
    return message


def size(deflated: tuple[str, dict[str, bytes]]) -> int:
    return sum(map(len, deflated[1].values()))
