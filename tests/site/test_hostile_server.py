"""A site against a server that turns on it: it has the server's kit, and what honest sites have sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from hostile import HostileServer
from provisioned import Federation, Secagg
from signed import Parts

import secagg
from secagg.cli import main
from secagg.cli.site import Printed
from secagg.errors import (
    FormatError,
    IdentityError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    StateError,
    VerificationError,
)
from secagg.integrations.grpc import SiteSession
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc.refusals import abort
from secagg.protocol import Refusal
from secagg.setup.installing import install
from secagg.site import GlobalModel
from secagg.site.folder import MODEL_FILE, RECEIPT_FILE, UPDATE_FILE
from secagg.site.participant import Participant
from secagg.trust import Tls
from secagg.trust.kit import load_server_kit, load_site_kit
from secagg.trust.kit_files import PROJECT_FILE

SITES = ("a", "b", "c", "d")


def state(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((1000,), value)}


@dataclass
class World:
    """Kits of four sites, three of which are enough for a round, and the server."""

    federation: Federation
    server: HostileServer

    def client(self, name: str) -> secagg.Client:
        client = secagg.Client.load(load_site_kit(self.federation[name]))
        client.restore_carry(b"")  # each is made anew, and carries nothing
        return client

    @property
    def base(self) -> bytes:
        return self.client("a").base(state())

    def aggregate(
        self, *names: str, round: int = 0, base: bytes | None = None, given: tuple[secagg.Update, ...] = ()
    ) -> secagg.Update:
        """The sum of given updates and those that these sites send honestly."""
        kit = load_server_kit(self.federation["server"])
        base = base or self.base
        aggregator = secagg.Aggregator(kit.config, kit.key, round, base=base)
        for update in given:
            aggregator.add(update)
        for name in names:
            aggregator.add(self.client(name).encrypt(state(0.5), base=base, round=round))
        return secagg.Update.from_bytes(aggregator.finish().to_bytes())

    def model(self, name: str, value: float, *, round: int, base: bytes) -> secagg.Update:
        """The global model that a site stores."""
        path = self.federation[name] / "stored"
        self.client(name).encrypt_model(path, state(value), round=round, base=base)
        return secagg.Update.from_bytes(path.read_bytes())

    @contextlib.contextmanager
    def site(self, name: str = "a") -> Iterator[Participant]:
        kit = load_site_kit(self.federation[name])
        model = GlobalModel(secagg.Client.load(kit), state())
        tls, address = Tls.load(kit.tls), self.server.address
        with SiteSession(address, kit.name, tls=tls, timeout=120.0, project=kit.project) as session:
            yield Participant(kit, session, model, Printed())

    def kept(self, name: str, site: str = "a") -> Path:
        return self.federation[site] / name


def position(participant: Participant) -> tuple[int, float]:
    """Round and model of a site."""
    model = participant.model
    return model.round, float(model.state["w"][0])


def ignored(done: float, total: float) -> None:
    pass


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.make(tmp_path_factory.mktemp("four"), sites=list(SITES))


@pytest.fixture
def world(four: Federation, tmp_path: Path) -> Iterator[World]:
    federation = four.change(tmp_path, lambda made, changed, kits: made.rotate(None, changed, kits))
    with HostileServer(federation["server"]).serving() as server:
        yield World(federation, server)


# Rollback.


def test_an_old_round_is_no_reason_to_drop_a_later_model(world: World) -> None:
    """The server says round 2 to a site that is started again at round 5, and has a model of round 2."""
    world.client("a").encrypt_model(world.kept(MODEL_FILE), state(5.0), round=5, base=b"5" * 32)
    before = world.kept(MODEL_FILE).read_bytes()
    world.server.models = {2: world.model("b", 2.0, round=2, base=b"2" * 32)}
    world.server.say(2, base=b"2" * 32)
    with world.site() as site:
        with pytest.raises(StateError, match="at round 2, this site at round 5: it was restored .* or plays back"):
            site.join()
        assert position(site) == (5, 5.0)
    assert world.kept(MODEL_FILE).read_bytes() == before
    world.kept(MODEL_FILE).rename(world.kept("kept"))  # the operators say that the server was restored
    with world.site() as site:
        site.join()
        assert position(site) == (2, 2.0)


def test_another_course_of_the_same_round(world: World) -> None:
    world.client("a").encrypt_model(world.kept(MODEL_FILE), state(5.0), round=5, base=b"5" * 32)
    world.server.models = {5: world.model("b", 2.0, round=5, base=b"2" * 32)}
    world.server.say(5, base=b"2" * 32)
    with world.site() as site:
        with pytest.raises(MismatchError, match="another global model than this site has: .* plays back"):
            site.join()
        assert position(site) == (5, 5.0)


def test_a_round_far_ahead(world: World) -> None:
    """Nothing is counted up to it."""
    world.server.say((1 << 32) - 1)
    with world.site() as site, pytest.raises(StateError, match="no aggregate of round 0"):
        site.join()
    world.server.say(1 << 40)
    with world.site() as site, pytest.raises(FormatError, match="names round 1099511627776"):
        site.join()


# Receipts.


@pytest.fixture
def acknowledged(world: World) -> Iterator[Participant]:
    """Site a has a receipt for its update of round 0. The server closes the round without it."""
    world.server.say(0)
    with world.site() as site:
        site.join()
        world.client("a").encrypt_to(world.kept(UPDATE_FILE), state(0.5), round=0, base=world.base)
        site.upload(ignored)
        assert world.kept(RECEIPT_FILE).exists()
        world.server.closed = RoundMismatchError("round 1 is open")
        with pytest.raises(RoundMismatchError):
            site.download(ignored)
        yield site


def test_a_model_made_without_an_acknowledged_update(world: World, acknowledged: Participant) -> None:
    """An honest site has stored it; the aggregate that would show it is withheld."""
    later = world.aggregate("b", "c", "d").next_base
    assert later is not None
    world.server.models = {1: world.model("b", 0.5, round=1, base=later)}
    for round in (1, 2):
        world.server.say(round, base=later)
        with pytest.raises(VerificationError, match="acknowledged this site's update of round 0, and shows no aggrega"):
            acknowledged.join()
        assert position(acknowledged) == (0, 0.0)
        with world.site() as restarted:
            with pytest.raises(VerificationError, match="evidence"):
                restarted.join()
            assert position(restarted) == (0, 0.0)
    assert world.kept(RECEIPT_FILE).exists()
    assert world.kept(UPDATE_FILE).exists()


def test_the_aggregate_goes_before_a_later_model(world: World, acknowledged: Participant) -> None:
    aggregate = world.server.aggregates[0] = world.aggregate("b", "c", "d")
    assert aggregate.next_base is not None
    world.server.models = {1: world.model("b", 0.5, round=1, base=aggregate.next_base)}
    world.server.say(1, base=aggregate.next_base)
    for _ in range(2):
        with world.site() as restarted:
            with pytest.raises(VerificationError, match="has left it out"):
                restarted.join()
            assert position(restarted) == (0, 0.0)
    with pytest.raises(VerificationError, match="has left it out"):
        acknowledged.join()
    assert {kind for kind, _ in world.server.asked} == {"aggregate"}


def test_a_receipt_that_was_kept_is_done_with(world: World, acknowledged: Participant) -> None:
    with secagg.Update.open(world.kept(UPDATE_FILE)) as update:
        world.server.aggregates = {0: world.aggregate("b", "c", given=(update,))}
    world.server.say(1)
    acknowledged.join()
    assert position(acknowledged)[0] == 1
    assert not world.kept(RECEIPT_FILE).exists()
    assert world.kept(UPDATE_FILE).exists()


def test_a_site_that_was_away_for_longer_than_aggregates_are_kept(
    world: World, acknowledged: Participant, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is no fault of the server. Its user is told, and nothing is removed."""
    world.server.models = {3: world.model("b", 3.0, round=3, base=b"3" * 32)}
    world.server.say(3, base=b"3" * 32)
    with world.site() as restarted:
        restarted.join()
        assert position(restarted) == (3, 3.0)
    assert "ATTENTION: the server has acknowledged this site's update of round 0" in capsys.readouterr().err
    assert world.kept(RECEIPT_FILE).exists()


# Receipts, after the key was rotated.


@contextlib.contextmanager
def rotated(world: World, folder: Path) -> Iterator[World]:
    """The next epoch: site a and the server have their new kits; the federation that it yields has all of them."""
    folder.mkdir()
    later = world.federation.change(folder, lambda made, at, kits: made.rotate(None, at, kits))
    for name in ("a", "server"):
        install({path.name: path.read_bytes() for path in later[name].iterdir()}, world.federation[name])
    with HostileServer(world.federation["server"]).serving() as server:
        world.server = server
        yield World(later, server)


def test_a_receipt_outlives_a_rotation(world: World, acknowledged: Participant, tmp_path: Path) -> None:
    """The server closes the round without the site, and shows that after the key was rotated only."""
    left_out = world.aggregate("b", "c", "d")
    with rotated(world, tmp_path / "later"):
        world.server.say(1)
        with world.site() as site, pytest.raises(VerificationError, match="of round 0, and shows no aggregate"):
            site.join()
        world.server.aggregates = {0: left_out}
        world.server.say(1)
        with world.site() as site:
            with pytest.raises(VerificationError, match="has left it out"):
                site.join()
            assert position(site) == (0, 0.0)
        assert world.kept(RECEIPT_FILE).exists()


def test_a_receipt_that_was_kept_in_an_earlier_epoch(world: World, acknowledged: Participant, tmp_path: Path) -> None:
    with secagg.Update.open(world.kept(UPDATE_FILE)) as update:
        aggregate = world.aggregate("b", "c", given=(update,))
    with rotated(world, tmp_path / "later"):
        world.server.aggregates = {0: aggregate}
        world.server.say(1)
        with world.site() as site:
            site.join()
            assert position(site)[0] == 1
        assert not world.kept(RECEIPT_FILE).exists()


def test_a_rotation_in_an_open_round_makes_receipts_void(
    world: World, acknowledged: Participant, tmp_path: Path
) -> None:
    """The round began anew under the new key, and ended without this site."""
    with rotated(world, tmp_path / "later") as later:
        world.server.aggregates = {0: later.aggregate("b", "c", "d")}
        world.server.say(1)
        with world.site() as site:
            site.join()
            assert position(site)[0] == 1
        assert not world.kept(RECEIPT_FILE).exists()


def test_a_receipt_of_this_epoch_and_an_aggregate_of_an_earlier_one(world: World, tmp_path: Path) -> None:
    """No server that keeps its word has both."""
    earlier = world.aggregate("b", "c", "d")
    with rotated(world, tmp_path / "later"):
        world.server.say(0)
        with world.site() as site:
            site.join()
            world.client("a").encrypt_to(world.kept(UPDATE_FILE), state(0.5), round=0, base=world.base)
            site.upload(ignored)
        world.server.aggregates = {0: earlier}
        world.server.say(1)
        with world.site() as site, pytest.raises(VerificationError, match="has left it out"):
            site.join()


# Stored models that are of no use.


def garbled(model: secagg.Update, signature: bytes | None) -> secagg.Update:
    parts = Parts.of(model)
    parts.payloads = [bytes(len(payload)) for payload in parts.payloads]
    return parts.sealed(signature)


@pytest.mark.parametrize("signature", [bytes(64), None], ids=["unsigned", "signed for another body"])
def test_a_stored_model_of_no_use(world: World, capsys: pytest.CaptureFixture[str], signature: bytes | None) -> None:
    """The site goes on from an older one, and the aggregates since."""
    aggregate = world.aggregate("b", "c", "d", round=1, base=b"1" * 32)
    assert aggregate.next_base is not None
    good = world.model("b", 1.0, round=1, base=b"1" * 32)
    world.server.models = {1: good, 2: garbled(world.model("c", 1.5, round=2, base=aggregate.next_base), signature)}
    world.server.aggregates = {1: aggregate}
    world.server.say(2, base=aggregate.next_base)
    with world.site() as site:
        site.join()
        round, value = position(site)
        assert round == 2
        np.testing.assert_allclose(value, 1.5, rtol=0, atol=64 / 1023)  # a step of 11 bits, at a weight of 1 of 64
    assert "the global model of round 2 on the server cannot be used" in capsys.readouterr().out


def test_stored_models_of_no_use_and_nothing_else(world: World) -> None:
    model = garbled(world.model("c", 1.5, round=2, base=bytes(32)), None)
    world.server.models = {2: model}
    world.server.say(2)
    with world.site() as site, pytest.raises(StateError, match="that of round 2 cannot be used: the signature is not"):
        site.join()
    assert not world.kept(MODEL_FILE).exists()


# Revoked sites under an earlier key.


def test_an_aggregate_of_an_earlier_epoch_with_a_site_that_was_revoked(world: World, tmp_path: Path) -> None:
    with_d, without = world.aggregate("b", "c", "d"), world.aggregate("a", "b", "c")
    (tmp_path / "removed").mkdir()
    (tmp_path / "rotated").mkdir()
    removed = world.federation.change(tmp_path / "removed", lambda made, at, kits: made.remove(("d",), at, kits))
    rotated = removed.change(tmp_path / "rotated", lambda made, at, kits: made.rotate(None, at, kits))
    for name in ("a", "server"):
        install({path.name: path.read_bytes() for path in rotated[name].iterdir()}, world.federation[name])
    with HostileServer(world.federation["server"]).serving() as server:
        world.server = server
        for aggregate in (with_d, without):
            server.aggregates = {0: aggregate}
            server.say(1)
            with world.site() as site:
                if aggregate is with_d:
                    with pytest.raises(StateError, match="the aggregate of round 0 cannot be used: d has been revoked"):
                        site.join()
                    with pytest.raises(IdentityError, match="'d' has been revoked since it gave to round 0"):
                        site.receive(aggregate)
                    assert position(site) == (0, 0.0)
                else:
                    site.join()
                    assert position(site)[0] == 1


# A manifest that changes while a site is running.


def site_command(world: World, server: HostileServer) -> list[str]:
    """Site a trains what takes no time."""
    return ["site", str(world.federation["a"]), "--server", server.address, "--task", "tiny_task:Tiny"]


class WillingServer(HostileServer):
    """Ends each round as soon as there is one update, with those of other sites; then it has a later manifest."""

    world: World
    manifests: list[bytes]

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        update = secagg.Update.from_bytes(b"".join(message.data for message in request_iterator))
        round = update.header.round
        if round not in self.aggregates:  # a site that waits asks whether it is there, and this one has forgotten
            aggregate = self.aggregates[round] = self.world.aggregate(
                "b", "c", round=round, base=update.header.base, given=(update,)
            )
            if self.manifests:
                manifest = self.manifests.pop()
                for folder in (self.folder, self.world.federation["b"], self.world.federation["c"]):
                    (folder / PROJECT_FILE).write_bytes(manifest)
            self.say(round + 1, base=aggregate.next_base)
        return pb.UploadReply(receipt=secagg.Receipt.of(update, self.kit.identity).to_bytes())


def test_a_running_site_takes_a_later_manifest(world: World, tmp_path: Path) -> None:
    """A site that was removed during the first round is refused from the second one on."""
    later = world.federation.change(tmp_path / "later", lambda made, at, kits: made.remove(("d",), at, kits))
    server = WillingServer(world.federation["server"])
    server.world, server.manifests = world, [(later["server"] / PROJECT_FILE).read_bytes()]
    with server.serving():
        assert main([*site_command(world, server), "--rounds", "2"]) == 0
    assert load_site_kit(world.federation["a"]).project == later.provisioner.project


class ServerOfFewSites(HostileServer):
    """Takes an update, and then says that the round has failed."""

    def Upload(self, request_iterator: Iterator[pb.Chunk], context: grpc.ServicerContext) -> pb.UploadReply:
        reply = super().Upload(request_iterator, context)
        self.closed = QuorumError("round 0 has 1 of at least 3 updates after 15 s")
        return reply


def test_a_round_with_too_few_sites(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The user is told that the same command goes on; so it does."""
    with ServerOfFewSites(world.federation["server"]).serving() as server:
        command = [*site_command(world, server), "--rounds", "1"]
        for again in (False, True):
            server.closed = None
            assert main(command) == 6
            shown = capsys.readouterr()
            assert "round 0 has 1 of at least 3 updates" in shown.err
            assert shown.err.endswith("the same command, started again, goes on waiting, and does not train again\n")
            assert ("going on with the update that was encrypted before" in shown.out) == again


# What is shown to people.


def test_text_of_the_server_does_not_steer_the_terminal(secagg: Secagg, world: World) -> None:
    arguments = ("status", world.federation["a"], "--server", world.server.address)
    world.server.status = pb.StatusReply(state="open\x1b]0;owned\x07", time=time.time(), disk_quota=1)
    result = secagg(*arguments)
    assert result.returncode == 7
    assert "\x1b" not in result.stdout + result.stderr
    assert "names the state" in result.stderr

    class Refusing(HostileServer):
        def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusReply:
            abort(context, Refusal.of(QuorumError("boo \x1b[2J\nsecagg: all is well")))

    with Refusing(world.federation["server"]).serving() as server:
        result = secagg("status", world.federation["a"], "--server", server.address)
    assert result.returncode == 6
    assert result.stderr == "secagg: boo \\x1b[2J\\nsecagg: all is well\n"
