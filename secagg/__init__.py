"""Encrypted aggregation for federated learning: sites encrypt, a server adds, sites decrypt only the sum.

Loading this package loads the standard library and NumPy only; an HE library loads when its backend is first used.
Errors are in :mod:`secagg.errors`.
"""

from .aggregator import Aggregator
from .backends.registry import available_backends
from .client import Client
from .config import Config
from .errors import SecAggError
from .keygen import generate_keys
from .trust.identity import Identity
from .trust.key import ClientKey, ServerKey, load_key
from .trust.project import Project
from .trust.receipt import Receipt
from .wire.header import Header
from .wire.layout import Layout
from .wire.update import Update

__all__ = [
    "Aggregator",
    "Client",
    "ClientKey",
    "Config",
    "Header",
    "Identity",
    "Layout",
    "Project",
    "Receipt",
    "SecAggError",
    "ServerKey",
    "Update",
    "available_backends",
    "generate_keys",
    "load_key",
]
