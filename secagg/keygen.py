"""Key generation: once for a federation, by whoever the sites trust with it."""

from __future__ import annotations

from .backends.registry import load_backend
from .codec import RealCodec
from .config import Config
from .key import ClientKey, KeyPair


def generate_keys(config: Config) -> KeyPair:
    """Generate the keys of a federation with the backend that `config` names.

    Returns
    -------
    KeyPair
        ``client``, which every site gets, and ``server``, which holds nothing secret. Any backend of the same scheme
        can use them.

    Raises
    ------
    BackendUnavailableError
        If the HE library is not installed.
    ConfigError
        If the library refuses the params, or sums of ``max_clients`` updates would not fit them.
    """
    RealCodec(config.params, config.aggregation)  # refuse now what no site could use
    key = ClientKey(config.params, load_backend(config.lib).generate(config.params))
    return KeyPair(key, key.server)
