"""``secagg serve``: the server of a federation."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from pathlib import Path

from .kit import TLS_FILE, load_server_kit

EXAMPLE = "secagg serve kits/server --address 0.0.0.0:8443 --run-dir /var/lib/secagg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the encrypted updates of the sites, round after round, until stopped."""
    parser.add_argument("kit", type=Path, help="the server's kit, as made by `secagg keygen`")
    parser.add_argument("--address", default="127.0.0.1:8443", help="HOST:PORT to listen on (default: 127.0.0.1:8443)")
    parser.add_argument(
        "--run-dir", type=Path, default=Path("run"), metavar="FOLDER", help="spool and aggregates (default: run)"
    )
    parser.add_argument(
        "--round-timeout", type=float, default=3600.0, metavar="SECONDS", help="longest round (default: 3600)"
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="without certificates if the kit has none; on a loopback address only",
    )


def run(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM, then stop in order."""
    from ..integrations.grpc import Server, Tls

    config, key = load_server_kit(options.kit)
    certified = not options.insecure or (options.kit / TLS_FILE).exists()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    server = Server(
        config,
        key,
        options.run_dir,
        address=options.address,
        tls=Tls.load(options.kit) if certified else None,
        insecure=options.insecure,
        round_timeout=options.round_timeout,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print(f"serving on {server.address}", flush=True)
    server.serve_until(stop)
