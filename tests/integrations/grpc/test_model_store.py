"""Stored global models: for sites that come back. The server keeps the last two, and cannot read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import SMALL, Running, make_signed, serving, wait_until
from signed import Signed

import secagg
from secagg.errors import DigestError, IdentityError, KeyMismatchError, LayoutError, MismatchError, RoundMismatchError

BASE = bytes(range(32))


@pytest.fixture(scope="module")
def signed() -> Signed:
    return make_signed()


@pytest.fixture
def running(signed: Signed, tmp_path: Path) -> Iterator[Running]:
    with serving(signed, tmp_path / "run") as running:
        yield running


def model(running: Running, round: int, base: bytes, site: str = "site-1", state: object = SMALL) -> Path:
    path = running.folder.parent / f"model-of-{site}-{round}"
    running.signed.site(site).encrypt_model(path, state, round=round, base=base)
    return path


def save(running: Running, path: Path, site: str = "site-1") -> bool:
    with running.session(site) as session:
        return session.save_model(path)


def rounds(running: Running) -> tuple[int, ...]:
    stored = running.server.status().models
    files = sorted(path.name for path in running.folder.glob("model-*"))
    assert files == [f"model-{round}.secagg" for round in stored]
    assert running.spool() == []
    return stored


def test_the_last_two_are_kept(running: Running, tmp_path: Path) -> None:
    for round in range(4):
        base = running.server.status().base or BASE
        state = {"w": np.full_like(SMALL["w"], round / 8)}
        assert save(running, model(running, round, base, state=state))
        aggregate = running.run_round(round)
        assert running.server.status().base == aggregate.next_base
        wait_until(lambda round=round: running.server.status().round == round + 1)
    assert rounds(running) == (2, 3)
    with running.session("site-2") as session:
        for wanted, expected in ((None, 3), (3, 3), (2, 2)):
            with session.load_model(tmp_path / "back", wanted) as back:
                assert back.header.round == expected
                state = running.signed.site("site-2").decrypt_model(back)
                np.testing.assert_array_equal(state["w"], np.full_like(SMALL["w"], expected / 8))
        with pytest.raises(RoundMismatchError, match="no model of round 1 is stored; stored are: 2, 3"):
            session.load_model(tmp_path / "gone", 1)
    assert not (tmp_path / "gone").exists()


def test_the_first_of_a_round_stays(running: Running, tmp_path: Path) -> None:
    """All sites have the same one, each under its own encryption: one is enough."""
    assert save(running, model(running, 0, BASE))
    assert not save(running, model(running, 0, BASE))
    assert not save(running, model(running, 0, BASE, "site-2"), "site-2")
    with running.session("site-3") as session, session.load_model(tmp_path / "back") as back:
        assert back.header.site == "site-1"


@pytest.mark.parametrize("round", [1, 2, 2**32 - 1])
def test_a_round_that_has_not_begun(running: Running, round: int) -> None:
    with pytest.raises(RoundMismatchError, match=f"the model of 'site-1' is of round {round}; round 0 is open"):
        save(running, model(running, round, BASE))
    assert rounds(running) == ()


def test_the_round_before_may_be_stored_late(running: Running) -> None:
    site = running.signed.site()
    base = site.base(SMALL)
    for name in ("site-1", "site-2"):
        with running.session(name) as session:
            session.join()
    for name in ("site-1", "site-2"):
        running.send(running.signed.site(name).encrypt(SMALL, round=0, base=base))
    wait_until(lambda: running.server.status().round == 1)
    with pytest.raises(MismatchError, match="round 0 began from another global model than that of 'site-1'"):
        save(running, model(running, 0, BASE))
    assert save(running, model(running, 0, base))
    with pytest.raises(MismatchError, match="round 1 began from another global model"):
        save(running, model(running, 1, base))
    following = running.server.status().base
    assert following is not None
    assert save(running, model(running, 1, following))
    assert rounds(running) == (0, 1)
    running.run_round(1, names=["site-1", "site-2"])
    wait_until(lambda: running.server.status().round == 2)
    with pytest.raises(RoundMismatchError, match="of round 0; round 2 is open"):
        save(running, model(running, 0, base))


def test_another_base_while_none_is_known(running: Running, tmp_path: Path) -> None:
    """The first update says which model the round begins from; until then the last one that was stored is there."""
    assert save(running, model(running, 0, BASE))
    assert save(running, model(running, 0, BASE[::-1]))
    base = running.signed.site().base(SMALL)
    running.send(running.signed.site().encrypt(SMALL, round=0, base=base))
    with pytest.raises(MismatchError, match="began from another global model"):
        save(running, model(running, 0, BASE))
    assert save(running, model(running, 0, base))
    with running.session("site-2") as session, session.load_model(tmp_path / "back") as back:
        assert back.header.base == base


def test_models_of_others_are_refused(running: Running, signed: Signed) -> None:
    other = make_signed(epoch=1)
    for foreign, error, match in (
        (make_signed(), KeyMismatchError, "is under key"),
        (other, KeyMismatchError, "of epoch 1 of the key, expected epoch 0"),
    ):
        path = model(replace(running, signed=foreign), 0, BASE)
        with pytest.raises(error, match=match):
            save(running, path)
    path = model(running, 0, BASE, "site-2")
    later = replace(signed, project=signed.without("site-2"))
    with (
        serving(later, running.folder.with_name("other")) as second,
        second.session("site-2", project=None) as session,
        pytest.raises(IdentityError, match="'site-2' has been revoked"),
    ):
        session.save_model(path)
    running.send(signed.site().encrypt(SMALL, round=0))
    with pytest.raises(LayoutError):
        save(running, model(running, 0, BASE, state={"w": SMALL["w"][1:]}))
    assert rounds(running) == ()


def test_a_damaged_model_is_refused(running: Running) -> None:
    path = model(running, 0, BASE)
    blob = bytearray(path.read_bytes())
    blob[-200] ^= 1
    path.write_bytes(blob)
    with pytest.raises(DigestError):
        save(running, path)
    assert rounds(running) == ()


def test_models_survive_a_restart(
    running: Running, signed: Signed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(running, model(running, 0, BASE))
    running.run_round(0)
    wait_until(lambda: running.server.status().round == 1)
    save(running, model(running, 1, BASE))
    assert rounds(running) == (0, 1)
    running.server.stop()
    with serving(signed, running.folder) as again:
        assert rounds(again) == (0, 1)
        assert not save(again, model(again, 1, BASE))
        with again.session("site-3") as session, session.load_model(tmp_path / "back") as back:
            assert back.header.round == 1
    (running.folder / "model-1.secagg").write_bytes(b"rubbish")
    (running.folder / "model-0.secagg").rename(running.folder / "model-7.secagg")
    with serving(signed, running.folder) as again:  # a model can be stored again: the server does not stand still
        assert rounds(again) == ()
        assert save(again, model(again, 1, BASE))
    for name in ("model-1.secagg", "model-7.secagg"):
        assert f"{name} is left out" in caplog.text


def test_an_update_is_no_model(running: Running, signed: Signed) -> None:
    update = signed.site().encrypt(SMALL, round=0)
    blob = update.to_bytes()
    aggregate = signed.add(signed.encrypt([SMALL, SMALL], round=0))
    with pytest.raises(MismatchError, match="aggregate cannot be uploaded; upload an update, a calibration, a model"):
        running.resume(aggregate, "site-1")
    running.send(secagg.Update.from_bytes(blob))
    with running.session("site-1") as session, pytest.raises(RoundMismatchError, match="no model of any round"):
        session.load_model(running.folder.with_name("none"))
