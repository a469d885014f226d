"""NVFlare's HE by its own classes, with the context that its provisioning makes of Clara's params."""

from __future__ import annotations

from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_opt.he import decomposers
from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder

from ..settings import CLARA
from . import nvflare_raw
from .job import Job

_CONTEXT = "client_context.tenseal"

decomposers.register()  # as its encryptor, aggregator and decryptor do


class Site(nvflare_raw.Site):
    """See `roles.Site`."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        builder = HEBuilder(**CLARA)
        builder.initialize(None, None)
        (job.keys / _CONTEXT).write_bytes(builder.get_serialized_context(is_client=True))
        self._encryptor = HEModelEncryptor()
        self._encryptor.tenseal_context = _context(job)
        self._encryptor.encrypt_layers = [True]  # all, as its START_RUN has it

    def _filter(self, dxo: DXO, name: str) -> DXO:
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, name)
        self._context.set_peer_context(peer)
        return self._encryptor.process_dxo(dxo, Shareable(), self._context)


class Server(nvflare_raw.Server):
    """See `roles.Server`."""

    _make = HEInTimeAccumulateWeightedAggregator
    _weighs = False  # the site does, before it encrypts


class Reader(nvflare_raw.Reader):
    """See `roles.Reader`."""

    def __init__(self, job: Job) -> None:
        self._context = _context(job)

    def _read(self, value: Any) -> NDArray[np.floating]:
        return np.asarray(value.decrypt(self._context.secret_key()))


def _context(job: Job) -> Any:
    return ts.context_from((job.keys / _CONTEXT).read_bytes())
