"""Warnings point at the line of whoever uses the package, however deep inside they arise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from provisioned import PROJECT, Federation

import secagg
from secagg.errors import KitWarning, PrivacyWarning
from secagg.site import GlobalModel
from secagg.trust import load_site_kit
from secagg.trust.kit_files import CLIENT_KEY_FILE, SERVER_KEY_FILE, older_name

pytestmark = pytest.mark.filterwarnings("ignore::secagg.errors.PrivacyWarning", "ignore::secagg.errors.KitWarning")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    aggregation = {**PROJECT["aggregation"], "min_clients": 2}  # type: ignore[dict-item]
    made = Federation.make(tmp_path_factory.mktemp("two"), aggregation=aggregation, encrypt={"exclude": ["*bias"]})
    for party, name in (("a", CLIENT_KEY_FILE), ("server", SERVER_KEY_FILE)):
        (made[party] / name).rename(made[party] / older_name(name))
    return made


def _model(kit: Path) -> GlobalModel:
    return GlobalModel(secagg.Client.load(kit), {"w": np.zeros(3), "bias": np.zeros(3)})


@pytest.mark.parametrize(
    ("category", "match", "act"),
    [
        (PrivacyWarning, "min_clients is 2", lambda made: secagg.Client.load(made["b"])),
        (PrivacyWarning, "min_clients is 2", lambda made: secagg.Client.load(load_site_kit(made["b"]))),
        (PrivacyWarning, "in the clear", lambda made: _model(made["b"])),
        (KitWarning, "earlier release", lambda made: secagg.Client.load(made["a"])),
        (KitWarning, "earlier release", lambda made: load_site_kit(made["a"])),
        (KitWarning, "earlier release", lambda made: secagg.Aggregator.load(made["server"], round=0)),
    ],
    ids=["folder", "kit", "clear", "older", "older kit", "older server"],
)
def test_a_warning_points_at_the_caller(
    two: Federation, category: type[Warning], match: str, act: Callable[[Federation], object]
) -> None:
    with pytest.warns(category, match=match) as caught:
        act(two)
    assert {warning.filename for warning in caught} == {__file__}
