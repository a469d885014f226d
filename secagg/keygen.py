"""Key generation: once for a federation, by whoever the sites trust with it."""

from __future__ import annotations

from .backends.registry import load_backend
from .codec import FixedPointCodec, RealCodec
from .config import Config
from .key import ClientKey, KeyPair
from .ring import Ring


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
    # Refuse now what no site could use.
    RealCodec(config.params, config.aggregation)
    if config.encrypt.leaves_clear:
        FixedPointCodec(config.aggregation)
    material = load_backend(config.lib).generate(config.params)
    Ring.of_ciphertext(config.params, material.primes)
    key = ClientKey(config.params, material)
    return KeyPair(key, key.server)
