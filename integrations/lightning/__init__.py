"""secagg in Lightning: a callback for the ``Trainer``, each of whose epochs is a round of a federation.

::

    kit = load_site_kit("site-1")                                  # secagg.trust
    with SiteSession("fl.example.org:8443", kit.name, tls=Tls.load(kit.tls), project=kit.project) as session:
        trainer = Trainer(max_epochs=5, callbacks=[SecAggCallback(kit, session)])
        trainer.fit(module, loader)                                # max_epochs rounds of the federation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secagg.integrations import exported

if TYPE_CHECKING:
    from .callback import SecAggCallback

__all__ = ["SecAggCallback"]

_MODULES = {"SecAggCallback": "callback"}


def __getattr__(name: str) -> Any:
    # torch and Lightning load when the callback is first used.
    return exported(__name__, _MODULES, name, "in Lightning", ("torch", "lightning"))
