"""Import the heavy libraries, with their own deprecation warnings let through."""

from __future__ import annotations

import warnings

# Ignite imports torch.distributed.optim, whose modules still use TorchScript.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"`torch\.jit\.(script|interface)` is ", DeprecationWarning)
    import monai.engines
    import monai.handlers  # noqa: F401
