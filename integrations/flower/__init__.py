"""secagg in Flower: a mod for the ClientApp, and a strategy that wraps another.

::

    app = ClientApp(mods=[secagg_mod])                         # the outermost; the rest of the app stays
    strategy = SecAggStrategy(FedAvg(...), "/kits/server")     # then strategy.start(...), as before
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secagg.integrations import exported

if TYPE_CHECKING:
    from .mod import secagg_mod
    from .strategy import SecAggStrategy

__all__ = ["SecAggStrategy", "secagg_mod"]

_MODULES = {"SecAggStrategy": "strategy", "secagg_mod": "mod"}


def __getattr__(name: str) -> Any:
    # Flower loads when a name is first used, and the server never loads what encrypts.
    return exported(__name__, _MODULES, name, "in Flower", ("flwr",))
