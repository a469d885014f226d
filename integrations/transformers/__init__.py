"""secagg in Hugging Face Transformers: a callback for the ``Trainer``, each of whose epochs is a round of a federation.

::

    kit = load_site_kit("site-1")                                  # secagg.trust
    with SiteSession("fl.example.org:8443", kit.name, tls=Tls.load(kit.tls), project=kit.project) as session:
        trainer = Trainer(model, args, train_dataset=dataset, callbacks=[SecAggCallback(kit, session)])
        trainer.train()                                            # num_train_epochs rounds of the federation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secagg.integrations import exported

if TYPE_CHECKING:
    from .callback import SecAggCallback

__all__ = ["SecAggCallback"]

_MODULES = {"SecAggCallback": "callback"}


def __getattr__(name: str) -> Any:
    # torch and Transformers load when the callback is first used.
    return exported(__name__, _MODULES, name, "in Transformers", ("torch", "transformers", "accelerate"))
