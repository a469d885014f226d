"""A second transport, of 160 lines in tests/support/toy_transport.py, carries a whole federation.

Everything but the messages is in `secagg.server` and `secagg.site`: what holds over gRPC holds over threads and queues.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_transport
from provisioned import Federation as Provisioned
from toy_transport import ToyLink, ToyServer

import secagg
from secagg.errors import (
    DuplicateError,
    FormatError,
    IdentityError,
    RoundMismatchError,
    StateError,
    VerificationError,
)
from secagg.protocol import SkipRequest
from secagg.server import Federation, Limits
from secagg.site import GlobalModel, Session
from secagg.site.folder import MODEL_FILE, RECEIPT_FILE, UPDATE_FILE
from secagg.site.participant import Participant
from secagg.trust import load_server_kit, load_site_kit

#: Three frames and a clear tensor of the site's own.
MODEL = {"w": np.linspace(-0.2, 0.2, 900_000, dtype=np.float32), "steps": np.array(0)}
#: Of three rounds: max_abs / L each, over weights of half of max_weight (README.md), and a rounding of float32.
TOLERANCE = 3 * (0.1 / (2**15 - 1) / 0.5 + 2.0**-24)
CHANGES = {"site-1": 0.01, "site-2": 0.02, "site-3": 0.06, "late": 0.03}


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Provisioned:
    aggregation = {"min_clients": 2, "max_clients": 5, "max_abs": 0.1, "max_weight": 4}
    config = {"he": {"lib": "flashe", "config": {"value_bits": 16, "rounding": "nearest"}}}
    return Provisioned.make(
        tmp_path_factory.mktemp("toy"), sites=list(CHANGES), hosts=[], aggregation=aggregation, **config
    )


def open_server(kit: Path, folder: Path) -> Federation:
    opened = load_server_kit(kit)
    return Federation(
        opened.config,
        opened.key,
        folder,
        round_timeout=600.0,
        project=opened.project,
        identity=opened.identity,
        limits=Limits(idle_seconds=60.0),
    )


class Site:
    """A site in its kit's folder: what a process of it has."""

    def __init__(self, server: ToyServer, folder: Path, cuts: tuple[int, ...] = ()) -> None:
        self.folder, kit = folder, load_site_kit(folder)
        self.name = kit.name
        self.model = GlobalModel(secagg.Client.load(kit), MODEL)
        self.link = ToyLink(server, (folder / "tls.crt").read_bytes(), cuts)
        self.session = Session(self.link, kit.name, timeout=60.0, project=kit.project, layout=self.model.layout)
        self.participant = Participant(kit, self.session, self.model)

    def train(self) -> None:
        local = {"w": self.model.state["w"] + CHANGES[self.name], "steps": self.model.state["steps"] + 1}
        self.participant.encrypt(local, weight=2.0)

    def upload(self) -> None:
        self.participant.upload(lambda done, total: None)

    def finish(self) -> secagg.Header:
        with self.participant.download(lambda done, total: None) as aggregate:
            self.participant.receive(aggregate)
            self.participant.store_model(aggregate.header)
            return aggregate.header


def run_round(*sites: Site) -> list[secagg.Header]:
    """Let sites go through a round at once."""
    headers: dict[str, secagg.Header] = {}

    def take_part(site: Site) -> None:
        site.train()
        site.upload()
        headers[site.name] = site.finish()

    for site in sites:
        site.participant.join()
    threads = [threading.Thread(target=take_part, args=(site,)) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [headers[site.name] for site in sites]


@contextmanager
def opened(provisioned: Provisioned, tmp_path: Path) -> Iterator[tuple[ToyServer, dict[str, Path]]]:
    kits = {}
    for name in CHANGES:
        kits[name] = tmp_path / name
        shutil.copytree(provisioned[name], kits[name])
    with ToyServer(open_server(provisioned["server"], tmp_path / "run")) as server:
        yield server, kits


def test_it_is_a_toy() -> None:
    assert len(Path(toy_transport.__file__).read_text(encoding="utf-8").splitlines()) <= 160


def test_a_whole_federation(provisioned: Provisioned, tmp_path: Path) -> None:
    """Two rounds of three sites, one of whose uploads breaks off; a latecomer, a restart of both sides, round 2."""
    with opened(provisioned, tmp_path) as (server, kits):
        sites = [Site(server, kits["site-1"], cuts=(2, 2)), Site(server, kits["site-2"]), Site(server, kits["site-3"])]
        for round in (0, 1):
            headers = run_round(*sites)
            assert all(header.round == round for header in headers)
            assert all(sorted(header.sites) == ["site-1", "site-2", "site-3"] for header in headers)
        assert sites[0].link.cuts == []
        assert not (kits["site-1"] / RECEIPT_FILE).exists()  # it has been redeemed
        late = Site(server, kits["late"])
        late.participant.join()
        assert (late.model.round, late.model.base) == (2, sites[0].model.base)
        # An update is on its way, half of it there, when both sides end.
        sites[0].train()
        sites[0].link.cuts = [2]
        sites[0].session = Session(sites[0].link, "site-1", timeout=0.01, project=load_site_kit(kits["site-1"]).project)
        with pytest.raises(Exception, match="the toy broke"):
            sites[0].session.upload(kits["site-1"] / UPDATE_FILE)
        sent = (kits["site-1"] / UPDATE_FILE).read_bytes()
    with ToyServer(open_server(provisioned["server"], tmp_path / "run")) as server:
        sites = [Site(server, kits[name]) for name in CHANGES]
        for site in sites:
            site.participant.join()
            assert site.model.round == 2
        assert sites[0].participant.has_update()
        assert sites[0].session._link.resume(secagg.Update.from_bytes(sent).header.head, 60.0).frame > 0
        sites[0].upload()
        assert (kits["site-1"] / RECEIPT_FILE).exists()
        for site in sites[1:]:
            site.train()
            site.upload()
        headers = [site.finish() for site in sites]
        assert all(sorted(header.sites) == sorted(CHANGES) for header in headers)
        three, four = np.mean(list(CHANGES.values())[:3]), np.mean(list(CHANGES.values()))
        for site in sites:
            assert np.array_equal(site.model.state["w"], sites[0].model.state["w"])
            np.testing.assert_allclose(site.model.state["w"], MODEL["w"] + 2 * three + four, atol=TOLERANCE)
            assert (site.folder / MODEL_FILE).exists()


def test_a_site_with_nothing_to_give_holds_nobody_up(provisioned: Provisioned, tmp_path: Path) -> None:
    """It has the same global model as the others, and is waited for in the next round."""
    with opened(provisioned, tmp_path) as (server, kits):
        sites = [Site(server, kits[name]) for name in ("site-1", "site-2", "site-3")]
        for site in sites:
            site.participant.join()
        for site in sites[:2]:
            site.train()
            site.upload()
        assert sites[2].session.status().waiting_for == ("site-3",)
        sites[2].participant.skip()
        headers = [site.finish() for site in sites]
        assert all(sorted(header.sites) == ["site-1", "site-2"] for header in headers)
        for site in sites:
            assert np.array_equal(site.model.state["w"], sites[0].model.state["w"])
        assert sites[2].session.status().waiting_for == ("site-1", "site-2", "site-3")
        assert all(header.round == 1 for header in run_round(*sites))
        with pytest.raises(IdentityError, match="'site-2' skips a round under the certificate of 'site-1'"):
            sites[0].link.skip(SkipRequest("site-2", 2), 60.0)
        with pytest.raises(RoundMismatchError, match="'site-1' skips round 3; round 2 is open"):
            sites[0].session.skip(3)


def test_what_is_refused_arrives_typed(provisioned: Provisioned, tmp_path: Path) -> None:
    with opened(provisioned, tmp_path) as (server, kits), ExitStack() as stack:
        one, two = Site(server, kits["site-1"]), Site(server, kits["site-2"])
        stack.callback(one.session.close)
        with pytest.raises(IdentityError, match="under the certificate of 'site-1'"):
            one.link.join("site-2", 60.0)
        with pytest.raises(IdentityError, match="not a certificate"):
            ToyLink(server, b"no certificate").join("site-1", 60.0)
        with pytest.raises(FormatError, match="magic"):
            one.link.resume(os.urandom(100), 60.0)
        with pytest.raises(RoundMismatchError, match="has not begun"):
            one.session.download(7, tmp_path / "aggregate")
        one.participant.join()
        two.participant.join()
        one.train()
        one.upload()
        one.session._nonces[0] = bytes(32)  # as if the server had lost it
        with pytest.raises(StateError, match="not in the sum"):
            one.session.download(0, tmp_path / "aggregate")
        first = (kits["site-1"] / UPDATE_FILE).read_bytes()
        one.train()  # encrypted anew: another nonce
        with pytest.raises(DuplicateError, match="another update of 'site-1'"):
            one.session.upload(kits["site-1"] / UPDATE_FILE)
        again: Any = one.session.upload(secagg.Update.from_bytes(first))
        assert again.already_added
        assert again.receipt is not None
        foreign = two.model.encrypt({"w": MODEL["w"] + 0.01, "steps": MODEL["steps"]}, 1.0)
        with pytest.raises(VerificationError):
            again.receipt.check(foreign, load_site_kit(kits["site-2"]).project)
