"""What holds for the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is no fault.
settings.register_profile("secagg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("secagg")

#: What a shell may have set and nobody means for the tests: proxies stand between them and their own servers, a
#: passphrase answers what they leave open, and the others change how output looks and what gRPC adds to it.
FOREIGN = (
    *(f"{kind}_proxy" for kind in ("http", "https", "all", "grpc", "no", "no_grpc")),
    "SECAGG_PASSPHRASE",
    "COLUMNS",
    "LINES",
    "FORCE_COLOR",
    "NO_COLOR",
    "GRPC_TRACE",
    "GRPC_VERBOSITY",
)


@pytest.fixture(scope="session", autouse=True)
def own_environment() -> Iterator[None]:
    """Of the variables of the shell, tests and the processes that they start see those that do not steer them.

    New files are for their owner to write: `secagg doctor` finds fault with what others can change. A shell starts
    background jobs with SIGINT ignored, and so would be what they start.
    """
    umask = os.umask(0o022)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield
    signal.signal(signal.SIGINT, interrupt)
    os.umask(umask)
