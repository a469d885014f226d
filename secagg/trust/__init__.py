"""Parties: keys and identities, who takes part, what they sign, and what each has in its kit.

==================  ==============================================================================
`Tls`, `Authority`  certificates: read those of one party, make those of a federation
`Certificate`       what a certificate says, held against the files beside it
`Party`, `Project`  who takes part, as the provisioner has signed it
`SiteKit` …         what a party has: `load_kit`, `load_site_kit`, `load_server_kit`
==================  ==============================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .certificates import Certificate
    from .identity import Identity
    from .key import ClientKey, ServerKey, load_key
    from .kit import ServerKit, SiteKit, load_kit, load_server_kit, load_site_kit
    from .parties import Party
    from .project import Project
    from .receipt import Receipt
    from .tls import Authority, Tls

__all__ = [
    "Authority",
    "Certificate",
    "ClientKey",
    "Identity",
    "Party",
    "Project",
    "Receipt",
    "ServerKey",
    "ServerKit",
    "SiteKit",
    "Tls",
    "load_key",
    "load_kit",
    "load_server_kit",
    "load_site_kit",
]

_MODULES = {
    "Authority": "tls",
    "Certificate": "certificates",
    "ClientKey": "key",
    "Identity": "identity",
    "Party": "parties",
    "Project": "project",
    "Receipt": "receipt",
    "ServerKey": "key",
    "ServerKit": "kit",
    "SiteKit": "kit",
    "Tls": "tls",
    "load_key": "key",
    "load_kit": "kit",
    "load_server_kit": "kit",
    "load_site_kit": "kit",
}


def __getattr__(name: str) -> Any:
    # `import secagg` loads keys from here, and must not load what reads certificates.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
