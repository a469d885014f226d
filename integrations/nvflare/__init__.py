"""secagg in NVIDIA FLARE 2.9: federated averaging whose server cannot read what it adds. See docs/nvflare.md."""

from importlib import import_module
from typing import Any

_NAMES = {
    "recipe": ["SecAggFedAvgRecipe"],
    "filters": ["SecAggDecryptor", "SecAggEncryptor", "SecAggFinal"],
    "server": ["SecAggAggregator", "SecAggFedAvg", "SecAggPersistor"],
    "builder": ["SecAggBuilder"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    # NVFlare loads when one of them is first used.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
