"""secagg in MONAI: an Ignite handler for ``SupervisedTrainer``.

::

    model = GlobalModel(site, network.state_dict())                # secagg.site
    handler = SecAggHandler(model, weight=len(patches), calibrate=exchange)
    trainer = SupervisedTrainer(..., train_handlers=[handler])     # or handler.attach(trainer)
    for _ in range(rounds):
        trainer.run()                                              # calibrates and encrypts in the end
        handler.apply(exchange(handler.update))                    # upload, wait, download: any transport; and load
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secagg.integrations import exported

if TYPE_CHECKING:
    from .algo import SecureSite
    from .bundle import federate
    from .exchange import to_weights
    from .handler import SecAggHandler
    from .segmentation import Segmentation

__all__ = ["SecAggHandler", "SecureSite", "Segmentation", "federate", "to_weights"]

_MODULES = {
    "SecAggHandler": "handler",
    "SecureSite": "algo",
    "Segmentation": "segmentation",
    "federate": "bundle",
    "to_weights": "exchange",
}


def __getattr__(name: str) -> Any:
    # torch and Ignite load when the handler is first used.
    return exported(__name__, _MODULES, name, "in MONAI", ("torch", "ignite", "monai", "nibabel"))
