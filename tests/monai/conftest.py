"""Import the heavy libraries once, with their own deprecation warnings let through."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

# Ignite imports torch.distributed.optim, whose modules still use TorchScript.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"`torch\.jit\.(script|interface)` is ", DeprecationWarning)
    import monai.engines
    import monai.handlers  # noqa: F401


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Results depend on the number of threads, and threads that wait for each other are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
