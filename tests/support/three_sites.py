"""Config, keys, certificates and clients of three sites, and the mean that they must compute."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secagg
from secagg.scheme.codec import RealCodec
from secagg.trust import Authority, Tls

SITES = ("site-1", "site-2", "site-3")
WEIGHTS = {"site-1": 1.0, "site-2": 2.0, "site-3": 5.0}
MAX_WEIGHT = 10.0
CONFIG = {
    "he": {
        "lib": "tenseal",
        "config": {
            "poly_modulus_degree": 8192,
            "coeff_mod_bit_sizes": [60, 40, 40],
            "scale_bits": 40,
            "scheme": "CKKS",
        },
    },
    "encrypt": "all",
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 8.0, "max_weight": MAX_WEIGHT},
}

State = Mapping[str, np.ndarray[Any, Any]]


@dataclass
class Provision:
    """Config, keys, certificates and sites of one federation, as `secagg keygen` would hand them out."""

    folder: Path
    config: secagg.Config
    keys: secagg.KeyPair
    clients: dict[str, secagg.Client]
    states: dict[str, State]
    server_tls: Tls
    tls: dict[str, Tls]

    def update(self, site: str, round: int = 0) -> secagg.Update:
        return self.clients[site].encrypt(self.states[site], weight=WEIGHTS[site], round=round)

    def assert_mean(self, aggregate: secagg.Update, sites: Iterable[str] = SITES) -> None:
        """Hold the decrypted aggregate against the weighted mean of the sites' states."""
        sites = sorted(sites)
        assert sorted(aggregate.header.sites) == sites
        like = self.states[sites[0]]
        mean = self.clients[sites[0]].decrypt(aggregate, like=like)
        assert mean.keys() == like.keys()
        codec = RealCodec(self.config.params, self.config.aggregation)
        total = sum(WEIGHTS[site] for site in sites)
        tolerance = codec.mean_error(len(sites), total / MAX_WEIGHT)
        for name, own in like.items():
            if own.dtype.kind != "f":
                np.testing.assert_array_equal(mean[name], own)
                continue
            exact = sum(WEIGHTS[site] * self.states[site][name].astype(np.float64) for site in sites) / total
            rounding = np.abs(exact) * np.finfo(own.dtype).eps
            assert mean[name].dtype == own.dtype
            assert mean[name].shape == own.shape
            assert np.all(np.abs(mean[name] - exact) <= tolerance + rounding)


@pytest.fixture(scope="session")
def provision(tmp_path_factory: pytest.TempPathFactory) -> Provision:
    folder = tmp_path_factory.mktemp("federation")
    config = secagg.Config.from_dict(CONFIG)
    (folder / "federation.json").write_text(json.dumps(CONFIG))
    keys = secagg.generate_keys(config)
    keys.server.save(folder / "server.key")
    random = np.random.default_rng(7)
    states = {
        site: {
            "conv.weight": random.uniform(-1, 1, (16, 8, 3, 3, 3)).astype(np.float32),
            "fc.weight": random.uniform(-8, 8, (200, 300)).astype(np.float32),
            "fc.bias": random.uniform(-1, 1, 200),
            "steps": np.array(17),
        }
        for site in SITES
    }
    authority = Authority.create(folder)
    return Provision(
        folder=folder,
        config=config,
        keys=keys,
        clients={site: secagg.Client(config, keys.client, name=site) for site in SITES},
        states=states,
        server_tls=authority.issue_server(),
        tls={site: authority.issue_site(site) for site in SITES},
    )
