"""Runs a server until SIGTERM, for tests: prints its address, and at the end the HE libraries that are loaded.

The only argument is a JSON object: ``config``, ``key``, ``folder`` (paths), ``address``, ``round_timeout``, and, as
wanted, ``tls`` (folder of a certificate; without it the server is insecure), ``project`` and ``identity`` (paths),
``limits`` (fields of `Limits`), ``grace`` (seconds).
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading

import secagg
from secagg.integrations.grpc import Server
from secagg.server import Limits
from secagg.trust import Tls

HE_LIBRARIES = ("tenseal", "Pyfhel", "seal", "torch")

arguments = json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
key = secagg.load_key(arguments["key"])
assert isinstance(key, secagg.ServerKey)
tls, project, identity = (arguments.get(name) for name in ("tls", "project", "identity"))
server = Server(
    secagg.Config.load(arguments["config"]),
    key,
    arguments["folder"],
    address=arguments["address"],
    tls=Tls.load(tls) if tls else None,
    insecure=tls is None,
    round_timeout=arguments["round_timeout"],
    project=secagg.Project.load(project) if project else None,
    identity=secagg.Identity.load(identity) if identity else None,
    limits=Limits(**arguments.get("limits", {})),
)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
print(server.address, flush=True)
server.serve_until(stop, grace=arguments.get("grace", 2.0))
print(json.dumps(sorted(name for name in HE_LIBRARIES if name in sys.modules)), flush=True)
