"""The worked example of docs/adding-a-backend.md runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding-a-backend.md"

ROUND = textwrap.dedent("""
    import warnings

    import numpy as np
    import secagg
    from secagg.scheme.codec import codec_for
    from secagg.errors import PrivacyWarning

    warnings.simplefilter("ignore", PrivacyWarning)  # two sites are enough here

    PARAMS = {"poly_modulus_degree": 8192, "coeff_mod_bit_sizes": [60, 40, 40], "scale_bits": 40}

    def config(lib, **more):
        return secagg.Config.from_dict({"he": {"lib": lib, "config": PARAMS | more}})

    def run(maker, libs, **more):
        keys = secagg.generate_keys(config(maker, **more))
        sites = [secagg.Client(config(lib, **more), keys.client, lib) for lib in libs]
        states = [{"w": np.random.default_rng(seed).uniform(-8, 8, (50, 100))} for seed, _ in enumerate(sites)]
        aggregator = secagg.Aggregator(config(maker, **more), keys.server)
        for site, state in zip(sites, states):
            aggregator.add(site.encrypt(state))
        aggregate = aggregator.finish()
        count, shared = len(sites), config(maker, **more)
        bound = codec_for(shared.params, shared.aggregation).mean_error(count, float(count))
        expected = sum(state["w"] for state in states) / count
        for site in sites:
            error = np.abs(site.decrypt(aggregate)["w"] - expected).max()
            assert error <= bound, (site.name, error, bound)
        print(f"key of {maker}:", ", ".join(aggregate.header.sites))

    info = secagg.available_backends()["seal-example"]
    assert info.available and info.version, info
    assert config("seal-example").params.seeded
    for maker in ("tenseal", "seal-example"):
        run(maker, ("tenseal", "seal-example"))
    run("seal-example", ("pyfhel", "seal-example"), seeded=False)
    run("seal-example", ("seal", "seal-example"), complex_slots=True)
""")

LINES = (
    "key of tenseal: tenseal, seal-example\n"
    "key of seal-example: tenseal, seal-example\n"
    "key of seal-example: pyfhel, seal-example\n"
    "key of seal-example: seal, seal-example\n"
)


def code_block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1, f"the page has {len(found)} {language} blocks"
    return str(found[0])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Installs the page's package as pip would: metadata beside the module, with the page's entry point."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "secagg_seal.py").write_text(code_block("python"), encoding="utf-8")
    metadata = folder / "secagg_seal-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: secagg-seal\nVersion: 0.1\n", encoding="utf-8")
    line = code_block("toml").splitlines()[1].replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[secagg.backends]\n{line}\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder)}


def run_python(environment: dict[str, str], *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_example_takes_part_in_rounds_with_others(environment: dict[str, str]) -> None:
    assert run_python(environment, "-W", "error", "-c", ROUND) == LINES


def test_the_contract_suite_runs_over_the_example(environment: dict[str, str]) -> None:
    """Of the suite one file is enough here: the one in which backends meet."""
    output = run_python(environment, "-m", "pytest", "-q", "-k", "seal-example", "tests/backends/test_exchange.py")
    passed = re.search(r"(\d+) passed", output)
    assert passed
    assert int(passed[1]) > 50  # with three other libraries as maker, encrypter and decrypter
