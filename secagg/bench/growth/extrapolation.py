"""What ten thousand sites would take: exact where the code tells, and carried over from measurements where not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from scipy import stats

from ...scheme.aggregation import MAX_CLIENTS
from ...server import MAX_CALLS, Limits
from ...setup import ProjectFile, Provisioner, pack
from ...setup.disk import round_nbytes
from ...trust.identity import Identity
from ...wire.header import Contribution, refuse_duplicates
from ...wire.tail import Proof, signed_message
from ..turns import stopwatch
from .costs import Costs, planned_sizes
from .federation import config_of, long_name, project_of, sum_of
from .links import round_seconds

SITES = MAX_CLIENTS

#: Of the server, of which the hours of a round are shown.
_LINKS = (1e8, 1e9, 1e10)

#: So many of all signatures are checked.
_SAMPLE = 50


def extrapolate(costs: Sequence[Costs], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what `SITES` sites take: mappings of ``what``, ``setting``, ``sites``, ``value``, ``unit`` and ``how``.

    Parameters
    ----------
    costs : sequence of Costs
        Of each setting, for one model.
    rows : sequence of mapping
        The measured rows of ``sites``.
    """
    found = [
        *((cost.setting, *item) for cost in costs for item in _of_setting(cost, rows)),
        *((None, *item) for item in _of_any(costs[0])),
    ]
    return [
        {
            "what": what,
            "setting": setting,
            "sites": SITES,
            "parameters": costs[0].parameters,
            "value": value,
            "unit": unit,
            "how": how,
        }
        for setting, what, value, unit, how in found
    ]


def _of_setting(cost: Costs, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, str, str]]:
    many = cost.cost(SITES)
    few = cost.measured.up_nbytes
    yield "bytes up, of a site", many.up_nbytes, "B", f"exact; {many.up_nbytes / few:.2f} × those of a small federation"
    yield "bytes down, of a site", many.down_nbytes, "B", "exact; names, nonces and signatures of all sites are in it"
    traffic = SITES * (many.up_nbytes + many.down_nbytes)
    yield "bytes through the server's link", traffic, "B", "exact, a round"
    for link in _LINKS:
        seconds = round_seconds(many, SITES, link, Limits().uploads_in_flight)
        yield f"round, all links {link / 1e6:,.0f} Mbit/s", seconds, "s", "simulated, without training"
    yield "encryption, of a site", many.encrypt_seconds, "s", "measured with fewer sites, by bytes"
    yield "additions, of the server", SITES * many.add_seconds, "s", "measured with fewer sites, by bytes"
    yield "decryption, of a site", many.decrypt_seconds, "s", "a stream for each site: fitted to fewer sites"
    total = planned_sizes(cost.setting, cost.parameters, SITES).sum_nbytes
    yield "memory of the server", total + SITES * _nbytes_a_site(cost, rows), "B", "one sum exact, lists fitted"
    disk = round_nbytes(project_of(cost.setting, cost.parameters, SITES))
    yield "disk of the server", disk or 0, "B", "exact; all updates of the open round, three sums, three models"


def _of_any(cost: Costs) -> Iterator[tuple[str, float, str, str]]:
    setting, parameters = cost.setting, cost.parameters
    summed = sum_of(setting, parameters, SITES)
    yield "head of the sum", len(summed.head), "B", "exact, names of the most characters"
    yield "threads of the server", MAX_CALLS * (SITES + 2), "threads", "the most that it starts; one a call that waits"
    signed = _sign(setting, parameters)
    yield "manifest", signed, "B", "exact, names of the most characters; sites take it when they join"
    yield "signatures, of a site", _check_seconds(setting, parameters), "s", f"measured, {_SAMPLE} of them"
    listed = summed.contributions
    seconds = median(stopwatch(lambda: refuse_duplicates([*listed]))[0] for _ in range(3))
    yield "search for duplicates, of the server", SITES * seconds / 2, "s", "measured, of a full list; in all additions"
    kit, nbytes = _kit(setting)
    yield "provisioning", SITES * kit, "s", "measured, of two sites: keys, certificates, scrypt"
    yield "kits", SITES * (nbytes + signed), "B", "each has the whole manifest"


def _nbytes_a_site(cost: Costs, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return by how much each site makes the server's memory grow, beside what an update has more of bytes."""
    mine = [row for row in rows if row["setting"] == cost.setting]
    beside = [row["server_peak_nbytes"] - row["up_nbytes"] for row in mine]
    return max(0.0, float(stats.linregress([row["sites"] for row in mine], beside).slope))


def _sign(setting: str, parameters: int) -> int:
    authority = Identity.generate()
    project = project_of(setting, parameters, SITES)
    return len(replace(project, authority=authority.public).sign(authority))


def _check_seconds(setting: str, parameters: int) -> float:
    """Return how long a site holds the contributions of a sum against the manifest."""
    known = [Identity.generate() for _ in range(_SAMPLE)]
    project, summed = project_of(setting, parameters, SITES, known), sum_of(setting, parameters, 2)
    # Sites are looked for from the first one on: these stand where the average one does.
    middle = SITES // 2
    moved = (*project.sites[_SAMPLE:middle], *project.sites[:_SAMPLE], *project.sites[middle:])
    project = replace(project, sites=moved)
    proofs = []
    for number, identity in enumerate(known):
        header = summed.of(Contribution(long_name(number), bytes([number] * 32)))
        proofs.append((header, Proof(bytes(32), identity.sign(signed_message(header.head, bytes(32))))))
    start = time.perf_counter()
    for header, proof in proofs:
        project.check_contribution(summed.of(header.contributions[0]), proof)
    return SITES * (time.perf_counter() - start) / _SAMPLE


def _kit(setting: str) -> tuple[float, int]:
    """Return seconds and bytes of a kit, packed."""
    with TemporaryDirectory(prefix="secagg-growth-") as temporary:
        folder, kits = Path(temporary), Path(temporary, "kits")
        kits.mkdir()
        file, packed = ProjectFile("growth", config_of(setting, 2), ("site-1", "site-2")), folder / "site-1.kit"
        made, _ = stopwatch(lambda: Provisioner.create(file, folder / "authority", kits))
        sealed, _ = stopwatch(lambda: pack(kits / "site-1", packed, "a passphrase"))
        return made / (len(file.sites) + 1) + sealed, packed.stat().st_size
