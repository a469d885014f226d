"""Runs a server until SIGTERM, for tests: prints its address, and at the end the HE libraries that are loaded."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading

import secagg
from secagg.integrations.grpc import Server, Tls

HE_LIBRARIES = ("tenseal", "Pyfhel", "seal", "torch")

arguments = json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
key = secagg.load_key(arguments["key"])
assert isinstance(key, secagg.ServerKey)
tls = arguments["tls"]
server = Server(
    secagg.Config.load(arguments["config"]),
    key,
    arguments["folder"],
    address=arguments["address"],
    tls=Tls.load(tls) if tls else None,
    insecure=tls is None,
    round_timeout=arguments["round_timeout"],
)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
print(server.address, flush=True)
server.serve_until(stop, grace=2.0)
print(json.dumps(sorted(name for name in HE_LIBRARIES if name in sys.modules)), flush=True)
