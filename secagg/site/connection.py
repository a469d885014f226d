"""What a participant needs of its connection to the server, whatever carries its messages."""

from __future__ import annotations

import os
from typing import Protocol

from ..protocol.chunks import Progress
from ..protocol.messages import ServerStatus
from ..trust.receipt import Receipt
from ..wire.update import Update

Path = str | os.PathLike[str]


class Joined(Protocol):
    """What the server answers to a site that joins."""

    @property
    def manifest(self) -> bytes:
        """The server's project manifest, signed: the site's own or a later one."""


class Uploaded(Protocol):
    """What the server answers to an update."""

    @property
    def receipt(self) -> Receipt | None:
        """The server's signed promise, verified."""


class Connection(Protocol):
    """A site's session with the server, such as `secagg.integrations.grpc.SiteSession`, which says more of each call.

    Every call raises the typed error that the server refuses it with, or `TransportError`.
    """

    def join(self) -> Joined:
        """Join the federation: the open round now waits for this site."""

    def status(self) -> ServerStatus:
        """Ask how the open round and the server stand."""

    def upload(self, update: Path, progress: Progress | None = None) -> Uploaded:
        """Upload the update in a file; returns once it is on the server's disk and in the sum."""

    def download(self, round: int, path: Path, progress: Progress | None = None) -> Update:
        """Wait for the end of a round and download its aggregate to a file."""

    def exchange(self, update: Path, path: Path, progress: Progress | None = None) -> Update:
        """Upload an update if that is due, wait for the round, and download the aggregate with it to a file."""

    def save_model(self, path: Path, progress: Progress | None = None) -> bool:
        """Store an encrypted global model on the server, and return whether it had none of that round."""

    def load_model(self, path: Path, round: int | None = None, progress: Progress | None = None) -> Update:
        """Download an encrypted global model that a site has stored to a file."""
