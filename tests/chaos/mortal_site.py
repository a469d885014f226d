"""A site in a process of its own, for tests: goes through rounds, and goes on when it is started again after a kill.

    python mortal_site.py KIT ADDRESS FOLDER

Its folder has, by rounds, every update that it has ever uploaded, the receipts, the aggregates, and what it decrypted;
it ends when the round that is written in the file ``last`` is over.
"""

from __future__ import annotations

import os
import random
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
from five_sites import state_of, weight_of

import secagg
from secagg.errors import SecAggError, StateError
from secagg.integrations.grpc import SiteSession
from secagg.site import Uploaded
from secagg.storage.files import replace_file
from secagg.trust import Tls
from secagg.trust.kit import load_site_kit


class Session(SiteSession):
    """Notes receipts, and updates that were lost in spite of them."""

    folder: Path

    def upload(self, update: Any, progress: Any = None) -> Uploaded:
        uploaded = super().upload(update, progress)
        assert uploaded.receipt is not None
        write(self.folder / f"receipt-{update.header.round}", uploaded.receipt.to_bytes())
        return uploaded

    def download(self, round: int, path: Any, progress: Any = None) -> secagg.Update:
        try:
            return super().download(round, path, progress)
        except StateError as error:
            if self.receipt(round) is not None:
                write(self.folder / "lost", str(error).encode())
            raise


def write(path: Path, data: bytes) -> None:
    with replace_file(path) as file:
        file.write(data)


def prepare(client: secagg.Client, folder: Path, round: int, base: bytes, values: int) -> Path:
    """Return the file of the round's update: that of an earlier life, or, now and then, another one."""
    path = folder / "update.secagg"
    if path.exists() and random.random() < 0.8:
        with secagg.Update.open(path) as update:
            if (update.header.round, update.header.base) == (round, base):
                return path
    client.encrypt_to(path, state_of(client.name, round, values), weight_of(client.name), round, base=base)
    return path


def receive(client: secagg.Client, folder: Path, aggregate: secagg.Update) -> None:
    """Check an aggregate against what this life and earlier ones have in hand, and keep the mean."""
    header = aggregate.header
    path = folder / f"receipt-{header.round}"
    receipt = secagg.Receipt.from_bytes(path.read_bytes()) if path.exists() else None
    mean = client.decrypt(aggregate, round=header.round, receipt=receipt)["w"]
    write(folder / f"mean-{header.round}", aggregate.digest() + sha256(mean.tobytes()).digest())


def main(kit_folder: Path, address: str, folder: Path) -> None:
    kit = load_site_kit(kit_folder)
    assert kit.project.layout is not None
    values = kit.project.layout.size("encrypted")
    client = secagg.Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project)
    first = client.base({"w": np.zeros(values, np.float32)})
    last = folder / "last"
    with Session(address, kit.name, tls=Tls.load(kit.folder), timeout=240, project=kit.project) as session:
        session.folder = folder
        while True:
            membership = session.join()
            round = membership.round
            if round and not (folder / f"mean-{round - 1}").exists():  # an earlier life ended in that round
                with session.download(round - 1, folder / f"aggregate-{round - 1}") as aggregate:
                    receive(client, folder, aggregate)
            if last.exists() and round > int(last.read_text()):
                return
            path = prepare(client, folder, round, membership.base or first, values)
            with secagg.Update.open(path) as update:
                kept = folder / f"offer-{round}-{update.header.head[-16:].hex()}"
                if not kept.exists():
                    os.link(path, kept)
            with session.exchange(path, folder / f"aggregate-{round}") as aggregate:
                receive(client, folder, aggregate)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except SecAggError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(3)
