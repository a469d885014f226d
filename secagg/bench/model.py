"""A model of one's own under every setting: what a site and the server do in a round, measured on the whole of it."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.registry import available_backends
from ..config import Config
from ..demo.children import Children
from ..errors import ConfigError, PrivacyWarning, RangeError, SecAggError, show, show_size
from ..scheme.codec import codec_for
from ..scheme.params import FLASHEParams
from ..scheme.presets import PRESETS
from ..scheme.scales import Scales, one_hot
from ..scheme.tensors import from_vector, to_vector
from ..setup.choices import check_sites
from ..setup.model_file import read_model
from ..setup.progress import Progress, Report, silent
from ..setup.sizes import header, sizes_of
from ..setup.speed import measure
from ..ui.units import show_count
from ..wire.layout import Layout
from .memory import available
from .parties import SHARES
from .settings import SETTINGS, Setting
from .sides import read_figures, write_job

#: Standard deviation of the values that are drawn for a list of shapes: what updates of networks typically have.
DRAWN_DEVIATION = 0.01

#: How long all settings together may go on repeating, and from how many values on none is repeated.
_SECONDS, _LARGE = 20.0, 10_000_000

#: The name of the row that the others are held against.
RAW = "raw"

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Model:
    """What is encrypted.

    Parameters
    ----------
    name : str
        The file's, without its ending.
    layout : Layout
        As federations send it: 16-bit floats as float32.
    values : mapping of str to ndarray
        Of each tensor that is sent, by its first name.
    drawn : bool
        Whether the values are random ones, as the file has only shapes.
    """

    name: str
    layout: Layout
    values: Mapping[str, NDArray[Any]]
    drawn: bool

    @classmethod
    def of(cls, name: str, layout: Layout, state: Mapping[str, Any] | None) -> Model:
        """Return the model of a layout with these tensors, or with values that are drawn, the same each time.

        Raises
        ------
        RangeError
            If a value is NaN or infinite.
        ConfigError
            If there is no room for the values that are drawn.
        """
        needed, free = 4 * sum(spec.size for spec in layout.sent), available()
        if state is None and needed > free:
            raise ConfigError(f"{name} takes {show_size(needed)} of memory, and {show_size(free)} are free")
        random = np.random.default_rng(0)
        values: dict[str, NDArray[Any]] = {}
        for spec in layout.sent:
            if state is None:
                found = random.standard_normal(spec.size, np.float32) * np.float32(DRAWN_DEVIATION)
            else:
                found = np.asarray(from_vector(to_vector(state[spec.name]), spec.dtype, (spec.size,)))
            if not np.isfinite(found).all():
                raise RangeError(f"{name}: tensor {spec.name!r} has NaN or infinity; is it of a training that works?")
            dtype = np.float64 if spec.dtype == "float64" else np.float32
            values[spec.name] = found.reshape(spec.shape).astype(dtype, copy=False)
        return cls(name, layout.widened(), values, drawn=state is None)

    @classmethod
    def load(cls, path: Path) -> Model:
        """Read a file as `secagg.setup.model_file.read_model` does, with its errors and those of `of`."""
        return cls.of(path.stem, *read_model(path))

    @property
    def parameters(self) -> int:
        """How many values are sent."""
        return sum(spec.size for spec in self.layout.sent)

    @property
    def raw_nbytes(self) -> int:
        """Bytes of the values as float32."""
        return 4 * self.parameters

    @property
    def largest(self) -> float:
        """The largest magnitude of a value."""
        return max(float(np.abs(values).max(initial=0.0)) for values in self.values.values())

    @property
    def bound(self) -> float:
        """What ``max_abs`` is where a configuration names it: the power of two that no value is beyond."""
        mantissa, exponent = math.frexp(self.largest)
        return math.ldexp(1.0, exponent - (mantissa == 0.5)) if self.largest else 1.0  # 0.5 is a power of two itself

    def facts(self) -> dict[str, Any]:
        """Return what a file of results says of it."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "tensors": len(self.layout.sent),
            "raw_nbytes": self.raw_nbytes,
            "values": "drawn" if self.drawn else "of the file",
            "max_abs": self.bound,
        }


@dataclass(frozen=True)
class CostRow:
    """What one setting costs; a list has a number for each repetition.

    Parameters
    ----------
    setting, title, lib, scheme : str
        Which it is.
    up_nbytes, down_nbytes : int
        Exactly what a site sends and receives in a round, calibration and scales included.
    encrypt_seconds, decrypt_seconds : list of float
        Of a site, bytes to send included; of calibration too, where there is one.
    add_seconds : list of float
        Of the server, for one site's messages, checks included.
    bits : float or None
        Precision: −log2 of `max_error` by the largest value. None if either is zero.
    max_error, error_bound : float
        Of the mean of two sites: the largest error, and what is promised.
    site_peak_nbytes, server_peak_nbytes : int
        Memory at most, above what model, libraries and keys take.
    problem : str or None
        Why there are no numbers.
    """

    setting: str
    title: str
    lib: str
    scheme: str
    up_nbytes: int | None = None
    down_nbytes: int | None = None
    encrypt_seconds: Sequence[float] = ()
    add_seconds: Sequence[float] = ()
    decrypt_seconds: Sequence[float] = ()
    bits: float | None = None
    max_error: float | None = None
    error_bound: float | None = None
    site_peak_nbytes: int | None = None
    server_peak_nbytes: int | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it for a file of results."""
        return asdict(self)


def choose(names: Sequence[str]) -> dict[str, Setting]:
    """Return the settings of these names, in their order; all of them without any. `ConfigError` of an unknown one."""
    for name in names:
        if name not in SETTINGS:
            raise ConfigError(f"--only names {show(name)}; there are {', '.join(SETTINGS)}")
    return {name: setting for name, setting in SETTINGS.items() if not names or name in names}


def is_long(model: Model) -> bool:
    """Whether it takes longer than a minute, so that it is worth an estimate: nothing is measured more than once."""
    return model.parameters > _LARGE


def expected_seconds(model: Model, sites: int, settings: Mapping[str, Setting], progress: Progress = silent) -> float:
    """Return about how long `compare` takes, from a few blocks under each setting."""
    backends, seconds = available_backends(), 0.0
    with progress("estimate how long it takes, from a few blocks") as report, warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        for number, setting in enumerate(settings.values()):
            report(number, len(settings))
            try:
                config = _config(model, sites, setting)
                if backends[config.lib].available and _lack(model, config, sites) is None:
                    found = measure(config, header("aggregate", len(SHARES), config, model.layout.under(config)))
                    seconds += len(SHARES) * found.encrypt + found.decrypt
            except SecAggError:
                continue  # its row will say it
        report(len(settings), len(settings))
    return seconds


def compare(
    model: Model,
    sites: int,
    settings: Mapping[str, Setting],
    encrypt: Any = "all",
    *,
    seconds: float = _SECONDS,
    progress: Progress = silent,
) -> list[CostRow]:
    """Return what raw float32 costs, and then each setting; they are measured one after another.

    Parameters
    ----------
    model : Model
        The model.
    sites : int
        Sites that sizes and room for the sum are planned for; the sum that is measured is of two.
    settings : mapping of str to Setting
        Which.
    encrypt : str or mapping
        What is encrypted.
    seconds : float
        How long they may take together where that is enough: as long, what has been done once is repeated.
    progress : callable, optional
        Shows how far it is.

    Raises
    ------
    ConfigError
        If no federation has so many sites.
    SecAggError
        If a mean is further from the true one than is promised, or a message has another size than is planned.
    """
    check_sites(sites)
    backends = available_backends()
    configs: dict[str, Config | None] = {RAW: None}
    rows = {RAW: CostRow(RAW, "raw float32", "numpy", "none")}
    for name, setting in settings.items():
        block = PRESETS.get(str(setting.he.get("preset")), setting.he)
        rows[name] = CostRow(name, setting.title, block["lib"], block["config"].get("scheme", FLASHEParams.scheme))
        problem = backends[block["lib"]].problem
        if problem is None:
            try:
                configs[name] = config = _config(model, sites, setting, encrypt)
                problem = _lack(model, config, sites)
            except SecAggError as error:
                problem = str(error)
        if problem is not None:
            configs.pop(name, None)
            rows[name] = replace(rows[name], problem=problem)
    each = 0.0 if is_long(model) else seconds / len(configs)
    title = f"measure {show_count(len(configs) - 1, 'way')} to encrypt {model.parameters:,} values"
    with progress(title) as report, closing(_measured(model, configs, each, report)) as measured:
        for name, found in measured:
            rows[name] = _filled(rows[name], found, model, configs[name], sites)
    return list(rows.values())


def _measured(
    model: Model, configs: Mapping[str, Config | None], seconds: float, report: Report
) -> Generator[tuple[str, dict[str, Any]]]:
    """Yield what each round has cost, or its ``problem``; its processes end with it, however it ends."""
    with tempfile.TemporaryDirectory(prefix="secagg-bench-") as name:
        path = Path(name, "model.npz")
        np.savez(path, **_numbered(model.values.values()))
        folders = {name: path.with_name(f"job-{name}") for name in configs}
        for name, config in configs.items():
            folders[name].mkdir()
            write_job(folders[name], config, model.layout.under(config) if config else model.layout, path, seconds)
        with Children() as children:
            children.start("measurement", f"{__package__}.sides", [*map(str, folders.values())], path.with_name("log"))
            for done, (name, folder) in enumerate(folders.items()):
                report(done, len(folders))
                while (over := read_figures(folder)) is None:
                    if not children.running({"measurement"}):
                        raise SecAggError(f"{name}: the measurement has ended without figures")
                    time.sleep(_POLL_SECONDS)
                yield name, over
        report(len(folders), len(folders))


def _numbered(values: Iterable[NDArray[Any]]) -> dict[str, Any]:
    return {str(number): array for number, array in enumerate(values)}  # names may be any text


def _filled(row: CostRow, found: dict[str, Any], model: Model, config: Config | None, sites: int) -> CostRow:
    """Return a row with its figures, which are held against what is promised."""
    if "problem" in found:
        return replace(row, **found)
    down, bound = found["down_nbytes"], model.largest * 2.0**-24  # a mean is rounded to float32
    if config is not None:
        planned = sizes_of(config, model.layout, len(SHARES))
        if (found["up_nbytes"], down) != (planned.up_nbytes, planned.down_nbytes):
            raise SecAggError(f"{row.setting}: messages have other sizes than are planned; report it")
        down = sizes_of(config, model.layout, sites).down_nbytes
        bound += _promised(model, config)
    error = found["max_error"]
    if not error <= bound:
        raise SecAggError(f"{row.setting}: a mean is off by {error:.3g}, and {bound:.3g} is promised; report it")
    bits = round(-math.log2(error / model.largest), 1) if error and model.largest else None
    return replace(row, **found | {"down_nbytes": down, "bits": bits, "error_bound": bound})


def _config(model: Model, sites: int, setting: Setting, encrypt: Any = "all") -> Config:
    return setting.config(sites, encrypt, **({"max_abs": model.bound} if setting.fixed else {}))


def _lack(model: Model, config: Config, sites: int) -> str | None:
    """Return what there is too little of, memory or disk; None if both are enough."""
    sizes = sizes_of(config, model.layout, sites)
    # Of two sites in one process the model and its mean, of one an update while it becomes bytes; of the server two
    # updates and their sum.
    needed, free = 4 * model.raw_nbytes + 5 * sizes.up_nbytes, available()
    if needed > free:
        return f"needs about {show_size(needed)} of memory, and {show_size(free)} are free"
    folder = tempfile.gettempdir()
    needed = model.raw_nbytes + 2 * sizes.up_nbytes + sizes.down_nbytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        return f"needs {show_size(needed)} in {folder}, and {show_size(free)} are free: set TMPDIR to another folder"
    return None


def _promised(model: Model, config: Config) -> float:
    """Return what is promised of the mean of two sites with a weight of 1 each."""
    measured = Scales.measured(one_hot([model.largest])).bounds
    bound = max(measured) if config.aggregation.calibrated else None
    return codec_for(config.params, config.aggregation).mean_error(len(SHARES), float(len(SHARES)), bound)
