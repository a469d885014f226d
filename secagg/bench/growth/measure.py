"""One round of a federation, measured: its sites take turns in one process, and the server has another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from ...errors import QuotaError, show_size
from ...keygen import generate_keys
from ...setup.disk import LEAST_FREE_NBYTES
from ...setup.sizes import Sizes, sizes_of
from ...wire.layout import Layout
from ..memory import available
from ..settings import SETTINGS
from .model import empty_model
from .process import Worker, working, write_federation

#: Smaller models are encrypted so many times, for the median of the times.
_REPEATED_BELOW, _REPEATS = 500_000, 5


@dataclass(frozen=True)
class Round:
    """What a round took.

    Parameters
    ----------
    up_nbytes, down_nbytes : int
        What a site sends and receives, with calibration and scales, where there are some.
    encrypt_seconds : float
        Median of the sites; the calibration is in it.
    add_seconds : tuple of float
        Of each site, in order: the server reads a file, verifies it, and adds it.
    finish_seconds : float
        Of the server, once.
    decrypt_seconds : float
        Of one site.
    site_peak_nbytes, server_peak_nbytes : int
        Most memory at a time, above the model and above what the server had before.
    """

    up_nbytes: int
    down_nbytes: int
    encrypt_seconds: float
    add_seconds: tuple[float, ...]
    finish_seconds: float
    decrypt_seconds: float
    site_peak_nbytes: int
    server_peak_nbytes: int


def measure(setting: str, parameters: int, planned: int, sites: int = 2, folder: Path | None = None) -> Round:
    """Measure a round.

    Parameters
    ----------
    setting : str
        Of `SETTINGS`.
    parameters : int
        Of the model.
    planned : int
        ``max_clients``.
    sites : int
        How many send an update.
    folder : Path, optional
        Existing folder for temporary files; else that of the system.

    Raises
    ------
    QuotaError
        If disk or memory have no room for it; nothing is begun then.
    SecAggError
        If it fails, or its mean is not that of the model.
    """
    config = SETTINGS[setting].config(planned)
    sizes = sizes_of(config, Layout.of(empty_model(parameters), config), sites)
    with TemporaryDirectory(prefix="secagg-growth-", dir=folder) as temporary:
        path = Path(temporary)
        _check_room(path, 4 * parameters, sizes, feedback=bool(config.params.to_dict().get("error_feedback")))
        write_federation(path, config, generate_keys(config))
        names = [f"site-{number}" for number in range(1, sites + 1)]
        return _Federation(path, parameters, names).run(calibrated=config.aggregation.calibrated)


class _Federation:
    def __init__(self, folder: Path, parameters: int, sites: Sequence[str]) -> None:
        self._folder, self._parameters, self._sites = folder, parameters, sites
        self._repeats = _REPEATS if parameters < _REPEATED_BELOW and len(sites) <= _REPEATS else 1
        self._sent, self._scales, self._aggregate = (
            folder / name for name in ("sent.secagg", "scales.secagg", "aggregate.secagg")
        )

    def run(self, *, calibrated: bool) -> Round:
        with working("site", self._folder, self._parameters) as site:
            with working("server", self._folder) as server:
                measured = _Stage(0, [], [], 0.0)
                if calibrated:
                    measured = self._stage(server, "calibration", partial(site.ask, "calibrate"), self._scales)
                scales = str(self._scales) if calibrated else None
                encrypt = partial(site.ask, "encrypt", scales, self._repeats)
                updates = self._stage(server, "update", encrypt, self._aggregate)
                above = server.ask("above")
            self._sent.unlink()
            return Round(
                up_nbytes=measured.nbytes + updates.nbytes,
                down_nbytes=sum(path.stat().st_size for path in (self._scales, self._aggregate) if path.exists()),
                encrypt_seconds=median(measured.site_seconds or [0.0]) + median(updates.site_seconds),
                add_seconds=tuple(updates.add_seconds),
                finish_seconds=updates.finish_seconds,
                decrypt_seconds=site.ask("decrypt", str(self._aggregate), self._repeats),
                site_peak_nbytes=site.ask("above"),
                server_peak_nbytes=above,
            )

    def _stage(self, server: Worker, kind: str, send: Callable[[str, str], float], target: Path) -> _Stage:
        """Add what all sites send, one file at a time, so that a thousand sites do not take a disk."""
        server.ask("begin", kind)
        stage = _Stage(0, [], [], 0.0)
        for name in self._sites:
            stage.site_seconds.append(send(name, str(self._sent)))
            stage.nbytes = stage.nbytes or self._sent.stat().st_size
            stage.add_seconds.append(server.ask("add", str(self._sent)))
        stage.finish_seconds = server.ask("finish", str(target))
        return stage


@dataclass
class _Stage:
    """Bytes of the first site, seconds of all."""

    nbytes: int
    site_seconds: list[float]
    add_seconds: list[float]
    finish_seconds: float


def _check_room(folder: Path, model: int, sizes: Sizes, *, feedback: bool) -> None:
    """Raise `QuotaError` unless there is room: of the disk for an update and the sum, of memory for what holds them.

    In memory are the model and, first, what error feedback carries of it, twice, and the server's sum; later the mean.
    Room for the disk's caches is left, too, or writing would wait for the disk.
    """
    free, needed = shutil.disk_usage(folder).free, sizes.up_nbytes + sizes.down_nbytes + LEAST_FREE_NBYTES
    if needed > free:
        raise QuotaError(f"it needs {show_size(needed)} of disk in {folder.parent}, {show_size(free)} are free")
    memory = available()
    wanted = 2 * model + 2 * model * feedback + sizes.up_nbytes + sizes.sum_nbytes + LEAST_FREE_NBYTES
    if wanted > memory:
        raise QuotaError(f"it needs {show_size(wanted)} of memory, {show_size(memory)} are available")
