"""secagg in Lightning: a callback for the ``Trainer``, each of whose epochs is a round of a federation.

::

    kit = load_site_kit("site-1")                                  # secagg.trust
    with SiteSession("fl.example.org:8443", kit.name, tls=Tls.load(kit.tls), project=kit.project) as session:
        trainer = Trainer(max_epochs=5, callbacks=[SecAggCallback(kit, session)])
        trainer.fit(module, loader)                                # max_epochs rounds of the federation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callback import SecAggCallback

__all__ = ["SecAggCallback"]


def __getattr__(name: str) -> Any:
    # torch and Lightning load when the callback is first used.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .callback import SecAggCallback
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("torch", "lightning"):
            raise ImportError(f"secagg in Lightning needs {missing}: install secagg[lightning]") from error
        raise
    return SecAggCallback
