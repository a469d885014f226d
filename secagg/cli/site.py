"""``secagg site``: joins a federation and trains."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..client import Client
from ..errors import KeyMismatchError, StateError
from ..params import QuantisedParams
from .kit import TLS_FILE, load_site_kit
from .progress import progress
from .task import LocalTask, Part, SiteRecord, check_least

EXAMPLE = "secagg site kits/site-1 --server fl.example.org:8443 --part 1/3 --rounds 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Join a federation and train white-matter segmentation on a part of the MNI152 brain."""
    parser.add_argument("kit", type=Path, help="the site's kit, as made by `secagg keygen`")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    parser.add_argument("--name", help="name of the site (default: that of the kit's folder)")
    parser.add_argument("--part", type=Part.parse, default=Part(1, 1), metavar="I/N", help="which part of the data")
    parser.add_argument("--rounds", type=int, default=4, help="rounds to take part in (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of network and training, equal at all sites (default: 0)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="longest try to reach the server (default: 600)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of PyTorch (default: 1, so that sites can share a machine)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="append a line of JSON a round")


def run(options: argparse.Namespace) -> None:
    """Train, encrypt, upload, wait, decrypt; `rounds` times."""
    rounds = check_least("--rounds", options.rounds)
    check_least("--threads", options.threads)
    check_least("--seed", options.seed, 0)
    config, key = load_site_kit(options.kit)
    site = Client(config, key, options.name or options.kit.resolve().name)

    import torch  # these take seconds: after all that can be wrong with the kit

    from ..integrations.grpc import SiteSession, Tls
    from ..integrations.monai import SecAggHandler

    torch.set_num_threads(options.threads)
    with progress("load the brain MRI"):
        task = LocalTask(options.part, options.seed)
    if options.report is not None:
        options.report.open("ab").close()  # what cannot be written must not be found out after training
    upload, download = options.kit / "update.secagg", options.kit / "aggregate.secagg"
    handler = SecAggHandler(site, weight=len(task.patches), global_state=task.network.state_dict(), upload_path=upload)
    tls = Tls.load(options.kit) if (options.kit / TLS_FILE).exists() else None
    with SiteSession(options.server, site.name, tls=tls, timeout=options.timeout) as session:
        with progress(f"join the federation at {options.server}, for {options.timeout:g} s at most"):
            joined = session.join()
        if joined.key != key.fingerprint:
            raise KeyMismatchError(
                f"the server has key {joined.key[:16]}…, this site {key.fingerprint[:16]}…: mixed kits?"
            )
        if joined.round != 0:
            raise StateError(f"the federation is at round {joined.round}; this site has no global model of that round")
        for round in range(rounds):
            train_seconds = task.train(round, rounds, [handler]) - handler.encrypt_seconds
            nbytes, clipped = upload.stat().st_size, site.clipped
            if isinstance(config.params, QuantisedParams) and config.params.overflow == "clip":
                print(f"round {round + 1}/{rounds}: clipped {clipped:,} values beyond max_abs", flush=True)
            start = time.perf_counter()
            with progress(f"round {round + 1}/{rounds}: upload {nbytes / 1e6:.1f} MB") as report:
                session.upload(upload, report)
            sent = time.perf_counter()
            with progress(f"round {round + 1}/{rounds}: wait for the others, download") as report:
                # Sends the update again only if the server has lost it, by starting anew.
                aggregate = session.exchange(upload, download, report)
            received = time.perf_counter()
            with aggregate:
                handler.receive(aggregate)
            assert handler.global_state is not None
            dice = task.dice(handler.global_state)
            print(f"round {round + 1}/{rounds}: Dice {dice:.4f} on held-out data", flush=True)
            SiteRecord(
                round=round,
                dice=dice,
                nbytes=nbytes,
                train_seconds=train_seconds,
                encrypt_seconds=handler.encrypt_seconds,
                upload_seconds=sent - start,
                wait_seconds=received - sent,
                decrypt_seconds=handler.decrypt_seconds,
                clipped=clipped,
            ).append_to(options.report)
    upload.unlink(missing_ok=True)
