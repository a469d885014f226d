"""secagg in NVIDIA FLARE 2.9: federated averaging whose server cannot read what it adds. See docs/nvflare.md."""

from typing import Any

from secagg.integrations import exported

_NAMES = {
    "recipe": ["SecAggFedAvgRecipe"],
    "filters": ["SecAggDecryptor", "SecAggEncryptor", "SecAggFinal"],
    "server": ["SecAggAggregator", "SecAggFedAvg", "SecAggPersistor"],
    "builder": ["SecAggBuilder"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    return exported(__name__, _MODULES, name, "in NVFlare", ("nvflare",))
