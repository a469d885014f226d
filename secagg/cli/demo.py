"""``secagg demo``: a whole federation on this machine, encrypted and, for comparison, raw."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..backends.registry import load_backend
from ..config import ENCRYPT_CHOICES, Config
from ..demo.own_data import OwnData
from ..demo.picture import write_picture
from ..demo.report import print_table, write_report
from ..demo.task import check_least
from ..errors import ConfigError
from ..scheme.params import QuantisedParams
from ..scheme.presets import PRESETS, is_exact
from ..ui.progress import progress
from ..ui.units import show_count

EXAMPLE = """secagg demo --sites 3 --rounds 4 --backend pyfhel
secagg demo --preset smallest
secagg demo --data Task09_Spleen --sites 3"""

#: What no site has more of: two of them share 49.
_MOST_PATCHES = 32

#: Among how many sites the cubes of MNI152 can be shared.
_MOST_SITES = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Train three sites on a brain MRI through a server on this machine: encrypted, then raw, and compare.

    With --data they share the cases of a folder of your own.
    """
    parser.add_argument(
        "--sites",
        type=int,
        default=3,
        help="number of sites, 2 to 24, with --data 2 or more (default: 3)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="of a Medical Segmentation Decathlon task; see docs/own-data.md"
    )
    parser.add_argument("--rounds", type=int, default=4, help="rounds of training (default: 4)")
    parser.add_argument("--backend", metavar="LIB", help="he.lib under Clara's CKKS params (default: tenseal)")
    parser.add_argument("--preset", choices=PRESETS, help="he.preset: backend, scheme and params by name")
    parser.add_argument("--encrypt", choices=ENCRYPT_CHOICES, help="what is encrypted (default: all)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration in place of both; --backend changes its he.lib"
    )
    parser.add_argument("--seed", type=int, default=0, help="of network and training (default: 0)")
    parser.add_argument("--run-dir", type=Path, metavar="FOLDER", help="new folder for all output (default: runs/DATE)")


def run(options: argparse.Namespace) -> None:
    """Run both federations, print the table, write ``report.json`` and ``curves.png``."""
    start = time.perf_counter()
    check_least("--seed", options.seed, 0)
    rounds = check_least("--rounds", options.rounds)
    check_sites(options)
    demo_config(options)  # what is wrong with it must be found out before data is read
    own = None if options.data is None else OwnData.plan(options.data, options.sites, options.seed, progress)
    config = demo_config(options, own)
    out = options.run_dir or Path("runs", datetime.now().strftime("demo-%Y%m%d-%H%M%S"))

    from ..demo.federation import DemoFederation

    training, block = (["--option", f"seed={options.seed}"], None) if own is None else (own.training, own.block)
    federation = DemoFederation(out, config, options.sites, rounds, training, block)
    print(
        f"{show_count(options.sites, 'site')}, {show_count(rounds, 'round')}, {config.lib} {config.params.scheme}"
        f"{_show_bits(config)}, encrypt {config.encrypt.to_value()}; see {out}"
    )
    if own is not None:
        spacing, patch = (" × ".join(map(str, own.block[name])) for name in ("spacing", "patch"))
        print(f"{own.cases} cases of {own.folder}, at {spacing} mm, in patches of {patch} voxels")
    results = {"encrypted": federation.encrypted(), "raw": federation.raw()}
    seconds = time.perf_counter() - start
    trained = {"seed": options.seed} | ({} if own is None else {"data": str(own.folder), "task": dict(own.block)})
    write_report(out / "report.json", config, trained, results, seconds)
    write_picture(out / "curves.png", results)
    print_table(results)
    last = {name: rows[-1].dice for name, rows in results.items()}
    print(
        f"held-out Dice after {show_count(rounds, 'round')}: {last['encrypted']:.4f} encrypted, {last['raw']:.4f} raw, "
        f"difference {abs(last['encrypted'] - last['raw']):.4f}"
    )
    print(f"{seconds:.0f} s in all; {out / 'report.json'}, {out / 'curves.png'}")


def check_sites(options: argparse.Namespace) -> None:
    """Raise `ConfigError` unless there can be so many sites; how many cases own data has for them, is not known yet."""
    if options.sites < 2 or (options.data is None and options.sites > _MOST_SITES):
        most = f"can be shared by 2 to {_MOST_SITES} sites" if options.data is None else "needs 2 sites or more"
        raise ConfigError(f"--sites is {options.sites}; the demo's data {most}")


def demo_config(options: argparse.Namespace, own: OwnData | None = None) -> Config:
    """Return the configuration: that of a file, of a preset, or Clara's, with what the options change.

    Raises
    ------
    ConfigError
        If it is invalid, its options contradict each other, or it needs more sites than the demo has.
    """
    for other in ("backend", "config"):
        if options.preset is not None and getattr(options, other) is not None:
            raise ConfigError(f"--preset names backend and params, and so does --{other}: give one of them")
    if options.config is not None:
        data = Config.load(options.config).to_dict()
    else:
        he, aggregation = {"preset": options.preset or "clara"}, {"min_clients": 2, "max_clients": options.sites}
        if not is_exact(he):
            aggregation["max_weight"] = _MOST_PATCHES if own is None else own.most_cases
        metrics = ["dice"] if own is None else own.metrics
        data = Config.from_dict({"he": he, "encrypt": "all", "metrics": metrics, "aggregation": aggregation}).to_dict()
    if options.backend is not None:
        data["he"] = _with_backend(data["he"], options.backend)
    if options.encrypt is not None:
        data["encrypt"] = options.encrypt
    config = Config.from_dict(data)
    if config.aggregation.min_clients > options.sites:
        raise ConfigError(
            f"min_clients is {config.aggregation.min_clients}, the demo has {options.sites} sites: use --sites"
        )
    # No round may end before the slowest site has joined.
    return replace(config, aggregation=replace(config.aggregation, min_clients=options.sites))


def _show_bits(config: Config) -> str:
    """Return how many bits a value has in an exact scheme, and where its scale comes from."""
    if not isinstance(config.params, QuantisedParams):
        return ""
    return f" of {config.params.value_bits} bits, precision {config.aggregation.precision}"


def _with_backend(he: Mapping[str, Any], lib: str) -> dict[str, Any]:
    """Return an ``he`` block for another backend, which perhaps cannot have seeded updates."""
    backend = load_backend(lib)
    config = dict(he["config"])
    if config["scheme"] not in backend.schemes:
        presets = [f"--preset {name}, or " for name, block in PRESETS.items() if block["lib"] == lib]
        raise ConfigError(
            f"--backend {lib} knows {', '.join(backend.schemes)}, not {config['scheme']}: "
            f"use {''.join(presets)}--config with params for it"
        )
    if "seeded" in config:
        config["seeded"] = config["seeded"] and backend.symmetric
    return {"lib": lib, "config": config}
