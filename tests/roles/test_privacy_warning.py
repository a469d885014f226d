"""What protects less than one would think is said once in a process, and where to read on; by any client."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secagg
from secagg import errors
from secagg.errors import PrivacyWarning, warn_once

CONV = {"conv.weight": np.ones((2, 1, 3, 3), np.float32), "conv.bias": np.ones(2, np.float32)}

#: As of a ViT whose patches go through a dense layer: the positions come first, and are no layer.
PERCEPTRON = {
    "patches.position_embeddings": np.ones((1, 4, 8), np.float32),
    "patches.1.weight": np.ones((8, 64), np.float32),
    "patches.1.bias": np.ones(8, np.float32),
    "decoder.weight": np.ones((2, 8, 1, 1), np.float32),
}


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_ISSUED", {})


def sites(encrypt: Any = "conv", least: int = 3) -> list[secagg.Client]:
    config = secagg.Config.from_dict(
        {
            "he": {"lib": "flashe", "config": {"value_bits": 8}},
            "encrypt": encrypt,
            "aggregation": {"min_clients": least, "max_clients": 4, "max_abs": 1.0},
        }
    )
    key = secagg.generate_keys(config).client
    return [secagg.Client(config, key, f"site-{number}") for number in range(3)]


def said(act: Callable[[], object], action: Any = "default") -> list[str]:
    """What is said under a filter: by default, as in a program, and not as in a test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        act()
    assert all(issubclass(warning.category, PrivacyWarning) for warning in caught)
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


def test_what_is_clear_is_said_once_and_names_the_page() -> None:
    def act() -> None:
        for site in sites():
            layout = site.layout(CONV)
            site.encrypt(CONV, layout=layout)
            site.encrypt(CONV, round=1, layout=layout)

    (told,) = said(act)
    assert told.startswith("encrypt: conv: 1 of 2 float tensors, 2 of 20 values, are sent in the clear, 'conv.bias'")
    assert "docs/leakage.md" in told
    assert (Path(__file__).parents[2] / "docs" / "leakage.md").is_file()
    assert "dense" not in told
    assert said(act) == []


def test_another_model_or_another_choice_is_said_for_itself() -> None:
    assert len(said(lambda: [site.layout(CONV) for site in sites()])) == 1
    larger = CONV | {"conv.bias": np.ones(3, np.float32)}
    assert len(said(lambda: [site.layout(larger) for site in sites()])) == 1
    assert len(said(lambda: [site.layout(CONV) for site in sites({"exclude": ["*.bias"]})])) == 1


def test_all_says_nothing() -> None:
    assert said(lambda: [site.layout(CONV) for site in sites("all")]) == []


def test_two_sites_are_said_once_by_keys_and_all_clients() -> None:
    (told,) = said(lambda: sites("all", least=2))
    assert "min_clients is 2" in told
    assert said(lambda: sites("all", least=2)) == []


def test_a_dense_first_layer_that_is_clear() -> None:
    """Its update holds the pixels; the same layer encrypted, or behind a convolution, is not spoken of."""
    (told,) = said(lambda: sites()[0].layout(PERCEPTRON))
    assert "the first layer, 'patches.1.weight', a dense one: the pixels themselves stand in its update" in told
    (told,) = said(lambda: sites({"exclude": ["*.bias"]})[0].layout(PERCEPTRON))
    assert "dense" not in told
    behind = {**CONV, "head.weight": np.ones((2, 2), np.float32)}
    (told,) = said(lambda: sites()[0].layout(behind))
    assert "'conv.bias' first" in told
    assert "dense" not in told


def test_one_that_was_ignored_has_not_been_said() -> None:
    assert said(lambda: warn_once("it", PrivacyWarning), "ignore") == []
    assert said(lambda: warn_once("it", PrivacyWarning)) == ["it"]
    assert said(lambda: [warn_once("it", PrivacyWarning), warn_once("more", PrivacyWarning)]) == ["more"]


def test_filters_decide_as_always() -> None:
    assert said(lambda: [warn_once("it", PrivacyWarning) for _ in range(2)], "always") == ["it", "it"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(PrivacyWarning, match="it"):
                warn_once("it", PrivacyWarning)


_PROGRAM = """
import numpy as np, secagg
config = secagg.Config.from_dict({
    "he": {"lib": "flashe", "config": {"value_bits": 8}}, "encrypt": "conv",
    "aggregation": {"min_clients": 2, "max_clients": 2, "max_abs": 1.0},
})
state = {"conv.weight": np.zeros((2, 1, 3, 3), np.float32), "conv.bias": np.zeros(2, np.float32)}
keys = secagg.generate_keys(config)
for name in ("a", "b"):
    client = secagg.Client(config, keys.client, name)
    client.encrypt(state)
"""


def test_a_program_says_each_once_at_its_own_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    told = [line for line in done.stderr.splitlines() if "PrivacyWarning" in line]
    assert len(told) == 2
    assert told[0].startswith(f"{program}:8: PrivacyWarning: aggregation.min_clients is 2")
    assert told[1].startswith(f"{program}:11: PrivacyWarning: encrypt: conv")
