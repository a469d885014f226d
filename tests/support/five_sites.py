"""Five sites in threads that go through rounds whatever happens, and the ledger of what must hold of each round."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from served import Kits

import secagg
from secagg.errors import StateError
from secagg.integrations.grpc import SiteSession
from secagg.setup.project_file import ProjectFile
from secagg.setup.provisioner import Provisioner
from secagg.site import Uploaded
from secagg.trust import Tls
from secagg.trust.kit import load_server_kit, load_site_kit
from secagg.wire.container import DIGEST_NBYTES

SITES = tuple(f"site-{number}" for number in range(1, 6))
MIN_CLIENTS = 3

#: Exact schemes by name: configuration of HE, and how many values make updates of several frames, or of one.
#: In ``"auto"`` each round begins with a calibration.
SCHEMES: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "flashe": ({"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 16}}, 600_000),
    "bgv": ({"lib": "seal", "config": {"scheme": "BGV", "value_bits": 8}}, 100_000),
    "auto": ({"lib": "flashe", "config": {"scheme": "FLASHE"}}, 600_000),
}


def make_kits(folder: Path, scheme: str, values: int | None = None) -> Kits:
    """Kits of the server and five sites; the model has one tensor."""
    he, most = SCHEMES[scheme]
    aggregation: dict[str, Any] = {"min_clients": MIN_CLIENTS, "max_clients": len(SITES)}
    if scheme != "auto":
        aggregation |= {"max_abs": 1.0, "max_weight": 8.0}
    config = secagg.Config.from_dict({"he": he, "aggregation": aggregation})
    layout = secagg.Layout.of({"w": np.zeros(values or most, np.float32)}, config)
    kits = folder / "kits"
    kits.mkdir(parents=True)
    file = ProjectFile("chaos", config, SITES, ("localhost",), layout=layout)
    return Kits(kits, Provisioner.create(file, folder / "authority", kits))


def make_client(kits: Kits, site: str) -> secagg.Client:
    kit = load_site_kit(kits[site])
    return secagg.Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project)


def state_of(site: str, round: int, values: int) -> dict[str, Any]:
    """What a site has trained in a round: random once, and shifted from round to round."""
    rng = np.random.default_rng(SITES.index(site))
    return {"w": np.roll(rng.uniform(-1, 1, values).astype(np.float32), round)}


def weight_of(site: str) -> float:
    return 1.0 + SITES.index(site)


class Ledger:
    """What was encrypted, acknowledged and decrypted, by rounds. Threads may share it."""

    def __init__(self, kits: Kits, values: int | None = None) -> None:
        server = load_server_kit(kits["server"])
        self.config, self.key, self.project = server.config, server.key, server.project
        self.calibrated = self.config.aggregation.precision == "auto"
        layout = self.project.layout
        self.values = values or (0 if layout is None else layout.size("encrypted"))
        self.client = make_client(kits, SITES[0])
        self.bases = {0: self.client.base({"w": np.zeros(self.values, np.float32)})}
        self.acknowledged = 0
        self.checked = 0
        self._lock = threading.Lock()
        self._offers: dict[tuple[int, bytes], secagg.Update] = {}
        self._receipts: dict[tuple[int, str], set[bytes]] = {}
        self._means: dict[int, list[tuple[str, bytes, bytes]]] = {}
        self._scales: dict[int, bytes] = {}
        self._lost: list[str] = []

    def offer(self, update: secagg.Update) -> secagg.Update:
        with self._lock:
            self._offers[update.header.round, update.header.head] = update
        return update

    def acknowledge(self, round: int, site: str, receipt: secagg.Receipt | None) -> None:
        assert receipt is not None, "the server of a project signs receipts"
        with self._lock:
            heads = self._receipts.setdefault((round, site), set())
            self.acknowledged += receipt.head not in heads
            heads.add(receipt.head)

    def lose(self, what: str) -> None:
        with self._lock:
            self._lost.append(what)

    def take(self, site: str, aggregate: secagg.Update, mean: Mapping[str, Any]) -> None:
        with self._lock:
            entry = (site, aggregate.digest(), mean["w"].tobytes())
            self._means.setdefault(aggregate.header.round, []).append(entry)

    def check(self, aggregate: secagg.Update) -> None:
        """Hold an aggregate against the updates that it lists, the receipts, and what sites decrypted."""
        header, round = aggregate.header, aggregate.header.round
        assert header.base == self.bases[round]
        assert header.calibration == self._scales.get(round)
        assert len(set(header.sites)) == len(header.sites) >= MIN_CLIENTS
        assert not self._lost, f"an acknowledged update was not in the sum: {self._lost}"
        heads = {item.site: header.of(item).head for item in header.contributions}
        for (number, site), receipts in self._receipts.items():
            if number == round:  # its only update, and in the sum
                assert receipts == {heads.get(site, b"")[-DIGEST_NBYTES:]}, f"{site} has a receipt, and is not in it"
        terms = {"base": header.base, "project": self.project, "calibration": header.calibration}
        alone = secagg.Aggregator(self.config, self.key, round, **terms)
        for head in heads.values():
            alone.add(self._offers[round, head])
        expected = alone.finish()
        # Not only the words of the sum: list, tag and signatures, too.
        assert expected.to_bytes() == aggregate.to_bytes()
        mean = self.client.decrypt(expected, round=round, base=header.base)["w"].tobytes()
        for site, digest, own in self._means.pop(round, []):
            assert digest == expected.digest(), f"{site} got another aggregate"
            assert own == mean, f"{site} decrypted another sum"
        next_base = aggregate.next_base
        assert next_base is not None
        self.bases[round + 1] = next_base
        self._offers = {key: update for key, update in self._offers.items() if key[0] >= round}
        self.checked += 1

    def check_scales(self, scales: secagg.Update) -> None:
        """Hold scales that a site was given against those that others were given, and against their own list."""
        header = scales.header
        assert header.base == self.bases[header.round]
        assert len(set(header.sites)) == len(header.sites) >= MIN_CLIENTS
        with self._lock:
            assert self._scales.setdefault(header.round, scales.digest()) == scales.digest(), "others got other scales"

    def check_new(self, run: Path) -> list[int]:
        """Check the aggregates in a run folder that were not checked yet; return their rounds, in order."""
        rounds = []
        while (path := run / f"aggregate-{max(self.bases)}.secagg").exists():
            with secagg.Update.open(path) as aggregate:
                self.check(aggregate)
                rounds.append(aggregate.header.round)
        return rounds


class WatchedSession(SiteSession):
    """A session that tells the ledger what was acknowledged, and what was lost after that."""

    ledger: Ledger

    def upload(self, update: Any, progress: Any = None) -> Uploaded:
        uploaded = super().upload(update, progress)
        self.ledger.acknowledge(update.header.round, self.site_name, uploaded.receipt)
        return uploaded

    def download(self, round: int, path: Any, progress: Any = None) -> secagg.Update:
        try:
            return super().download(round, path, progress)
        except StateError as error:  # what makes `exchange` upload again
            if self.receipt(round) is not None:
                self.ledger.lose(f"{self.site_name}, round {round}: {error}")
            raise


@dataclass
class Site:
    """A site; one thread at a time uses it."""

    kits: Kits
    name: str
    ledger: Ledger
    folder: Path
    address: str
    secure: bool = True
    timeout: float = 240.0
    client: secagg.Client = field(init=False)
    _session: WatchedSession | None = None
    _calibration: secagg.Update | None = None
    _update: secagg.Update | None = None

    def __post_init__(self) -> None:
        self.client = make_client(self.kits, self.name)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def session(self) -> WatchedSession:
        if self._session is None:
            kit = load_site_kit(self.kits[self.name])
            tls = Tls.load(kit.folder) if self.secure else None
            self._session = WatchedSession(
                self.address, self.name, tls=tls, timeout=self.timeout, project=self.ledger.project
            )
            self._session.ledger = self.ledger
        return self._session

    def prepare(self, round: int, base: bytes) -> None:
        """Encrypt what this site gives to a round first."""
        if not self.ledger.calibrated:
            self.update_of(round, base)
        elif self._calibration is None or (self._calibration.header.round, self._calibration.header.base) != (
            round,
            base,
        ):
            state = state_of(self.name, round, self.ledger.values)
            self._calibration = self.client.calibrate(state, weight_of(self.name), round, base=base)

    def update_of(self, round: int, base: bytes, anew: bool = False) -> secagg.Update:
        """The update of a round: the same one again, unless it is to be made `anew`; a calibration comes before it."""
        old = self._update
        if anew or old is None or (old.header.round, old.header.base) != (round, base):
            state, scales = state_of(self.name, round, self.ledger.values), None
            if self.ledger.calibrated:
                self.prepare(round, base)
                assert self._calibration is not None
                with self.session.calibrate(self._calibration, self.folder / "scales.secagg") as given:
                    scales = secagg.Update.from_bytes(given.to_bytes())
                self.ledger.check_scales(scales)
            update = self.client.encrypt(state, weight_of(self.name), round, base=base, calibration=scales)
            self._update = self.ledger.offer(update)
        assert self._update is not None
        return self._update

    def join(self) -> tuple[int, bytes]:
        """Join; return round and base."""
        membership = self.session.join()
        base = self.ledger.bases.get(membership.round, membership.base)
        assert base is not None
        assert membership.base in (None, base)
        return membership.round, base

    def play(self) -> int:
        """Take part in the open round; return its number."""
        round, base = self.join()
        self.finish(self.update_of(round, base))
        return round

    def finish(self, update: secagg.Update) -> None:
        """Upload an update, and check the aggregate of its round."""
        header = update.header
        with self.session.exchange(update, self.folder / "aggregate.secagg") as aggregate:
            receipt = self.session.receipt(header.round)
            mean = self.client.decrypt(aggregate, round=header.round, base=header.base, receipt=receipt)
            self.ledger.take(self.name, aggregate, mean)

    def disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class FiveSites:
    """All sites, each in a thread of its own while it plays."""

    def __init__(self, kits: Kits, folder: Path, address: str, *, values: int | None = None, **options: Any) -> None:
        self.ledger = Ledger(kits, values)
        self.sites = [Site(kits, name, self.ledger, folder / name, address, **options) for name in SITES]
        self._pool = ThreadPoolExecutor(len(SITES), thread_name_prefix="site")

    def join(self) -> None:
        for site in self.sites:
            site.join()

    def begin(self) -> Sequence[Future[int]]:
        """Let every site take part in the open round."""
        return [self._pool.submit(site.play) for site in self.sites]

    def play(self) -> None:
        """Play a round to its end."""
        rounds = {future.result() for future in self.begin()}
        assert len(rounds) == 1

    def prepare(self) -> None:
        """Encrypt for the next round what can be, so that what is left of it is the server's work, mostly."""
        round = max(self.ledger.bases)
        for site in self.sites:
            site.prepare(round, self.ledger.bases[round])

    def time_rounds(self, run: Path, count: int = 3) -> float:
        """Play rounds that nothing disturbs; return how many seconds the longest takes."""
        longest = 0.0
        for _ in range(count):
            self.prepare()
            end = run / f"aggregate-{max(self.ledger.bases)}.secagg"
            started = time.monotonic()
            futures = self.begin()
            while not end.exists():
                time.sleep(0.001)
                assert not all(future.done() for future in futures) or end.exists()
            longest = max(longest, time.monotonic() - started)
            for future in futures:
                future.result()
            assert len(self.ledger.check_new(run)) == 1
        return longest

    def disconnect(self) -> None:
        for site in self.sites:
            site.disconnect()

    def __enter__(self) -> FiveSites:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()  # ends the calls under way
        self._pool.shutdown(cancel_futures=True)
