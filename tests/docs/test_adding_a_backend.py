"""The worked example of docs/adding-a-backend.md runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-backend.md"

ROUND = textwrap.dedent("""
    import numpy as np
    import secagg
    from secagg.codec import RealCodec

    def config(lib):
        params = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40}
        return secagg.Config.from_dict({"he": {"lib": lib, "config": params}})

    libs = ("tenseal", "seal-example")
    info = secagg.available_backends()["seal-example"]
    assert info.available and info.version, info
    for maker in libs:
        keys = secagg.generate_keys(config(maker))
        sites = [secagg.Client(config(lib), keys.client, lib) for lib in libs]
        states = [{"w": np.random.default_rng(seed).uniform(-8, 8, (50, 100))} for seed in (1, 2)]
        aggregator = secagg.Aggregator(config("tenseal"), keys.server)
        for site, state in zip(sites, states):
            aggregator.add(site.encrypt(state))
        aggregate = aggregator.finish()
        bound = RealCodec(config("tenseal").params, config("tenseal").aggregation).mean_error(2, 2.0)
        expected = (states[0]["w"] + states[1]["w"]) / 2
        for site in sites:
            error = np.abs(site.decrypt(aggregate)["w"] - expected).max()
            assert error <= bound, (site.name, error, bound)
        print(f"key of {maker}:", ", ".join(aggregate.header.sites))
""")


def code_block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1, f"the page has {len(found)} {language} blocks"
    return str(found[0])


def test_the_example_takes_part_in_a_round_with_tenseal(tmp_path: Path) -> None:
    (tmp_path / "secagg_seal.py").write_text(code_block("python"), encoding="utf-8")
    # Installed as pip would: metadata beside the module, with the entry point of the page's pyproject.toml.
    metadata = tmp_path / "secagg_seal-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: secagg-seal\nVersion: 0.1\n", encoding="utf-8")
    line = code_block("toml").splitlines()[1].replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[secagg.backends]\n{line}\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", ROUND],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "".join(f"key of {lib}: tenseal, seal-example\n" for lib in ("tenseal", "seal-example"))
