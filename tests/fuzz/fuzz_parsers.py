"""What reads bytes of others, as one function of any bytes: nothing but a `SecAggError` may come out of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from federation import twin_of
from fuzz_worlds import AUTHORITY, BASE, CORPUS, MEASURED, NAMES, ROUND, SCALES_SEED, WORLDS, World, attempt

import secagg
from secagg import Project, Receipt, Update
from secagg.errors import SecAggError
from secagg.trust.failures import Failures


class Reader:
    """All parsers, and what comes behind them; files are made in `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._sites = {
            (scheme, project): world.site(project=project)
            for scheme, world in WORLDS.items()
            for project in (False, True)
        }
        scales = Update.from_bytes((CORPUS / "parsers" / SCALES_SEED).read_bytes())
        self._updates = {scheme: world.updates(scales)[1:] for scheme, world in WORLDS.items()}
        measured = WORLDS["measured"]
        self._calibrations = [
            measured.site(name).calibrate(measured.state, 1.0, ROUND, base=BASE) for name in NAMES[1:]
        ]

    def __call__(self, data: bytes) -> None:
        for read in (self._container, self._project, self._receipt, self._key):
            with suppress(SecAggError):
                read(data)

    def _container(self, data: bytes) -> None:
        update = Update.from_bytes(data)
        self._use(update, data)
        if len(data) % 8 == 0:  # a file is slower, and nearly the same
            path = self._write(data)
            with Update.open(path) as opened:
                self._use(opened, data)
            with suppress(SecAggError), Update.open(path) as opened:
                os.truncate(path, len(data) // 2)
                attempt(opened.digest)
                attempt(lambda: list(opened.frames()))

    def _use(self, update: Update, data: bytes) -> None:
        header = update.header
        assert header.nbytes == update.nbytes == len(data)
        assert secagg.Header.from_head(header.head) == header
        assert update.to_bytes() == data == b"".join(map(bytes, update.chunks()))
        assert repr(update)
        attempt(lambda: update.next_base)
        attempt(lambda: update.tail)
        attempt(lambda: all(header.of(item).head for item in header.contributions))
        attempt(lambda: sum(len(payload) for _, payload in update.frames()))
        for scheme, world in WORLDS.items():
            if header.params != world.config.params and scheme != "words":
                continue
            for project in (False, True):
                site = twin_of(self._sites[scheme, project])
                site._failures = Failures(world.key.server, None)
                attempt(lambda: site.decrypt(update))  # noqa: B023
                attempt(lambda: site.decrypt(update, world.state, round=ROUND, base=BASE))  # noqa: B023
                attempt(lambda: site.decrypt_model(update))  # noqa: B023
                attempt(lambda: site.decrypt_model(update, world.state))  # noqa: B023
                attempt(lambda: self._add(update, scheme, site, project))  # noqa: B023
                if scheme in MEASURED:
                    attempt(lambda: self._begin(update, world, site))  # noqa: B023
                    attempt(lambda: self._calibrate(update, world, site, project))  # noqa: B023

    def _add(self, update: Update, scheme: str, site: secagg.Client, project: bool) -> None:
        """What the aggregator takes, it adds; the aggregate is one that sites read, or refuse."""
        aggregator = WORLDS[scheme].aggregator(project=project)
        aggregator.admit(update.header)
        aggregator.add(update, lambda: None)
        assert aggregator.sites == update.header.sites
        for other in self._updates[scheme]:
            attempt(lambda: aggregator.add(other))  # noqa: B023
        if len(aggregator.sites) > 1:
            aggregate = Update.from_bytes(aggregator.finish().to_bytes())
            attempt(lambda: site.decrypt(aggregate))

    def _begin(self, given: Update, world: World, site: secagg.Client) -> None:
        """What a site takes as scales, or as what they follow from, it encrypts under."""
        site.restore_carry(b"")
        round, base = (ROUND, BASE) if world.precision == "auto" else (given.round + 1, given.next_base)
        made = site.encrypt(world.state, round=round, base=base, calibration=given)
        assert (made.header.calibration == given.digest()) == (world.precision == "auto")

    def _calibrate(self, calibration: Update, world: World, site: secagg.Client, project: bool) -> None:
        """What the aggregator takes as a calibration, it adds; the scales are such as sites read, or refuse."""
        aggregator = world.aggregator(project=project, kind="calibration")
        aggregator.add(calibration)
        for other in self._calibrations:
            attempt(lambda: aggregator.add(other))  # noqa: B023
        attempt(lambda: self._begin(aggregator.finish(), world, site))

    def _project(self, data: bytes) -> None:
        project = Project.from_bytes(data)
        assert Project.load(self._write(data)) == project
        attempt(project.check_time)
        attempt(lambda: [project.site(member.name) for member in project.sites])
        for world in WORLDS.values():
            attempt(lambda: world.project.successor(data))  # noqa: B023
            attempt(lambda: secagg.Aggregator(world.config, world.key.server, project=project))  # noqa: B023
        if project.authority == AUTHORITY.public:
            assert project.sign(AUTHORITY) == data

    def _receipt(self, data: bytes) -> None:
        receipt = Receipt.from_bytes(data)
        assert receipt.to_bytes() == data
        for scheme, (update, _) in self._updates.items():
            attempt(lambda: receipt.check(update, WORLDS[scheme].project))  # noqa: B023

    def _key(self, data: bytes) -> None:
        if data[:8] == b"SECAGG\r\n":
            key = secagg.load_key(self._write(data))
            assert repr(key)
            key.save(path := f"{self._folder}/key")
            assert Path(path).read_bytes() == data

    def _write(self, data: bytes) -> str:
        path = f"{self._folder}/input"
        Path(path).write_bytes(data)
        return path
