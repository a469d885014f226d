"""What a backend is: it turns plaintext blocks into words and words into plaintext blocks, nothing else."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailableError, ConfigError
from ..scheme.params import LatticeParams, Params
from ..trust.key import ClientKey, KeyMaterial
from ..wire.header import Contribution

#: Clara's trust model, which every backend with one key for all sites repeats.
SHARED_KEY_TRUST = (
    "all sites share one secret key, the server has none; the server together with any one site can read every update"
)


class Cipher(Protocol):
    """What turns the plaintext blocks of one update into words, or the words of one aggregate into plaintext blocks."""

    def encrypt(self, block: int, plain: NDArray[Any]) -> NDArray[np.uint64]:
        """Return the words of whole plaintext blocks from the one of index `block`; may change `plain`."""

    def decrypt(self, block: int, words: NDArray[np.uint64]) -> NDArray[Any]:
        """Return the plaintext of whole blocks from the one of index `block`; may change `words`.

        Raises
        ------
        DecryptionError
            If the words are no ciphertext.
        """


class Backend(ABC):
    """A backend bound to params and key. Register the class as an entry point.

    Subclass `secagg.backends.lattice.LatticeBackend` for a library of SEAL's kind, and this class for anything else.

    The class attributes describe the plug-in. Import the HE library in methods through `library`, never at the top of
    the module, so that listing backends works without it.

    Parameters
    ----------
    params : Params
        Scheme parameters.
    key : ClientKey
        Key made under the same params, by any backend of the scheme.

    Raises
    ------
    BackendUnavailableError
        If the HE library is not installed.
    ConfigError
        If the library cannot work with these params.
    BackendError
        If the library refuses the key.
    """

    #: Value of ``he.lib`` that selects the backend.
    id: ClassVar[str]
    #: Schemes that the backend can encrypt under.
    schemes: ClassVar[tuple[str, ...]]
    #: Who must trust whom, in one sentence.
    trust: ClassVar[str]
    #: Import name of the HE library.
    module: ClassVar[str]
    #: Whether ciphertexts are encrypted under the secret key, so that seeds may stand for half of them.
    symmetric: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, params: Params, key: ClientKey) -> None: ...

    @classmethod
    @abstractmethod
    def generate(cls, params: Params) -> KeyMaterial:
        """Generate a fresh key with the library's own randomness.

        Raises
        ------
        BackendUnavailableError, ConfigError
            As the constructor.
        """

    @abstractmethod
    def cipher(self, round: int, contributions: Sequence[Contribution]) -> Cipher:
        """Begin an update, which has one contribution, or an aggregate, which has several.

        Parameters
        ----------
        round : int
            Its round.
        contributions : sequence of Contribution
            Who is in it, each with its nonce.
        """

    @classmethod
    def library(cls) -> Any:
        """Import and return the HE library.

        Raises
        ------
        BackendUnavailableError
            If it cannot be imported; the message names the extra to install.
        """
        try:
            return importlib.import_module(cls.module)
        except ImportError as error:
            raise BackendUnavailableError(
                f"backend {cls.id!r} needs the library {cls.module}: pip install 'secagg[{cls.id}]' ({error})"
            ) from error

    @classmethod
    def check_scheme(cls, params: Params) -> None:
        """Raise `ConfigError` if the backend does not know the scheme of `params`, or cannot encrypt as they ask."""
        if params.scheme not in cls.schemes:
            raise ConfigError(f"backend {cls.id!r} knows {', '.join(cls.schemes)}, not {params.scheme}")
        if isinstance(params, LatticeParams) and params.seeded and not cls.symmetric:
            raise ConfigError(
                f"backend {cls.id!r} encrypts under the public key, whose ciphertexts seeds cannot stand for: "
                "set seeded: false for all sites"
            )
