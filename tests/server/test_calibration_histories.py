"""Random histories of rounds that begin with a calibration: what was acknowledged is in its sum, whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrating import CONFIG
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import secagg
from secagg.errors import DuplicateError, RoundMismatchError
from secagg.protocol import DownloadRequest, SkipRequest
from secagg.protocol.chunks import chunks_from
from secagg.server import Federation, open_round

SITES = ("site-1", "site-2", "site-3")
STATE = {"w": np.linspace(-1, 1, 20, dtype=np.float32)}
TIMEOUT = 100.0

_CONFIG = secagg.Config.from_dict(CONFIG)
_KEYS = secagg.generate_keys(_CONFIG)


class Clock:
    """In place of the module `time` in the open round."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Here:
    def is_active(self) -> bool:
        return False  # nobody waits

    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")


class Histories(RuleBasedStateMachine):
    """The model: what was acknowledged, by rounds and stages."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patch.setattr(open_round, "time", self.clock)
        self.folder = Path(tempfile.mkdtemp())
        self.clients = {name: secagg.Client(_CONFIG, _KEYS.client, name) for name in SITES}
        self.acknowledged: dict[tuple[int, str], dict[str, bytes]] = {}
        self.sent: dict[tuple[int, str], list[secagg.Update]] = {}
        self.digests: dict[Path, bytes] = {}
        self.start()

    def teardown(self) -> None:
        self.server.close()
        self.patch.undo()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        self.server = Federation(_CONFIG, _KEYS.server, self.folder, round_timeout=TIMEOUT, certified=False)

    def settle(self) -> None:
        """What the thread of `OpenRound.watch` does; here there is none."""
        for step in (self.server._round._settle, self.server._round._clear):
            with self.server._round._adding:
                step()

    def call(self, name: str, *arguments: Any) -> Any:
        with self.server.call((), Here(), "here") as call:
            reply = getattr(call, name)(*arguments)
            return b"".join(bytes(chunk.data) for chunk in reply) if name == "download" else reply

    @property
    def at(self) -> tuple[int, str]:
        status = self.server.status()
        return status.round, status.stage

    def made(self, name: str) -> secagg.Update:
        round, stage = self.at
        if stage == "calibration":
            return self.clients[name].calibrate(STATE, round=round)
        with secagg.Update.open(self.folder / f"scales-{round}.secagg") as scales:
            self.clients[name].restore_carry(b"")
            return self.clients[name].encrypt(STATE, round=round, calibration=scales)

    def send(self, update: secagg.Update) -> None:
        header = update.header
        reply = self.call("upload", chunks_from(update, 0))
        own = self.acknowledged.setdefault((header.round, header.kind), {})
        assert reply.already_added == (own.get(header.site) == header.contributions[0].nonce)
        own[header.site] = header.contributions[0].nonce
        self.settle()

    @rule(name=st.sampled_from(SITES))
    def join(self, name: str) -> None:
        assert self.call("join", name).round == self.at[0]

    @rule(name=st.sampled_from(SITES))
    def skip(self, name: str) -> None:
        round, stage = self.at
        try:
            self.call("skip", SkipRequest(name, round))
        except DuplicateError:
            assert stage == "update"
            assert name in self.acknowledged[round, stage]
        self.settle()

    @rule(name=st.sampled_from(SITES))
    def upload(self, name: str) -> None:
        at, update = self.at, self.made(name)
        self.sent.setdefault(at, []).append(update)
        if name in self.acknowledged.get(at, {}):
            with pytest.raises(DuplicateError):
                self.send(update)
        else:
            self.send(update)

    @rule(name=st.sampled_from(SITES))
    def begin_an_upload(self, name: str) -> None:
        at, update = self.at, self.made(name)
        self.sent.setdefault(at, []).append(update)
        with suppress(DuplicateError):
            assert not self.call("resume", update.header.head).already_added

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def upload_again(self, data: st.DataObject) -> None:
        """What was sent once, or begun, at any time before."""
        at = data.draw(st.sampled_from(sorted(self.sent)))
        update = data.draw(st.sampled_from(self.sent[at]))
        name, nonce = update.header.site, update.header.contributions[0].nonce
        known = self.acknowledged.get(at, {}).get(name)
        try:
            self.send(update)
        except DuplicateError:
            assert at == self.at
            assert known not in (None, nonce)
        except RoundMismatchError:
            assert at != self.at
            assert known != nonce or at[0] < self.at[0] - 2

    @rule()
    def the_round_times_out(self) -> None:
        self.clock.now += TIMEOUT
        self.settle()

    @rule()
    def the_server_is_killed(self) -> None:
        before = self.server.status()
        self.server.close()
        self.start()
        after = self.server.status()
        for what in ("round", "stage", "attempt", "added", "aggregates"):
            assert getattr(after, what) == getattr(before, what)
        assert {*after.waiting_for, *after.skipped} >= {*before.waiting_for, *before.skipped} - {*before.added}
        self.settle()

    @precondition(lambda self: (self.folder / "roster.json").exists())
    @rule(name=st.sampled_from(SITES))
    def the_server_is_killed_before_it_has_written_the_roster(self, name: str) -> None:
        roster = (self.folder / "roster.json").read_bytes()
        self.upload(name)
        before = self.server.status()
        self.server.close()
        (self.folder / "roster.json").write_bytes(roster)
        self.start()
        after = self.server.status()
        for what in ("round", "stage", "added", "aggregates"):
            assert getattr(after, what) == getattr(before, what)
        self.settle()

    @invariant()
    def what_was_acknowledged_is_in_its_sum(self) -> None:
        status = self.server.status()
        assert list(status.added) == sorted(self.acknowledged.get((status.round, status.stage), {}))
        rounds = [*status.aggregates, *([status.round] if status.stage == "update" else [])]
        kept = [("scales", "calibration", round) for round in rounds]
        kept += [("aggregate", "update", round) for round in status.aggregates]
        assert len(list(self.folder.glob("*-*.secagg"))) == len(kept)
        for kind, stage, round in kept:
            path = self.folder / f"{kind}-{round}.secagg"
            with secagg.Update.open(path) as summed:
                listed = {item.site: item.nonce for item in summed.header.contributions}
                assert listed == self.acknowledged[round, stage]
                assert self.digests.setdefault(path, summed.digest()) == summed.digest()
                if kind == "aggregate":
                    assert summed.header.calibration == self.digests[self.folder / f"scales-{round}.secagg"]
                    assert np.abs(self.clients["site-1"].decrypt(summed)["w"] - STATE["w"]).max() < 0.05
            assert self.call("download", DownloadRequest(kind, round)) == path.read_bytes()

    @invariant()
    def nothing_else_is_there(self) -> None:
        round, _ = self.at
        for name in self.folder.glob("round-*"):
            assert name.name == f"round-{round}"
        assert not list(self.folder.rglob("*.refused"))


Histories.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistories = Histories.TestCase
