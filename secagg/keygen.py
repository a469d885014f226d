"""Key generation: once for a federation, by whoever the sites trust with it."""

from __future__ import annotations

import secrets

from .backends.registry import load_backend
from .config import Config
from .scheme.clear_codec import FixedPointCodec
from .scheme.codec import codec_for
from .scheme.ring import Ring
from .trust.key import ROOT_NBYTES, ClientKey, KeyPair
from .wire.header import check_epoch


def generate_keys(config: Config, epoch: int = 0) -> KeyPair:
    """Generate the keys of a federation with the backend that `config` names.

    Parameters
    ----------
    config : Config
        The federation's configuration.
    epoch : int
        Counts the keys of the federation, from 0. Updates and aggregates of another epoch are refused.

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
    codec = codec_for(config.params, config.aggregation)
    if config.encrypt.leaves_clear:
        FixedPointCodec(config.aggregation)
    check_epoch(epoch)
    config.aggregation.warn()
    material = load_backend(config.lib).generate(config.params)
    codec.check_moduli(material.primes, material.plain_modulus)
    Ring.of_update(config.params, material.primes)
    key = ClientKey(config.params, material, secrets.token_bytes(ROOT_NBYTES), epoch)
    return KeyPair(key, key.server)
