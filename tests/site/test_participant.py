"""A site that is interrupted at any moment and goes on: real kits, a real server, a small network."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from provisioned import Federation
from served import Served
from signed import Parts

import secagg
from secagg.cli.site import Printed
from secagg.errors import (
    ConfigError,
    DecryptionError,
    EpochError,
    KeyMismatchError,
    LayoutError,
    MismatchError,
    QuorumError,
    RoundMismatchError,
    SecAggError,
    StateError,
    VerificationError,
)
from secagg.integrations.grpc import SiteSession
from secagg.setup.installing import install
from secagg.setup.provisioner import Provisioner
from secagg.site import GlobalModel
from secagg.site.folder import DOWNLOAD_FILE, MODEL_FILE, OWN_FILE, RECEIPT_FILE, UPDATE_FILE
from secagg.site.loop import take_part
from secagg.site.participant import Participant
from secagg.site.record import SiteRecord
from secagg.site.task import CheckedTask
from secagg.trust import Tls
from secagg.trust.kit import load_server_kit, load_site_kit
from secagg.trust.kit_files import FAILURES_FILE, PROJECT_FILE, locked
from secagg.wire.header import Contribution

SITES = ("a", "b", "c")


def ignored(done: float, total: float) -> None:
    pass


def make_network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))


@dataclass
class Site:
    """One process of a site, as `secagg site` would be."""

    session: SiteSession
    model: GlobalModel
    participant: Participant
    folder: Path

    def train(self, seed: int = 0) -> None:
        """Change the network by something that is the site's own."""
        draw = torch.Generator().manual_seed(seed + sum(map(ord, self.folder.name)))
        network = make_network()
        network.load_state_dict(self.model.state)
        for parameter in network.parameters():
            parameter.data += torch.randn(parameter.shape, generator=draw) / 100
        self.participant.encrypt(network.state_dict(), 1.0)

    def upload(self) -> None:
        self.participant.upload(ignored)

    def finish(self) -> secagg.Header:
        """Wait for the round, take its aggregate, store the model if it is this site's turn."""
        with self.participant.download(ignored) as aggregate:
            self.participant.receive(aggregate)
        self.participant.store_model(aggregate.header)
        return aggregate.header

    @property
    def update(self) -> bytes:
        return (self.folder / UPDATE_FILE).read_bytes()

    @property
    def floats(self) -> dict[str, list[float]]:
        return {name: value.tolist() for name, value in self.model.state.items() if value.is_floating_point()}


@dataclass
class World:
    """A federation and its server, which can be killed and started again."""

    federation: Federation
    folder: Path
    options: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self.stack = ExitStack()
        self.start()

    def start(self, kit: Path | None = None) -> None:
        self.served = self.stack.enter_context(Served(kit or self.federation["server"], self.folder, self.options))

    def kill(self) -> None:
        self.served.process.kill()
        self.served.process.wait()

    @contextlib.contextmanager
    def site(self, name: str, *, join: bool = True, seed: int = 0, timeout: float = 120.0) -> Iterator[Site]:
        kit = load_site_kit(self.federation[name])
        model = GlobalModel(secagg.Client.load(kit), make_network(seed).state_dict())
        tls = Tls.load(kit.tls)
        with SiteSession(self.served.address, kit.name, tls=tls, timeout=timeout, project=kit.project) as session:
            participant = Participant(kit, session, model, Printed())
            if join:
                participant.join()
            yield Site(session, model, participant, kit.folder)

    @contextlib.contextmanager
    def sites(self, *names: str) -> Iterator[list[Site]]:
        with ExitStack() as stack:
            yield [stack.enter_context(self.site(name)) for name in names or SITES]

    def run(self, rounds: int = 1, *, stored: bool = True) -> dict[str, list[float]]:
        """Let three sites go through rounds; return the floats of the global model."""
        with self.sites() as sites:
            for round in range(rounds):
                for site in sites:
                    site.train(round)
                    site.upload()
                for site in sites:
                    if stored:
                        site.finish()
                    else:
                        with site.participant.download(ignored) as aggregate:
                            site.participant.receive(aggregate)
            assert sites[0].floats == sites[1].floats == sites[2].floats
            return sites[0].floats


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of four sites, three of which are enough for a round."""
    folder = tmp_path_factory.mktemp("four")
    Federation.make(folder, sites=[*SITES, "d"])
    return folder


@pytest.fixture
def world(four: Path, tmp_path: Path) -> Iterator[World]:
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    world = World(Federation(Provisioner.load(tmp_path / "authority"), tmp_path / "kits"), tmp_path / "served")
    with world.stack:
        yield world


def forget(folder: Path, *names: str) -> None:
    """Remove what a site has kept."""
    for name in names or (MODEL_FILE, UPDATE_FILE, RECEIPT_FILE):
        (folder / name).unlink(missing_ok=True)


def test_a_round_and_who_stores_its_model(world: World) -> None:
    with world.sites() as sites:
        for site in sites:
            assert not site.participant.has_update()
            site.train()
            assert site.participant.has_update()
            site.upload()
        header, *_ = [site.finish() for site in sites]
        assert header.sites == ("a", "b", "c")
        assert sites[0].session.status().models == (1,)
        with sites[2].session.load_model(sites[2].folder / "x") as model:
            assert (model.header.round, model.header.site) == (1, "b")
        for site in sites:
            with secagg.Update.open(site.folder / MODEL_FILE) as own:
                assert (own.header.round, own.header.site) == (1, site.folder.name)
            assert not site.participant.store_model(header)  # it is there
            site.participant.clear()
            assert not (site.folder / UPDATE_FILE).exists()
            assert (site.folder / MODEL_FILE).exists()


def test_what_is_of_the_open_round_stays(world: World) -> None:
    """Fewer rounds are asked for than the federation is at."""
    with world.site("a") as site:
        site.train()
        site.upload()
        update, receipt = site.update, (site.folder / RECEIPT_FILE).read_bytes()
        site.participant.clear()
        assert site.update == update
        assert (site.folder / RECEIPT_FILE).read_bytes() == receipt


def test_another_model_than_the_projects_is_found_before_the_site_joins(tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text("w: [3]\n", encoding="utf-8")
    kit = load_site_kit(Federation.make(tmp_path, model="shapes.yaml")["a"])
    with SiteSession("127.0.0.1:1", "a", tls=Tls.load(kit.tls), project=kit.project) as session:
        Participant(kit, session, GlobalModel(secagg.Client.load(kit), {"w": torch.zeros(3)}))
        for other in ({"w": torch.zeros(4)}, {"v": torch.zeros(3)}, {"w": torch.zeros(3), "n": torch.tensor(0)}):
            with pytest.raises(LayoutError, match="the model is another than that of project brain: "):
                Participant(kit, session, GlobalModel(secagg.Client.load(kit), other))


def test_killed_after_training(world: World) -> None:
    with world.site("a") as site:
        site.train()
        update = site.update
    with world.sites() as sites:
        assert sites[0].participant.has_update()
        for site in sites[1:]:
            site.train()
        for site in sites:
            site.upload()
        assert [site.finish().sites for site in sites] == [("a", "b", "c")] * 3
        assert sites[0].update == update
        assert sites[0].floats == sites[1].floats


@pytest.mark.parametrize("kept", [True, False])
def test_the_own_tensors_go_on_after_a_restart(world: World, capsys: pytest.CaptureFixture[str], kept: bool) -> None:
    counter = "1.num_batches_tracked"
    with world.site("a") as site:
        network = make_network()
        network[1].num_batches_tracked += 3
        site.participant.encrypt(network.state_dict(), 1.0)
        assert (site.folder / OWN_FILE).stat().st_mode & 0o777 == 0o600
        if not kept:
            (site.folder / OWN_FILE).write_bytes((site.folder / OWN_FILE).read_bytes()[:-1])
    capsys.readouterr()
    with world.site("a") as site:
        assert site.model.state[counter] == (3 if kept else 0)
        assert (f"{site.folder / OWN_FILE}: this site's own tensors begin anew" in capsys.readouterr().err) != kept


def test_killed_after_the_upload(world: World) -> None:
    with world.site("a") as site:
        site.train()
        site.upload()
        update, receipt = site.update, (site.folder / RECEIPT_FILE).read_bytes()
    with world.sites() as sites:
        assert sites[0].participant.has_update()
        sites[0].upload()  # it is there already
        assert (sites[0].folder / RECEIPT_FILE).read_bytes() == receipt
        for site in sites[1:]:
            site.train()
            site.upload()
        for site in sites:
            site.finish()
        assert sites[0].update == update


def test_killed_while_it_waited(world: World) -> None:
    """The round ends without it. It takes the aggregate, held against the receipt of the process that was killed."""
    with world.sites() as sites:
        for site in sites:
            site.train()
            site.upload()
        for site in sites[1:]:
            site.finish()
        expected = sites[1].floats
    with world.site("a") as site:
        assert (site.model.round, site.floats) == (1, expected)
        assert not site.participant.has_update()
    world.run()


def test_an_update_of_before_the_restart_that_was_left_out(world: World) -> None:
    """The server gives a receipt, and then makes the aggregate without the update."""
    federation = world.federation
    with world.site("c") as site:
        site.train()
        server = load_server_kit(federation["server"])
        receipt = secagg.Receipt.of(secagg.Update.from_bytes(site.update), server.identity)
        (site.folder / RECEIPT_FILE).write_bytes(receipt.to_bytes())
        lost = site.update
        others = [_client(federation, name) for name in ("a", "b", "c")]
        aggregator = secagg.Aggregator(server.config, server.key, 0, project=server.project)
        for client in others:  # c's own, but another one
            aggregator.add(client.encrypt(site.model.state, round=0, base=site.model.base))
        with pytest.raises(VerificationError, match="has left it out"):
            site.participant.receive(aggregator.finish())
        assert (site.model.round, site.update) == (0, lost)
        assert not (site.folder / MODEL_FILE).exists()


def _client(federation: Federation, name: str) -> secagg.Client:
    return secagg.Client.load(load_site_kit(federation[name]))


def test_another_encryption_is_in_the_sum(world: World) -> None:
    with world.site("a") as site:
        site.train()
        site.upload()
        first = site.update
    forget(site.folder)
    with world.sites() as sites:
        for site in sites:
            site.train(1)
            site.upload()
        assert sites[0].update != first
        headers = [site.finish() for site in sites]
        assert headers[0].contributions[0] == secagg.Update.from_bytes(first).header.contributions[0]
        assert sites[0].floats == sites[1].floats


def test_too_few_sites_and_then_enough(world: World) -> None:
    world.kill()
    world.options = ("--round-timeout", 2)
    world.start()
    with world.site("a") as site:
        site.train()
        site.upload()
        with pytest.raises(QuorumError, match="1 of at least 3 updates"):
            site.finish()
        update = site.update
    with world.sites() as sites:
        assert sites[0].participant.has_update()
        for site in sites[1:]:
            site.train()
        for site in sites:
            site.upload()
        assert [site.finish().sites for site in sites] == [("a", "b", "c")] * 3
        assert sites[0].update == update


def _flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(bytes(blob))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _missing(path: Path) -> None:
    path.unlink()


def _of_another(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(Parts.of(secagg.Update.from_bytes(path.read_bytes())).but(**fields).to_bytes())

    return change


CHANGES: dict[str, Callable[[Path], None]] = {
    "flipped": _flip,
    "cut": _cut,
    "empty": _empty,
    "missing": _missing,
    "another round": _of_another(round=1),
    "another base": _of_another(base=bytes(32)),
    "no base": _of_another(base=None),
    "another key": _of_another(key="ab" * 32),
    "another site": _of_another(contributions=(Contribution("b", bytes(32)),)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_update_that_is_of_no_use_is_made_anew(world: World, change: str) -> None:
    with world.site("a") as site:
        site.train()
        assert site.participant.has_update()
        CHANGES[change](site.folder / UPDATE_FILE)
        assert not site.participant.has_update()
        site.train()
        assert site.participant.has_update()


def test_a_late_site_goes_on_from_the_stored_model(world: World) -> None:
    floats = world.run(4)
    forget(world.federation["c"])
    with world.site("c", seed=9) as site:  # whatever it begins with
        assert site.session.status().aggregates == (2, 3)
        assert (site.model.round, site.floats) == (4, floats)
    world.run()


def test_a_late_site_applies_the_aggregates_since_the_stored_model(world: World) -> None:
    world.run(2)
    floats = world.run(1, stored=False)
    forget(world.federation["c"])
    with world.site("c", seed=9) as site:
        assert site.session.status().models == (1, 2)
        assert (site.model.round, site.floats) == (3, floats)
        with secagg.Update.open(site.folder / MODEL_FILE) as own:
            assert (own.header.round, own.header.site) == (3, "c")
    world.run()


def test_the_own_model_is_enough(world: World) -> None:
    floats = world.run(3, stored=False)
    with world.sites() as sites:
        assert sites[0].session.status().models == ()
        assert [site.floats for site in sites] == [floats] * 3
    forget(world.federation["c"])
    with pytest.raises(StateError, match="keeps no later model, and no aggregate of round 0"), world.site("c"):
        pass


def test_a_site_that_missed_a_round(world: World) -> None:
    with world.site("d", join=False) as late:
        late.train()
        floats = world.run()
        with pytest.raises(RoundMismatchError):
            late.upload()
        late.participant.join()
        assert (late.model.round, late.floats) == (1, floats)
        assert not late.participant.has_update()
        with world.sites() as sites:
            for site in (*sites, late):
                site.train()
                site.upload()
            assert late.finish().sites == ("a", "b", "c", "d")


class Still:
    """A task that learns nothing."""

    examples = 1

    def __init__(self) -> None:
        self.model = make_network()

    def train(self, round: int) -> None:
        raise AssertionError("the round is missed, and there is no other")


def test_a_missed_round_is_no_end(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with world.site("d", join=False) as late:
        late.train()
        floats = world.run()
        task, records = CheckedTask("still", Still()), list[SiteRecord]()
        assert take_part(late.participant, task, 1, records.append) == {}
        assert (late.model.round, late.floats, records) == (1, floats, [])
        assert {name: value.tolist() for name, value in task.state.items() if value.is_floating_point()} == floats
        assert not (late.folder / UPDATE_FILE).exists()
    assert "round 0 (1 of 1): missed: " in capsys.readouterr().out


class Adds(Still):
    """A task that has nothing to train with at first, if it has no examples, and one from the second round on."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples, self.validated, self.trained = examples, 0, list[int]()

    def train(self, round: int) -> None:
        self.trained.append(round)
        for parameter in self.model.parameters():
            parameter.data += 0.01

    def validate(self) -> dict[str, float]:
        self.validated += 1
        self.examples = self.examples or int(self.validated > 1)  # the first time is before round 0
        return {}


def test_a_task_without_examples_skips_its_round(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {name: Adds(0 if name == "d" else 1) for name in (*SITES, "d")}
    records: dict[str, list[SiteRecord]] = {name: [] for name in tasks}
    with world.sites(*tasks) as sites, ThreadPoolExecutor(4) as pool:

        def run(site: Site, name: str) -> None:
            take_part(site.participant, CheckedTask(name, tasks[name]), 2, records[name].append)

        list(pool.map(run, sites, tasks))
        assert [site.floats for site in sites] == [sites[0].floats] * 4
    assert [task.trained for task in tasks.values()] == [[0, 1]] * 3 + [[1]]
    skipped, given = records["d"]
    assert (skipped.round, skipped.nbytes, skipped.train_seconds, skipped.upload_seconds) == (0, 0, 0.0, 0.0)
    assert (given.round, given.nbytes) == (1, records["a"][1].nbytes)
    lines = [json.loads(line) for line in (world.folder / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [(line["outcome"], line["skipped"], len(line["uploads"])) for line in lines] == [
        ("completed", ["d"], 3),
        ("completed", [], 4),
    ]
    assert "round 0 (1 of 2): skipped, for lack of examples" in capsys.readouterr().out


def test_the_end_of_a_training_is_no_failed_round(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is a site that comes when all rounds are done, for the model: with a server that would go on."""
    world.kill()
    world.options = ("--round-timeout", 20)
    world.start()
    with world.sites() as sites, ThreadPoolExecutor(3) as pool:

        def run(site: Site) -> None:
            take_part(site.participant, CheckedTask("adds", Adds(1)), 1, list[SiteRecord]().append)

        list(pool.map(run, sites))
        assert sites[0].session.status().skipped == SITES
    assert re.search(r"upload [\d.]+ (bytes|kB)$", capsys.readouterr().err, re.MULTILINE)  # not 0.0 MB
    with world.site("d") as late:
        run(late)
        status = late.session.status()
        assert (status.skipped, status.waiting_for) == ((*SITES, "d"), ())
    world.kill()
    with world.site("d", join=False, timeout=60.0) as alone:  # nor does it wait for a server that is gone
        start = time.monotonic()
        alone.participant.leave()
        assert time.monotonic() - start < 30


def test_a_round_that_is_skipped_without_a_quorum(world: World) -> None:
    """The update of another site stays; who skips is told, and may go on."""
    world.kill()
    world.options = ("--round-timeout", 2)
    world.start()
    with world.sites("a", "d") as (one, idle):
        one.train()
        one.upload()
        idle.participant.skip()
        with pytest.raises(QuorumError, match="1 of at least 3"):
            idle.finish()
        assert idle.session.status().added == ("a",)
    line = json.loads((world.folder / "run" / "rounds.jsonl").read_text().splitlines()[0])
    assert (line["outcome"], line["skipped"], line["missing"]) == ("failed", ["d"], ["b", "c", "d"])


def test_metrics_that_are_none_are_found_before_training(world: World) -> None:
    class Wrong(Still):
        def validate(self) -> Any:
            return None

    with world.site("a") as site, pytest.raises(ConfigError, match="validate of the task wrong returned None"):
        take_part(site.participant, CheckedTask("wrong", Wrong()), 1, list[SiteRecord]().append)


@pytest.mark.parametrize("damage", [_flip, _cut, _empty])
def test_an_own_model_that_is_damaged(
    world: World, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    floats = world.run(1)
    damage(world.federation["a"] / MODEL_FILE)
    with world.site("a") as site:
        assert (site.model.round, site.floats) == (1, floats)
    out = capsys.readouterr().out
    assert f"{world.federation['a'] / MODEL_FILE} cannot be used" in out
    assert "the global model of round 1 that b has stored" in out


def test_a_server_that_was_restored_from_a_backup(world: World) -> None:
    floats = world.run(1)
    world.kill()
    shutil.copytree(world.folder / "run", world.folder / "backup")
    world.start()
    world.run(1)
    world.kill()
    shutil.rmtree(world.folder / "run")
    shutil.copytree(world.folder / "backup", world.folder / "run")
    world.start()
    with pytest.raises(StateError, match="the server is at round 1, this site at round 2: .* move .* away"):
        world.run(1)
    for name in SITES:  # as their users do when the server's operators have told them
        (world.federation[name] / MODEL_FILE).rename(world.federation[name] / "model-of-another-course.secagg")
    with world.site("b") as site:
        assert (site.model.round, site.floats) == (1, floats)
    world.run(1)


def test_a_server_that_is_behind(world: World) -> None:
    world.run(1)
    with world.site("a") as site:
        site.model.round = 5
        with pytest.raises(StateError, match="the server is at round 1, this site at round 5"):
            site.participant.join()


def test_a_server_that_plays_back_the_last_aggregate(world: World) -> None:
    floats = world.run(1)
    with world.site("a") as site:
        receipt, model = (site.folder / RECEIPT_FILE).exists(), (site.folder / MODEL_FILE).read_bytes()
        site.train()
        with (
            secagg.Update.open(site.folder / DOWNLOAD_FILE) as aggregate,
            pytest.raises(RoundMismatchError, match="of round 0, not of round 1"),
        ):
            site.participant.receive(aggregate)
        assert (site.model.round, site.floats) == (1, floats)
        assert (receipt, model) == ((site.folder / RECEIPT_FILE).exists(), (site.folder / MODEL_FILE).read_bytes())


def test_another_initial_model(world: World) -> None:
    with world.site("a") as site:
        site.train()
        site.upload()
    with pytest.raises(MismatchError, match="give all sites the same initial model"), world.site("b", seed=1):
        pass


def test_one_kit_one_process(world: World) -> None:
    folder = world.federation["a"]
    with locked(folder), pytest.raises(ConfigError, match="another `secagg site` is at work"), locked(folder):
        pass
    with locked(folder):
        pass


def test_failures_are_counted_over_restarts(world: World) -> None:
    with world.sites() as sites:
        for site in sites:
            site.train()
            site.upload()
        with sites[0].participant.download(ignored) as aggregate:
            parts = Parts.of(aggregate)
            tampered = replace(parts, tags=(parts.tags[0] ^ 1, *parts.tags[1:])).build()
    for count in range(1, 10):
        with world.site("a", join=False) as site, pytest.raises(SecAggError) as caught:
            site.participant.receive(tampered)
        assert type(caught.value) is (DecryptionError if count <= 8 else EpochError)
        assert (site.folder / FAILURES_FILE).exists()


# Changes of the project.


def replace_kits(world: World, changed: Federation, *names: str) -> None:
    for name in names:
        install({path.name: path.read_bytes() for path in changed[name].iterdir()}, world.federation[name])


def test_a_later_manifest_is_kept(world: World, tmp_path: Path) -> None:
    world.run()
    world.kill()
    changed = world.federation.change(tmp_path / "changed", lambda made, at, kits: made.add(("e",), at, kits))
    replace_kits(world, changed, "server")
    world.start()
    before = (world.federation["a"] / PROJECT_FILE).read_bytes()
    world.run()
    for name in SITES:
        assert (world.federation[name] / PROJECT_FILE).read_bytes() != before
        assert load_site_kit(world.federation[name]).project == changed.provisioner.project


def test_a_new_key(world: World, tmp_path: Path) -> None:
    floats = world.run(2)
    with world.site("a") as site:  # an update under the old key, on the server and here
        site.train()
        site.upload()
    world.kill()
    changed = world.federation.change(tmp_path / "changed", lambda made, at, kits: made.rotate(None, at, kits))
    replace_kits(world, changed, "server", *SITES)
    forget(world.federation["b"])  # it needs the model that is stored
    forget(world.federation["c"], MODEL_FILE)
    world.start()
    with world.sites() as sites:
        assert [site.model.round for site in sites] == [2, 2, 2]
        assert [site.floats for site in sites] == [floats] * 3
        assert not sites[0].participant.has_update()
        for site in sites:
            site.train()
            site.upload()
        for site in sites:
            site.finish()
        assert sites[0].session.status().epoch == 1
        assert sites[0].floats == sites[1].floats != floats
    world.run()


def test_a_new_key_after_the_old_manifest_has_expired(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floats = world.run(1)
    world.kill()
    changed = world.federation.change(tmp_path / "changed", lambda made, at, kits: made.rotate(None, at, kits))
    replace_kits(world, changed, "server", *SITES)
    forget(world.federation["b"])
    authority = Provisioner.load(tmp_path / "authority").identity
    for name in SITES:
        path = world.federation[name] / "project-0.secagg"
        old = secagg.Project.load(path)
        replace(old, issued=1, expires=2).save(path, authority)
    world.start()
    with world.sites() as sites:
        assert [site.floats for site in sites] == [floats] * 3


def test_a_new_key_without_a_new_kit(world: World, tmp_path: Path) -> None:
    with world.site("a", join=False) as site:
        rotated = world.federation.change(tmp_path / "changed", lambda made, at, kits: made.rotate(None, at, kits))
        manifest = (rotated["server"] / PROJECT_FILE).read_bytes()
        with pytest.raises(KeyMismatchError, match="unpack the newest kit of a"):
            load_site_kit(site.folder).store_manifest(manifest)
