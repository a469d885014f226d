"""secagg in Hugging Face Transformers: a callback for the ``Trainer``, each of whose epochs is a round of a federation.

::

    kit = load_site_kit("site-1")                                  # secagg.trust
    with SiteSession("fl.example.org:8443", kit.name, tls=Tls.load(kit.tls), project=kit.project) as session:
        trainer = Trainer(model, args, train_dataset=dataset, callbacks=[SecAggCallback(kit, session)])
        trainer.train()                                            # num_train_epochs rounds of the federation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callback import SecAggCallback

__all__ = ["SecAggCallback"]


def __getattr__(name: str) -> Any:
    # torch and Transformers load when the callback is first used.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .callback import SecAggCallback
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("torch", "transformers"):
            raise ImportError(f"secagg in Transformers needs {missing}: install secagg[transformers]") from error
        raise
    return SecAggCallback
