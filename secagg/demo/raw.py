"""The demo's baseline: the same training with plain float32 averaging, over the same gRPC and TLS. Protects nothing.

``python -m secagg.demo.raw KIT --server HOST:PORT …`` is one site of it. The server is a part of the demo's process.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import torch
from numpy.typing import NDArray

from ..integrations.grpc.credentials import channel_credentials, server_credentials
from ..site.record import SiteRecord
from ..site.task_class import read_options
from ..trust import Tls
from ..trust.kit import load_site_kit
from ..ui.progress import progress
from .task import MNI152, data_arguments

_SERVICE = "secagg.demo.Raw"
_MAX_MESSAGE_NBYTES = 256 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_NBYTES),
    ("grpc.so_reuseport", 0),
)
_WAIT_SECONDS = 600.0


class RawServer:
    """Adds the weighted differences of `sites` sites a round, and serves the mean.

    A message is a weight (float64) and a difference (float32, all tensors after each other).
    """

    def __init__(self, sites: int, tls: Tls) -> None:
        self._sites = sites
        self._changed = threading.Condition()
        self._weight, self._total, self._count = 0.0, np.zeros(0, np.float32), 0
        self._means: list[bytes] = []
        self.add_seconds: list[float] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2 * sites), options=_OPTIONS)
        handlers = {
            "Upload": grpc.unary_unary_rpc_method_handler(self._upload),
            "Download": grpc.unary_unary_rpc_method_handler(self._download),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', server_credentials(tls))}"
        self._server.start()

    def stop(self) -> None:
        """Stop at once."""
        self._server.stop(None).wait()

    def _upload(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        weight = float(np.frombuffer(message, np.float64, 1)[0])
        difference = np.frombuffer(message, np.float32, offset=8)
        with self._changed:
            start = time.perf_counter()
            share = np.float32(weight) * difference
            self._total = share if self._count == 0 else self._total + share
            self._weight += weight
            self._count += 1
            if self._count == self._sites:
                self._means.append((self._total / np.float32(self._weight)).tobytes())
                self._weight, self._count = 0.0, 0
                self._changed.notify_all()
            self.add_seconds.append(time.perf_counter() - start)
        return b""

    def _download(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        round = int.from_bytes(message, "little")
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._means) > round, _WAIT_SECONDS):
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the other sites did not come")
            return self._means[round]


class RawSite:
    """A site's connection to a `RawServer`, made at once; a context manager, or use `close`."""

    def __init__(self, address: str, tls: Tls) -> None:
        self._channel = grpc.secure_channel(address, channel_credentials(tls), _OPTIONS)
        grpc.channel_ready_future(self._channel).result(_WAIT_SECONDS)
        self._upload, self._download = (
            self._channel.unary_unary(f"/{_SERVICE}/{name}", request_serializer=bytes, response_deserializer=bytes)
            for name in ("Upload", "Download")
        )

    def upload(self, weight: float, difference: NDArray[np.float32]) -> int:
        """Upload a difference, and return the bytes that it took; returns when it is in the sum."""
        message = np.float64(weight).tobytes() + difference.tobytes()
        self._upload(message, timeout=_WAIT_SECONDS)
        return len(message)

    def download(self, round: int) -> NDArray[np.float32]:
        """Wait for the end of a round, and return the mean."""
        return np.frombuffer(self._download(round.to_bytes(4, "little"), timeout=_WAIT_SECONDS), np.float32)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    """Train as one site of the baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--server", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fold")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    task = _task(options)
    network, model = task.model, flatten(task.model)
    with RawSite(options.server, Tls.load(options.kit)) as site:
        for round in range(options.rounds):
            here = f"round {round} ({round + 1} of {options.rounds})"
            begun = time.perf_counter()
            with progress(f"{here}: train") as report:
                task.train(round, report)
            start = time.perf_counter()
            nbytes = site.upload(task.examples, flatten(network) - model)
            sent = time.perf_counter()
            with progress(f"{here}: wait for others"):
                mean = site.download(round)
            received = time.perf_counter()
            model = model + mean
            unflatten(model, network)
            SiteRecord(
                round=round,
                metrics=task.validate(),
                nbytes=nbytes,
                train_seconds=start - begun,
                encrypt_seconds=0.0,
                upload_seconds=sent - start,
                wait_seconds=received - sent,
                decrypt_seconds=0.0,
            ).append_to(options.report)


def _task(options: argparse.Namespace) -> Any:
    """Return what `secagg site` trains under the same options."""
    arguments = read_options(options.option)
    if options.data is None:
        return MNI152(**arguments)
    from ..integrations.monai import Segmentation

    project = load_site_kit(options.kit).project
    with progress(f"read the cases of {options.data}") as report:
        return Segmentation(**data_arguments(options.data, options.fold, project, arguments, report))


def flatten(network: torch.nn.Module) -> NDArray[np.float32]:
    """Return the parameters of a network after each other."""
    return np.array(torch.nn.utils.parameters_to_vector(network.parameters()).detach().cpu().numpy())


def unflatten(model: NDArray[np.float32], network: torch.nn.Module) -> None:
    """Copy such parameters into a network: what would be views of them, training would change in place."""
    torch.nn.utils.vector_to_parameters(torch.from_numpy(model.copy()), network.parameters())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
