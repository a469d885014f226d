"""Encrypted aggregation for federated learning: sites encrypt, a server adds, sites decrypt only the sum.

Loading this package loads the standard library and NumPy only; an HE library loads when its backend is first used.
Errors are in :mod:`secagg.errors`.
"""

from .aggregator import Aggregator
from .backends.registry import BackendInfo, available_backends
from .client import Client
from .config import Config
from .errors import SecAggError
from .header import Header
from .key import ClientKey, KeyPair, ServerKey, load_key
from .keygen import generate_keys
from .layout import Layout
from .params import Params
from .update import Update

__all__ = [
    "Aggregator",
    "BackendInfo",
    "Client",
    "ClientKey",
    "Config",
    "Header",
    "KeyPair",
    "Layout",
    "Params",
    "SecAggError",
    "ServerKey",
    "Update",
    "available_backends",
    "generate_keys",
    "load_key",
]
