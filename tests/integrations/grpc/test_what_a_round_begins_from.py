"""Which global model a round begins from, and what is stored of it, is not for one site to say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from federation import Federation
from signed import Parts, Signed, sign_federation

import secagg
from secagg.errors import MismatchError, SignatureError
from secagg.integrations.grpc import Server, SiteSession

CONFIG = {
    "he": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 16}},
    "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0},
}
STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}


@pytest.fixture(scope="module")
def signed() -> Signed:
    config = secagg.Config.from_dict(CONFIG)
    first = sign_federation(Federation(config, secagg.generate_keys(config)))
    return replace(first, project=first.reissue(base=first.site().base(STATE)))


@pytest.fixture
def server(signed: Signed, tmp_path: Path) -> Iterator[Server]:
    with Server(
        signed.config,
        signed.federation.keys.server,
        tmp_path / "run",
        insecure=True,
        project=signed.project,
        identity=signed.server,
    ) as server:
        yield server


def session_of(server: Server, site: str) -> SiteSession:
    return SiteSession(server.address, site, tls=None, timeout=120.0)


@pytest.mark.parametrize(
    ("base", "message"), [(bytes(32), "the first models differ, or their `context`"), (None, "names no global model")]
)
def test_the_project_says_what_round_0_begins_from(
    server: Server, signed: Signed, base: bytes | None, message: str
) -> None:
    """The first site that uploads cannot settle it for the others."""
    right = signed.site().base(STATE)
    with session_of(server, "site-3") as session:
        assert session.join().base == right
        with pytest.raises(MismatchError, match=message):
            session.upload(signed.site("site-3").encrypt(STATE, base=base))
    for name in ("site-1", "site-2"):
        with session_of(server, name) as session:
            assert not session.upload(signed.site(name).encrypt(STATE, base=right)).already_added
            assert session.status().base == right


@pytest.mark.parametrize("signature", [bytes(64), None], ids=["unsigned", "signed for another body"])
def test_a_model_that_its_site_has_not_signed(
    server: Server, signed: Signed, tmp_path: Path, signature: bytes | None
) -> None:
    """It would stand in the way of the model that an honest site stores."""
    site, good, bad = signed.site(), tmp_path / "good", tmp_path / "bad"
    site.encrypt_model(good, STATE, round=0, base=site.base(STATE))
    parts = Parts.of(secagg.Update.from_bytes(good.read_bytes()))
    parts.payloads = [bytes(len(payload)) for payload in parts.payloads]
    bad.write_bytes(parts.sealed(signature).to_bytes())
    with session_of(server, "site-1") as session:
        with pytest.raises(SignatureError, match="site-1"):
            session.save_model(bad)
        assert session.status().models == ()
        assert session.save_model(good)
        with session.load_model(tmp_path / "back") as model:
            np.testing.assert_array_equal(signed.site("site-2").decrypt_model(model)["w"], STATE["w"])
    assert list((tmp_path / "run" / "spool").iterdir()) == []
