"""Setting up a federation: what suits its model, the project file, the provisioner, and kits.

=============================  ============================================================
`ProjectFile`                  what a federation is to be
`provision`, `change_kits`     make a folder of encrypted kits, and change it: `NewKits`
`Provisioner`                  makes kits as folders: keys, certificates, the signed manifest
`pack`, `unpack`, `install`    a kit as one encrypted file, and back to a folder
`read_state`                   the tensors of a model, from a file
=============================  ============================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .installing import install
    from .kits import NewKits, change_kits, provision
    from .model_file import read_state
    from .packing import pack, unpack
    from .project_file import ProjectFile
    from .provisioner import Provisioner

__all__ = [
    "NewKits",
    "ProjectFile",
    "Provisioner",
    "change_kits",
    "install",
    "pack",
    "provision",
    "read_state",
    "unpack",
]

_MODULES = {
    "NewKits": "kits",
    "ProjectFile": "project_file",
    "Provisioner": "provisioner",
    "change_kits": "kits",
    "install": "installing",
    "pack": "packing",
    "provision": "kits",
    "read_state": "model_file",
    "unpack": "packing",
}


def __getattr__(name: str) -> Any:
    # What plans or reads alone must not load what makes certificates.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
