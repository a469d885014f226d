"""A folder of results as the benchmarks leave them, with numbers that are made up."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from secagg.bench.results import Results
from secagg.bench.settings import SETTINGS
from secagg.bench.shards.prices import Prices
from secagg.bench.shards.run import conclude
from secagg.bench.shards.simulation import Plan

MODEL = {"name": "SegResNet", "parameters": 4_700_914, "tensors": 83, "raw_nbytes": 18_803_656, "max_abs": 0.5}
MACHINE = {"processor": "Made-up Processor 9000", "cores": 2, "libraries": {}}
DATE = "2026-01-02T03:04:05+00:00"
#: Of the settings in their order: bytes by raw, and the seconds of encrypt, add and decrypt.
_COSTS = [
    *((6.25, 3.59, 0.058, 1.42), (6.25, 3.60, 0.084, 1.66), (12.5, 4.76, 0.128, 1.64), (1.41, 1.91, 0.044, 0.677)),
    *((1.41, 1.0, 0.034, 0.367), (2.81, 2.63, 0.052, 0.384), (0.83, 0.407, 0.013, 0.155), (0.56, 0.321, 0.011, 0.122)),
    *((1.88, 0.821, 0.031, 0.465), (0.67, 0.025, 0.008, 0.032), (0.5, 0.03, 0.005, 0.021)),
    *((0.29, 0.3, 0.012, 0.1), (0.25, 0.04, 0.006, 0.03)),
]


def model_results() -> Results:
    """Every setting, and one that its library is not there for."""
    rows: list[dict[str, Any]] = []
    for (name, setting), (size, encrypt, add, decrypt) in zip(SETTINGS.items(), _COSTS, strict=True):
        lib = str(setting.he.get("lib") or {"exact": "seal", "smallest": "flashe"}[name])
        scheme = "FLASHE" if lib == "flashe" else str(setting.he.get("config", {}).get("scheme", "BGV"))
        times = {
            f"{step}_seconds": _thrice(value)
            for step, value in (("encrypt", encrypt), ("add", add), ("decrypt", decrypt))
        }
        rows.append(
            {
                "setting": name,
                "title": setting.title,
                "lib": lib,
                "scheme": scheme,
                "up_nbytes": round(size * MODEL["raw_nbytes"]),  # type: ignore[operator]
                "down_nbytes": round(size * MODEL["raw_nbytes"]),  # type: ignore[operator]
                **times,
                "bits": 12.3,
                "max_error": 2.4e-4,
                "error_bound": 3e-4,
                "site_peak_nbytes": 150_000_000,
                "server_peak_nbytes": 120_000_000,
                "problem": None,
            }
        )
    rows.append(
        {"setting": "other", "title": "another", "lib": "other", "scheme": "CKKS", "problem": "it is <not> there"}
    )
    return Results("model", "secagg bench segresnet.json", {"model": MODEL, "sites": 30, "rows": rows}, DATE, MACHINE)


def peers_results() -> Results:
    """Peers, ours and raw."""
    numbers = {
        "nvflare-he": ("peer", "NVFlare 2.9 HE", 339e6, 2.76, 3.84, 2.4e9),
        "bare-tenseal": ("peer", "TenSEAL alone", 269.8e6, 3.9, 0.7, 1.1e9),
        "bare-seal": ("peer", "seal-python alone", 235e6, 4.1, 0.3, None),
        "tenseal": ("secagg", "secagg, clara", 117.6e6, 3.59, 0.058, 119e6),
        "seal-bgv-16": ("secagg", "secagg, BGV", 15.6e6, 0.407, 0.013, 31e6),
        "smallest": ("secagg", "secagg, smallest", 4.7e6, 0.03, 0.005, 19e6),
        "float32": ("raw", "plain float32", 18.8e6, 0.015, 0.012, 19e6),
    }
    rows = [
        {
            "name": name,
            "group": group,
            "title": title,
            "version": "nvflare 2.9.0, tenseal 0.3.15",
            "encode_seconds": _thrice(encode),
            "up_nbytes": int(size),
            "add_seconds": _thrice(add),
            "finish_seconds": _thrice(0.46),
            "down_nbytes": int(0.5 * size),
            "decode_seconds": _thrice(0.46),
            "server_peak_nbytes": peak and int(peak),
            "site_peak_nbytes": 10**8,
            "max_error": 1.4e-7,
            "note": "",
            "problem": None,
        }
        for name, (group, title, size, encode, add, peak) in numbers.items()
    ]
    rows.append({"name": "gone", "group": "peer", "title": "Gone", "problem": "not installed"})
    return Results(
        "peers",
        "secagg bench peers",
        {"model": MODEL, "sites": 3, "rows": rows, "targets": _targets()},
        DATE,
        MACHINE,
    )


def clara_results(rounds: int = 12) -> Results:
    """Six settings, two numbers of sites, two seeds."""
    settings = {"raw": (1, 0, 0), "full": (6.25, 3.6, 1.4), "conv": (6.2, 3.5, 1.4), "three": (2.4, 0.5, 0.2)}
    settings |= {"exact": (0.29, 0.3, 0.1), "smallest": (0.25, 0.04, 0.03)}
    cells = [
        {
            "sites": sites,
            "seed": seed,
            "rows": [
                {
                    "setting": name,
                    "round": number,
                    "dice": 0.93 - 0.6 * 0.7**number - 0.004 * place * (-1) ** number * seed,
                    "nbytes": int(size * 18.8e6),
                    "train_seconds": 178.0 + seed,
                    "encrypt_seconds": encrypt,
                    "upload_seconds": 0.05 * size,
                    "add_seconds": 0.02 * sites if encrypt else 0.001,
                    "download_seconds": 0.04 * size,
                    "decrypt_seconds": decrypt,
                    "round_seconds": 178.5 + seed + encrypt + decrypt + 0.1 * size,
                }
                for place, (name, (size, encrypt, decrypt)) in enumerate(settings.items())
                for number in range(rounds)
            ],
        }
        for sites in (2, 8)
        for seed in (0, 1)
    ]
    many = [
        {
            "setting": name,
            "nbytes": int(size * 18.8e6),
            "encrypt_seconds": _thrice(encrypt),
            "upload_seconds": _thrice(0.1 * size),
            "decrypt_seconds": _thrice(decrypt),
        }
        for name, (size, encrypt, decrypt) in settings.items()
    ]
    data = {
        "model": MODEL,
        "rounds": rounds,
        "cells": cells,
        "many": {"sites": 30, "rows": many},
        "targets": _targets(),
    }
    return Results("clara", "secagg bench clara", data, DATE, MACHINE)


def growth_results() -> Results:
    """Four settings, and all that is said about them."""
    settings = {"tenseal": (25, 0.76e-6, 12e-9), "seal-bgv-16": (3.3, 87e-9, 2.8e-9), "exact": (1.2, 6e-8, 2.5e-9)}
    settings |= {"smallest": (1.0, 8e-9, 1.3e-9)}
    parameters = [
        {
            "setting": name,
            "parameters": count,
            "up_nbytes": int(size * count) + 4000,
            "encrypt_seconds": time * count + 1e-3,
            "add_seconds": add * count + 5e-4,
            "decrypt_seconds": time / 3 * count + 1e-3,
            "site_peak_nbytes": int(3 * size * count) + 10**6,
            "server_peak_nbytes": int(size * count) + 10**6 if count < 10**9 else None,
        }
        for name, (size, time, add) in settings.items()
        for count in (10**5, 10**6, 10**7, 10**8, 10**9)
    ]
    sites = [
        {
            "setting": name,
            "sites": count,
            "parameters": 10**6,
            "up_nbytes": int(size * 10**6),
            "down_nbytes": int(size * 10**6) + 200 * count,
            "add_seconds": add * 10**6 * count,
            "decrypt_seconds": time * 10**6 / 3 + 1e-4 * count,
            "server_peak_nbytes": int(size * 10**6),
        }
        for name, (size, time, add) in settings.items()
        for count in (2, 10, 30, 100, 300, 1000)
    ]
    links = [
        {
            "setting": name,
            "sites": 30,
            "bits_per_second": speed,
            "parameters": 4_700_914,
            "round_seconds": 16 * size * 4.7e6 / speed + time * 4.7e6,
            "raw_round_seconds": 16 * 18.8e6 / speed + 0.02,
        }
        for name, (size, time, _) in settings.items()
        for speed in (10**7, 10**8, 10**9, 10**10)
    ]
    slopes = [
        {
            "what": what,
            "setting": name,
            "slope": 0.98,
            "intercept": -7.1,
            "r_squared": 0.9991,
            "low": 0.95,
            "high": 1.01,
        }
        for what in ("encrypt_seconds", "up_nbytes")
        for name in settings
    ]
    data = {
        "parameters": parameters,
        "sites": sites,
        "links": links,
        "slopes": slopes,
        "limits": [
            {"what": "connections", "at": 496, "why": "each site keeps one", "setting": None},
            {"what": "lanes", "at": None, "why": "no params", "setting": "exact"},
        ],
        "extrapolation": [
            {**of, "sites": 10_000, "parameters": 10**6, "value": 120.0, "how": "by bytes"}
            for of in (
                {"what": "additions", "setting": "tenseal", "unit": "s"},
                {"what": "kits", "setting": None, "unit": "B"},
            )
        ],
    }
    return Results("growth", "secagg bench growth", data, DATE, MACHINE)


def leakage_results(ssim: float = 0.99) -> Results:
    """A setting where raw is read as well as `ssim` says, and one where it is not."""
    rows = [("raw", 50.1, ssim, 1.0, 1.0), ("conv", 38.0, 0.97, 1.0, 0.77), ("all", 6.0, 0.02, None, 0.0)]
    rows.append(("mean", 14.0, 0.41, None, None))
    picture = b64encode(bytes((0, 80, 160, 255))).decode()
    settings = [
        {
            "name": title.lower(),
            "title": title,
            "parameters": 32_474,
            "edge": 2,
            "pictures": [picture] * 2,
            "seconds": 12.0,
            "rows": [
                {
                    "name": name,
                    "title": name,
                    "psnr": psnr,
                    "ssim": min(most, like),
                    "identified": who,
                    "clear": clear,
                    "nbytes": None,
                    "pictures": [picture] * 2,
                }
                for name, psnr, like, who, clear in rows
            ],
        }
        for title, most in (("LeNet", 1.0), ("Adam", 0.5))
    ]
    data = {"images": 2, "candidates": 60, "seed": 0, "seconds": 24.0, "settings": settings}
    return Results("leakage", "secagg leak --out leak", data, DATE, MACHINE)


def shards_results() -> Results:
    """Two rounds that were added, and what follows from the first."""
    rows = []
    for where, slower in (("S3 over HTTPS", 1.0), ("folder", 2.0)):
        turns = {
            side: [{"seconds": wall * slower, "cpu_seconds": cpu, "store_cpu_seconds": 0.5 if slower == 1 else 0.0}] * 3
            for side, wall, cpu in (("read_1", 1, 1), ("sum_1", 2, 1.5), ("read_2", 0.8, 1), ("sum_2", 1.5, 1.6))
        }
        size = {"sites": 10, "nbytes": 10**9, "update_nbytes": 10**8, "heads_seconds": 0.1, "worker_nbytes": 2 * 10**8}
        rows.append({"setting": "flashe-16", "title": "flashe, 16 bits", "where": where, **size, **turns})
    peak = {"shards": None, "workers": 1, "above_nbytes": 2 * 10**8, "above_import_nbytes": 1.7e8}
    memory = [{"title": "flashe, 16 bits", "sites": 10, "update_nbytes": 10**8, **peak}]
    data = conclude(rows, Plan(), Prices(), 4e8, memory)
    return Results("shards", "python -m pytest benchmarks/bench_shards.py", data, DATE, MACHINE)


def bench_results() -> Results:
    """Targets of `make bench`, measured on two machines."""
    rows = [
        {"name": f"target-{number}", "date": DATE, "processor": f"Processor {number % 2}", "cores": 2, **row}
        for number, row in enumerate(_targets())
    ]
    return Results("bench", "make bench", {"targets": rows}, DATE, MACHINE)


def history_lines(count: int = 14) -> str:
    """Lines of the gate."""
    names = {"encrypt tenseal": 120.0, "encrypt flashe-16": 2.1, "add flashe-16": 1.4, "decrypt seal-bgv-16": 9.0}
    lines = [
        {
            "date": DATE,
            "commit": f"{number:040x}"[::-1],
            "base": f"{number - 1:040x}"[::-1],
            "machine": MACHINE,
            "rows": [
                {
                    "name": name,
                    "ratio": 1.2 if number == 9 else 1.0 + 0.01 * (number % 3 - 1),
                    "low": 1.15 if number == 9 else 0.97,
                    "high": 1.25 if number == 9 else 1.03,
                    "calibrated": value * (1.2 if number == 9 else 1.0 + 0.01 * (number % 3)),
                    "nbytes": 15_600_000,
                }
                for name, value in names.items()
            ],
        }
        for number in range(1, count + 1)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_all(folder: Path) -> None:
    """Write a file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    model_results().save(folder / "segresnet.json")
    peers_results().save(folder / "peers.json")
    clara_results().save(folder / "clara.json")
    growth_results().save(folder / "growth.json")
    bench_results().save(folder / "bench.json")
    shards_results().save(folder / "shards.json")
    leakage_results().save(folder / "leakage.json")
    (folder / "history.jsonl").write_text(history_lines())


def _thrice(value: float) -> list[float]:
    return [0.95 * value, value, 1.1 * value]


def _targets() -> list[dict[str, Any]]:
    return [
        {
            "title": "upload, seal BGV",
            "measured": 21.7,
            "limit": 20,
            "at_least": True,
            "unit": "× smaller than NVFlare's",
            "met": True,
            "detail": "15.6 of 339 MB",
        },
        {
            "title": "encrypt + serialize",
            "measured": 1.07,
            "limit": 1.0,
            "at_least": False,
            "unit": "× NVFlare's",
            "met": False,
            "detail": "SEAL's NTT takes 71 %",
        },
    ]
