"""All of it: rounds of many sizes and of many sites, links, slopes, limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import PrivacyWarning, SecAggError
from ...server import Limits
from ...setup.progress import Progress, silent
from ..settings import SETTINGS
from ..turns import take_turns
from .costs import ADDED, Costs
from .extrapolation import extrapolate
from .limits import find_limits, first_of
from .links import Cost, round_seconds
from .measure import Round, measure
from .slopes import fit
from .worker import WrongMeanError

#: Sites that are planned where parameters grow, as in the tables of other benchmarks.
PLANNED = 30

#: Of MONAI's SegResNet, the model of the links and of the extrapolation.
SEGRESNET = 4_700_914

LINKS = (1e7, 1e8, 1e9, 1e10)

#: Numbers of a measured row; where there was no room for the row, they are None.
_NUMBERS = (*Cost.__dataclass_fields__, "site_peak_nbytes", "server_peak_nbytes")

#: What slopes are fitted of: a number of a row, and its title.
_GROWS = {
    "up_nbytes": "bytes up",
    "down_nbytes": "bytes down",
    "encrypt_seconds": "encryption",
    "add_seconds": "addition",
    "decrypt_seconds": "decryption",
    "site_peak_nbytes": "memory of a site, above the model",
    "server_peak_nbytes": "memory of the server",
}


@dataclass(frozen=True)
class Scope:
    """What is measured.

    Parameters
    ----------
    parameters : mapping of str to sequence of int
        Numbers of parameters, by setting; the smallest ones are measured first.
    sites : sequence of int
        Numbers of sites.
    sites_parameters : int
        Of the model that so many sites have.
    model : int
        Parameters of the model of links and extrapolation, which is measured with each of `settings`.
    settings : sequence of str
        With which numbers of sites are measured, and links.
    """

    parameters: Mapping[str, Sequence[int]]
    sites: Sequence[int]
    sites_parameters: int
    model: int
    settings: Sequence[str]


_TO_10_7 = (10**5, 10**6, SEGRESNET, 10**7)

#: Clara's params end where one update has 250 MB, presets where what is measured takes longer than it is worth.
FULL = Scope(
    parameters={
        "tenseal": _TO_10_7,
        "exact": (*_TO_10_7, 10**8),
        "smallest": (*_TO_10_7, 10**8),
        "flashe-16": (*_TO_10_7, 10**8, 10**9),
        "seal-bgv-16": (*_TO_10_7, 10**8, 10**9),
    },
    sites=(2, 10, 30, 100, 300, 1000),
    sites_parameters=10**5,
    model=SEGRESNET,
    settings=("tenseal", "seal-bgv-16", "flashe-16"),
)

SMALL = Scope(
    parameters={"exact": (10**4,), "flashe-16": (10**4, 3 * 10**4, 10**5)},
    sites=(2, 4, 8),
    sites_parameters=10**4,
    model=10**5,
    settings=("flashe-16",),
)


def run(scope: Scope, progress: Progress = silent) -> dict[str, Any]:
    """Measure, and return what results of kind ``"growth"`` hold.

    Parameters
    ----------
    scope : Scope
        What is measured.
    progress : callable, optional
        Shows how far it is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)  # of sums of two updates
        parameters = list(_by_parameters(scope, progress))
        sites = list(_by_sites(scope, progress))
        costs = list(_costs(scope, parameters, sites))
        with progress("links, limits, and what ten thousand sites take"):
            raw = _raw(scope.model)
            limits = find_limits(costs) if costs else []
            return {
                "model": {"parameters": scope.model, "raw_nbytes": raw.up_nbytes, "raw_add_seconds": raw.add_seconds},
                "parameters": parameters,
                "sites": sites,
                "links": list(_by_links(scope, costs, raw)),
                "slopes": [*_slopes(parameters, "parameters"), *_slopes(sites, "sites")],
                "limits": [asdict(limit) for limit in limits],
                "breaks_first": [first_of(limits, cost.setting) for cost in costs],
                "extrapolation": extrapolate(costs, sites) if costs else [],
            }


def _by_parameters(scope: Scope, progress: Progress) -> Iterator[dict[str, Any]]:
    sizes = sorted({size for sizes in scope.parameters.values() for size in sizes})
    for size in sizes:
        for setting in (setting for setting, measured in scope.parameters.items() if size in measured):
            with progress(f"{size:,} parameters: {SETTINGS[setting].title}"):
                found = _measured(setting, size, PLANNED, ADDED)
            row = {"setting": setting, "parameters": size, **found}
            # The first addition makes room for the sum.
            yield row | {"add_seconds": found["add_seconds"] and found["add_seconds"][-1]}


def _by_sites(scope: Scope, progress: Progress) -> Iterator[dict[str, Any]]:
    for count in scope.sites:
        for setting in scope.settings:
            with progress(f"{count:,} sites: {SETTINGS[setting].title}"):
                found = _measured(setting, scope.sites_parameters, count, count)
            row = {"setting": setting, "sites": count, "parameters": scope.sites_parameters, **found}
            yield row | {"add_seconds": found["add_seconds"] and sum(found["add_seconds"])}


def _measured(setting: str, parameters: int, planned: int, sites: int) -> dict[str, Any]:
    """Return a round as numbers, and the problem that there was, if any."""
    try:
        found: Round = measure(setting, parameters, planned, sites)
    except WrongMeanError:
        raise
    except SecAggError as error:
        return {**dict.fromkeys(_NUMBERS), "problem": f"{type(error).__name__}: {error}"}
    return {**asdict(found), "problem": None}


def _costs(
    scope: Scope, parameters: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]]
) -> Iterator[Costs]:
    """Yield the costs of each setting, but of one that there was no room for."""
    for setting in scope.settings:
        of_sites = [row for row in sites if row["setting"] == setting and row["problem"] is None]
        for row in parameters:
            mine = (row["setting"], row["parameters"], row["problem"]) == (setting, scope.model, None)
            if mine and len(of_sites) > 1:
                yield Costs.of(row, of_sites)


def _raw(parameters: int) -> Cost:
    """Return the cost of float32 values, added one by one."""
    total, values = np.zeros(parameters, np.float32), np.ones(parameters, np.float32)
    seconds = take_turns({"raw": lambda: np.add(total, values, out=total)}, 10)["raw"]
    return Cost(values.nbytes, values.nbytes, 0.0, float(np.median(seconds)), 0.0, 0.0)


def _by_links(scope: Scope, costs: Sequence[Costs], raw: Cost) -> Iterator[dict[str, Any]]:
    at_a_time = Limits().uploads_in_flight
    for cost in costs:
        for sites in scope.sites:
            for link in LINKS:
                yield {
                    "setting": cost.setting,
                    "sites": sites,
                    "bits_per_second": link,
                    "parameters": cost.parameters,
                    "round_seconds": round_seconds(cost.cost(sites), sites, link, at_a_time),
                    "raw_round_seconds": round_seconds(raw, sites, link, at_a_time),
                }


def _slopes(rows: Sequence[Mapping[str, Any]], by: str) -> Iterator[dict[str, Any]]:
    for setting in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == setting and row["problem"] is None]
        for number, title in _GROWS.items():
            found = fit([row[by] for row in mine], [row[number] for row in mine])
            if found is not None:
                yield {"what": f"{title}, by {by}", "setting": setting, **asdict(found), "words": found.words}
