"""``project.yaml``: what a federation is to be, before it has keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import CONFIG_KEYS, Config
from ..errors import ConfigError, SecAggError, show
from ..protocol.address import check_host
from ..scheme.metric_names import is_metric
from ..scheme.params import is_int
from ..scheme.tensors import held
from ..storage.yaml_file import read_yaml
from ..trust.agreed_task import check_task
from ..trust.kit_files import SERVER
from ..trust.storage_hosts import check_storage
from ..wire.header import check_site
from ..wire.layout import Layout
from ..wire.metrics import with_metrics
from .model_file import SAFETENSORS_SUFFIX, read_layout, read_state

MAX_DAYS = 36_500

_OWN_KEYS = ("project", "hosts", "sites", "days", "model", "initial", "task", "storage")


@dataclass(frozen=True)
class ProjectFile:
    """A federation to be provisioned.

    Parameters
    ----------
    name : str
        Name of the federation.
    config : Config
        Its configuration.
    sites : tuple of str
        Names of the sites.
    hosts : tuple of str
        Host names and addresses under which sites reach the server, beside those of the loopback.
    days : int
        How long manifest and certificates are valid.
    layout : Layout, optional
        The model, if it is known: the server then knows the size of an upload before the first one. Its dtypes are
        those in which sites send it: 16-bit floats are float32. The configuration's metrics are in it.
    initial : mapping of str to numpy.ndarray, optional
        The global model that round 0 begins from, in those dtypes, if it is known: then no site can bring another one.
    task : mapping of str to object, optional
        What the sites agree on of their task, as of `secagg.trust.Project`.
    storage : tuple of str
        Hosts of object stores that sites may send updates to, as of `secagg.trust.Project`.

    Raises
    ------
    ConfigError
        If a name is invalid or stands twice, or a number is out of range.
    """

    name: str
    config: Config
    sites: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    days: int = 365
    layout: Layout | None = None
    initial: Mapping[str, Any] | None = None
    task: Mapping[str, Any] | None = None
    storage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_site(self.name, "project")
        check_names(self.sites, ())
        for host in self.hosts:
            check_host(host)
        check_days(self.days)
        if self.task is not None:
            check_task(self.task)
        check_storage(self.storage)
        check_count(len(self.sites), self.config)
        least = self.config.aggregation.min_clients
        if len(self.sites) < least:
            raise ConfigError(
                f"{len(self.sites)} sites can never be the {least} of aggregation.min_clients; name more sites, or "
                "lower min_clients"
            )

    @classmethod
    def load(cls, path: Path) -> ProjectFile:
        """Read a file: that of a `Config`, with the keys ``project``, ``hosts``, ``sites`` and what goes with them.

        Raises
        ------
        ConfigError
            If it cannot be read, or a value cannot be.
        FormatError, LayoutError
            If the file that ``model`` or ``initial`` names cannot be read as a model.
        """
        data = read_yaml(path)
        if data is None:
            raise ConfigError(f"{path} is empty; `secagg provision --help` shows an example")
        if not isinstance(data, Mapping):
            raise ConfigError(f"{path} holds {show(data)}; write a block of keys: project, hosts, sites, he …")
        for key in ("project", "hosts", "sites"):
            if key not in data:
                raise ConfigError(f"{path} lacks the key {key!r}; `secagg provision --help` shows an example")
        for key in data:
            if key not in (*_OWN_KEYS, *CONFIG_KEYS):
                raise ConfigError(
                    f"{path} has an unknown key {key!r}; it knows {', '.join((*_OWN_KEYS, *CONFIG_KEYS))}"
                )
        if "model" in data and "initial" in data:
            raise ConfigError(f"{path} has both 'model' and 'initial'; the latter says all that the former does")
        config = Config.from_dict({key: data[key] for key in CONFIG_KEYS if key in data})
        files = {key: path.parent / _text(data[key], key) for key in ("model", "initial") if key in data}
        for key, file in files.items():
            if file.suffix.lower() == SAFETENSORS_SUFFIX:
                raise ConfigError(
                    f"{key}: {file} has not the network's order of tensors, as safetensors sorts them, and all sites "
                    "would be refused; give a .pt of torch.save(model.state_dict(), file), or an .npz"
                )
        layout = next((_layout(file, config) for file in files.values()), None)
        return cls(
            name=_text(data["project"], "project"),
            config=config,
            sites=_texts(data["sites"], "sites", "[site-1, site-2, site-3]"),
            hosts=_texts(data["hosts"], "hosts", "[fl.example.org]"),
            days=data.get("days", cls.days),
            layout=layout,
            initial=_initial(files["initial"], layout) if "initial" in files and layout is not None else None,
            task=check_task(data["task"]) if "task" in data else None,
            storage=check_storage(data.get("storage", ())),
        )

    @property
    def base(self) -> bytes | None:
        """Digest of the global model that round 0 begins from; None if it is not known."""
        if self.initial is None:
            return None
        return (self.layout or Layout.of(self.initial, self.config)).base(self.initial)


def check_names(names: tuple[str, ...], taken: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless sites can have these names, beside those that are `taken`."""
    seen = {name.casefold() for name in (SERVER, *taken)}
    for name in names:
        check_site(name)
        if name[0] in ".-":
            raise ConfigError(f"site name {name!r}: begin it with a letter, a digit or '_', for the sake of its files")
        if name == SERVER:
            raise ConfigError(f"a site cannot be called {SERVER!r}, which names the server; choose another name")
        if name in taken:
            raise ConfigError(f"site {name!r} is in the project already, or was; choose another name")
        if name.casefold() in seen:
            raise ConfigError(f"site {name!r} stands twice (cases do not count); each site has a name of its own")
        seen.add(name.casefold())


def check_days(days: object) -> int:
    """Return a number of days, or raise `ConfigError`."""
    if not is_int(days) or not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"days is {show(days)}; kits are valid for 1 to {MAX_DAYS} days")
    return days


def check_count(count: int, config: Config) -> None:
    """Raise `ConfigError` if there are more sites than the sum is planned for."""
    if count > config.aggregation.max_clients:
        raise ConfigError(
            f"{count} sites are more than aggregation.max_clients {config.aggregation.max_clients}, for which the sum "
            "is planned; raise max_clients in a new project"
        )


def _initial(path: Path, layout: Layout) -> Mapping[str, Any]:
    state = read_state(path)
    model = (spec for spec in layout.tensors if not is_metric(spec.name))
    return {name: held(name, state[name]) for spec in model for name in spec.names}


def _layout(path: Path, config: Config) -> Layout:
    layout = with_metrics(read_layout(path).widened(), config.metrics)
    try:
        layout = layout.under(config)
        layout.bounds(config.aggregation)
    except SecAggError as error:
        raise ConfigError(f"the configuration does not fit the model {path}: {error}") from error
    return layout


def _texts(value: Any, key: str, example: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{key} is {show(value)}; give a list such as {example}")
    return tuple(_text(item, key) for item in value)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}: {show(value)} is not text; put it in quotes")
    return value
