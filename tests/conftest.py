"""What holds for the whole suite, and the contract.

What asks for `lib` runs over every backend and scheme, what asks for `mode` over each precision of them too, and what
asks for `kernels` over both of these. A backend that is
registered but whose library is missing fails; nothing is skipped.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator

import pytest
from federation import MODES, VARIANTS, libs_of
from hypothesis import HealthCheck, settings
from s3_server import S3Server, forget_stores, serving_s3

import secagg_ext

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

KERNELS = [name for name in secagg_ext.__all__ if name != "IMPLEMENTATION"]


@pytest.fixture(scope="session", autouse=True)
def own_environment() -> Iterator[None]:
    """Of the variables of the shell, tests and the processes that they start see those that do not steer them.

    New files are for their owner to write: `secagg doctor` finds fault with what others can change. A shell starts
    background jobs with SIGINT ignored, nohup all with SIGHUP, and so would be what they start.
    """
    umask = os.umask(0o022)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    closed = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, closed)
    os.umask(umask)


@pytest.fixture(scope="session", params=VARIANTS)
def lib(request: pytest.FixtureRequest) -> str:
    """A variant: a backend and one of its schemes, as `federate` takes it."""
    return request.param


@pytest.fixture(scope="session", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """A variant, and where its scales come from, as `federate` takes them."""
    return request.param


@pytest.fixture(scope="session", params=libs_of("CKKS"))
def ckks(request: pytest.FixtureRequest) -> str:
    """The id of a backend that knows CKKS."""
    return request.param


@pytest.fixture(params=["cython", "numpy"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on one implementation of the kernels: secagg calls them as attributes of `secagg_ext`."""
    implementation = importlib.import_module(f"secagg_ext._{request.param}")
    for name in KERNELS:
        monkeypatch.setattr(secagg_ext, name, getattr(implementation, name))
    return request.param


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server of this process, for `s3`."""
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
        forget_stores()


@pytest.fixture
def s3(s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with no fault, which fsspec finds by the variables of this process and what it starts.

    A test that changes the variables calls `forget_stores`.
    """

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    for name in variables():
        monkeypatch.delenv(name)
    for name, value in s3_session.environment().items():
        monkeypatch.setenv(name, value)
    yield s3_session
    if variables() != s3_session.environment():
        forget_stores()
    s3_session.clear()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket with nothing in it."""
    return s3.bucket()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Results depend on the number of PyTorch's threads, and threads that wait for each other are slow."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
