"""What a backend is: it turns plaintext blocks into words and words into plaintext blocks, nothing else."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailableError, ConfigError
from ..key import ClientKey, KeyMaterial
from ..params import Params

#: Clara's trust model, which every backend with one key for all sites repeats.
SHARED_KEY_TRUST = (
    "all sites share one secret key, the server has none; the server together with any one site can read every update"
)


class Backend(ABC):
    """A backend bound to params and key. Subclass it and register the class as an entry point.

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
    def encrypt(self, slots: NDArray[np.float64]) -> NDArray[np.uint64]:
        """Encrypt one block.

        Parameters
        ----------
        slots : ndarray of float64, shape (slot_count,)
            Plaintext block.

        Returns
        -------
        ndarray of uint64, shape (2 * data primes * N,)
            Words of both polynomials in NTT form, a row of N words a prime. A buffer that the next call may use again.
        """

    @abstractmethod
    def decrypt(self, words: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Decrypt one block; the inverse of `encrypt`.

        Raises
        ------
        DecryptionError
            If the library refuses the words.
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
        """Raise `ConfigError` if the backend does not know the scheme of `params`."""
        if params.scheme not in cls.schemes:
            raise ConfigError(f"backend {cls.id!r} knows {', '.join(cls.schemes)}, not {params.scheme}")
