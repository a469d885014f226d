"""secagg in MONAI: an Ignite handler for ``SupervisedTrainer``, and the demo's task on a real brain MRI.

=================  ==============================================================================================
`SecAggHandler`    loads the global model before local training, encrypts the difference after it
:mod:`.mni152`     white matter in the MNI152 template: patches, network, trainer and Dice, without a download
=================  ==============================================================================================

::

    handler = SecAggHandler(site, weight=len(patches))
    trainer = SupervisedTrainer(..., train_handlers=[handler])     # or handler.attach(trainer)
    for _ in range(rounds):
        trainer.run()
        handler.receive(exchange(handler.update))                  # upload, wait, download: any transport
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
