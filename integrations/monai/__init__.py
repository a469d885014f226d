"""secagg in MONAI: an Ignite handler for ``SupervisedTrainer``.

::

    model = GlobalModel(site, network.state_dict())                # secagg.site
    handler = SecAggHandler(model, weight=len(patches), calibrate=exchange)
    trainer = SupervisedTrainer(..., train_handlers=[handler])     # or handler.attach(trainer)
    for _ in range(rounds):
        trainer.run()                                              # calibrates and encrypts in the end
        model.apply(exchange(handler.update))                      # upload, wait, download: any transport
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .handler import SecAggHandler

__all__ = ["SecAggHandler"]


def __getattr__(name: str) -> Any:
    # torch and Ignite load when the handler is first used.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .handler import SecAggHandler
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in ("torch", "ignite"):
            raise ImportError(f"secagg in MONAI needs {error.name}: install secagg[monai]") from error
        raise
    return SecAggHandler
