"""secagg in Flower: a mod for the ClientApp, and a strategy that wraps another.

::

    app = ClientApp(mods=[secagg_mod])                         # the outermost; the rest of the app stays
    strategy = SecAggStrategy(FedAvg(...), "/kits/server")     # then strategy.start(...), as before
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mod import secagg_mod
    from .strategy import SecAggStrategy

__all__ = ["SecAggStrategy", "secagg_mod"]


def __getattr__(name: str) -> Any:
    # Flower loads when a name is first used, and the server never loads what encrypts.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(".mod" if name == "secagg_mod" else ".strategy", __name__), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "flwr":
            raise ImportError("secagg in Flower needs flwr: install secagg[flower]") from error
        raise
