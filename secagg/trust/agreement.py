"""What parties and updates must have in common: params, aggregation numbers, key, and what is encrypted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import Config
from ..errors import CapacityError, ConfigError, KeyMismatchError, LayoutError, MismatchError, VerificationError, show
from ..scheme.codec import codec_for
from ..wire.header import Header
from ..wire.layout import Layout
from ..wire.metrics import without_metrics
from .key import ServerKey
from .project import Project

#: What to do about a container of one kind where another is needed.
_OTHER_KINDS = {
    ("calibration", "scales"): ": pass the sum of all sites', as Aggregator(…, kind='calibration').finish() returns it",
    ("calibration", "update"): ": add it to an Aggregator(…, kind='calibration')",
    ("update", "calibration"): ": add it to an Aggregator of kind 'update'",
    ("scales", "aggregate"): ": pass scales as encrypt(…, calibration=…)",
}


def check_key(config: Config, key: ServerKey) -> None:
    """Hold a key against the configuration.

    Raises
    ------
    MismatchError
        If it was made for other params.
    ConfigError
        If sums of ``max_clients`` updates would not fit the key's moduli.
    """
    if key.params.of_key != config.params.of_key:
        fault = _difference(key.params.of_key, config.params.of_key)
        raise MismatchError(f"the key was made for other params than those of the configuration: {fault}")
    codec_for(config.params, config.aggregation).check_moduli(key.primes, key.plain_modulus)


def check_project(config: Config, key: ServerKey, project: Project) -> None:
    """Hold configuration and key against the project.

    Raises
    ------
    KeyFileError
        If the project has another HE key.
    MismatchError
        If it has another configuration; the library of ``he.lib``, and to ask for more sites, is each party's choice.
    """
    project.check_key(key.epoch, key.fingerprint)
    fewest = project.config.aggregation.min_clients
    if config.aggregation.min_clients < fewest:
        raise MismatchError(
            f"the configuration has aggregation.min_clients {config.aggregation.min_clients}, project {project.name} "
            f"(serial {project.serial}) demands {fewest} or more"
        )
    mine, theirs = config.to_dict(), project.config.to_dict()
    for party in (mine, theirs):
        del party["he"]["lib"], party["aggregation"]["min_clients"]
    if mine != theirs:
        raise MismatchError(
            f"the configuration is not that of project {project.name} (serial {project.serial}): "
            f"{_difference(mine, theirs)}"
        )


def check_header(header: Header, kind: str, config: Config, key: ServerKey) -> None:
    """Hold a header against configuration and key.

    Raises
    ------
    MismatchError
        Another kind than `kind`, or other params or aggregation numbers.
    KeyMismatchError
        Another key, or one of another epoch.
    LayoutError
        Another layout than the configuration makes it: plaintext where ciphertext belongs, say; or one so long that the
        head of a sum of ``max_clients`` updates would not fit.
    CapacityError
        More contributions than ``max_clients``.
    """
    who = f"the {header.kind} from {', '.join(header.sites[:3])}{'…' if len(header.sites) > 3 else ''}"
    if header.kind != kind:
        remedy = _OTHER_KINDS.get((header.kind, kind), "")
        raise MismatchError(f"{who} is of kind {header.kind!r}; kind {kind!r} is needed here{remedy}")
    if header.params != config.params:
        raise MismatchError(f"{who} has other params: {_difference(header.params.to_dict(), config.params.to_dict())}")
    for name in ("max_clients", "precision", "max_abs", "max_weight"):
        theirs, mine = getattr(header.aggregation, name), getattr(config.aggregation, name)
        if theirs != mine:
            raise MismatchError(
                f"{who} has aggregation.{name} {show(theirs)}, expected {show(mine)}: give all sites one config"
            )
    if header.epoch != key.epoch:
        raise KeyMismatchError(f"{who} is of epoch {header.epoch} of the key, expected epoch {key.epoch}")
    if header.key != key.fingerprint:
        raise KeyMismatchError(f"{who} is under key {header.key[:16]}…, expected {key.fingerprint[:16]}…")
    try:
        expected = header.layout.under(config)
        expected.bounds(config.aggregation)
    except (ConfigError, LayoutError) as error:
        raise LayoutError(f"{who} has a layout that does not fit the configuration: {error}") from error
    fault = expected.difference(header.layout)
    if fault:
        raise LayoutError(f"{who} has another layout than the configuration makes it: {fault}")
    header.check_room()
    if len(header.contributions) > config.aggregation.max_clients:
        raise CapacityError(
            f"{who} has {len(header.contributions)} contributions, the sum is planned for max_clients "
            f"{config.aggregation.max_clients}"
        )


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any], inside: str = "") -> str:
    """Return in one line the names under which two blocks differ, with both values, and what to do if that is known."""
    faults = []
    of_one_scheme = found.get("scheme") == expected.get("scheme")  # else nothing but that says anything
    for name in dict.fromkeys((*expected, *found)) if of_one_scheme else ("scheme",):
        one, other = found.get(name), expected.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and one != other:
            faults.append(_difference(one, other, f"{inside}{name}."))
        elif one != other:
            faults.append(f"{inside}{name} {_value(found, name)}, expected {_value(expected, name)}")
            # Where params are planned, what is seeded has other moduli.
            planned = found.get("scheme") == "BGV" and name == "coeff_mod_bit_sizes" and "seeded" not in found
            if name == "seeded" or planned:
                faults.append("pyfhel knows no seeds: where one site uses it, set `seeded: false` for all sites")
    return "; ".join(faults)


def _value(block: Mapping[str, Any], name: str) -> str:
    return show(block[name]) if name in block else "missing"


def check_one_exchange(config: Config) -> None:
    """Raise `ConfigError` if rounds of a configuration need two exchanges, where a framework has one."""
    if config.aggregation.precision == "auto":
        raise ConfigError(
            "aggregation.precision is 'auto', which needs two exchanges a round, and a framework has one: set "
            "aggregation: {precision: previous}, whose scales follow from the round before, or give max_abs"
        )


def check_project_layout(project: Project, layout: Layout) -> None:
    """Raise `LayoutError` if a model is another than the project's; metrics beside it do not count."""
    fault = project.layout and without_metrics(project.layout).difference(without_metrics(layout))
    if fault:
        raise LayoutError(f"the model is another than that of project {project.name}: {fault}")


def check_first_model(project: Project, first: Mapping[str, Any]) -> None:
    """Do as `check_first_base`, for the tensors of the first global model."""
    if project.base is not None:
        check_first_base(project, Layout.of(first, project.config).widened().base(first))


def check_first_base(project: Project, base: bytes) -> None:
    """Raise `VerificationError` if the first global model is not the one that the project's provisioner has signed."""
    if project.base not in (None, base):
        raise VerificationError(
            f"the first global model is another than the one that the manifest of project {project.name} is for: "
            "somebody has changed it, or it was made from another seed"
        )
