"""A kit: the folder that one party of a federation gets, made by ``secagg keygen``.

====================  ======================  =================
file                  site                    server
====================  ======================  =================
``federation.yaml``   configuration           configuration
``client.key``        the shared HE key       –
``server.key``        –                       ring, fingerprint
``ca.crt``            authority               authority
``tls.crt, tls.key``  the site's certificate  the server's
====================  ======================  =================
"""

from __future__ import annotations

from pathlib import Path

from ..config import Config
from ..key import ClientKey, ServerKey, check_role, load_key

CONFIG_FILE = "federation.yaml"
CLIENT_KEY_FILE = "client.key"
SERVER_KEY_FILE = "server.key"
TLS_FILE = "tls.crt"


def load_site_kit(folder: Path) -> tuple[Config, ClientKey]:
    """Return configuration and key of a site's kit; `ConfigError` or `KeyFileError` say what is missing."""
    config, key = Config.load(folder / CONFIG_FILE), load_key(folder / CLIENT_KEY_FILE)
    check_role(key, ClientKey)
    assert isinstance(key, ClientKey)
    return config, key


def load_server_kit(folder: Path) -> tuple[Config, ServerKey]:
    """Return configuration and key of the server's kit; `ConfigError` or `KeyFileError` say what is missing."""
    config, key = Config.load(folder / CONFIG_FILE), load_key(folder / SERVER_KEY_FILE)
    check_role(key, ServerKey)
    assert isinstance(key, ServerKey)
    return config, key
