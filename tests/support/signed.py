"""A federation whose parties sign: identities, a project that lists them, and aggregates of a server that lies.

The server here knows the wire format, the server key, every update and its own signing key. It makes every digest
right, and has no secret of the sites.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from federation import Federation, State

import secagg
from secagg.scheme.ring import CLEAR_RING, Ring
from secagg.scheme.scales import Scales, one_hot
from secagg.trust.project import Party
from secagg.trust.tags import tag_moduli
from secagg.wire.container import frame_digest
from secagg.wire.header import SUMS, Header
from secagg.wire.tail import Proof, Tail, add_tags, body_digest
from secagg.wire.update import UpdateWriter

ROUND = 4
DAY = 86_400


@dataclass(frozen=True)
class Signed:
    """A federation, who takes part in it, and what each of them signs with."""

    federation: Federation
    authority: secagg.Identity
    server: secagg.Identity
    identities: Mapping[str, secagg.Identity]
    project: secagg.Project

    @property
    def config(self) -> secagg.Config:
        return self.federation.config

    @property
    def names(self) -> list[str]:
        return list(self.identities)

    def site(self, name: str = "site-1", **changes: Any) -> secagg.Client:
        """A site with its identity and the project; `changes` go to the constructor."""
        arguments = {"identity": self.identities[name], "project": self.project} | changes
        return secagg.Client(self.config, self.federation.keys.client, name, **arguments)

    def aggregator(self, round: int = ROUND, **changes: Any) -> secagg.Aggregator:
        arguments = {"project": self.project} | changes
        return secagg.Aggregator(self.config, self.federation.keys.server, round, **arguments)

    def encrypt(
        self,
        states: Sequence[State],
        weights: Sequence[float] | None = None,
        round: int = ROUND,
        base: bytes | None = None,
    ) -> list[secagg.Update]:
        """The update of each site, as the server reads it; where scales are measured, under those of these values."""
        weights = weights or [1.0] * len(states)
        scales = self.scales(states, weights, round, base)
        updates = []
        for name, state, weight in zip(self.names, states, weights, strict=False):
            site = self.site(name)
            if scales is not None:
                site.restore_carry(b"")
            updates.append(site.encrypt(state, weight, round, base=base, calibration=scales))
        return updates

    def calibrate(
        self, states: Sequence[State], weights: Sequence[float], round: int = ROUND, base: bytes | None = None
    ) -> list[secagg.Update]:
        """The calibration of each site, as the server reads it."""
        return [
            self.site(name).calibrate(state, weight, round, base=base)
            for name, state, weight in zip(self.names, states, weights, strict=False)
        ]

    def scales(
        self, states: Sequence[State], weights: Sequence[float], round: int = ROUND, base: bytes | None = None
    ) -> secagg.Update | Scales | None:
        """What updates of a round are encrypted under, where scales are measured: as if values were always these."""
        precision = self.federation.precision
        if precision == "auto":
            return self.add(self.calibrate(states, weights, round, base))
        if precision == "fixed":
            return None
        names = [spec.name for spec in secagg.Layout.of(states[0], self.config).sent]
        parts = list(zip(states, weights, strict=True))
        largest = [max(weight * np.abs(state[name]).max() for state, weight in parts) for name in names]
        return Scales.unknown(len(names)).following(one_hot(largest))

    def add(self, updates: Sequence[secagg.Update], **changes: Any) -> secagg.Update:
        """The sum of updates, or of calibrations, of one round."""
        header = updates[0].header
        aggregator = self.aggregator(header.round, **{"kind": header.kind, **changes})
        for update in updates:
            aggregator.add(update)
        return secagg.Update.from_bytes(aggregator.finish().to_bytes())

    def reissue(self, **changes: Any) -> secagg.Project:
        """The next manifest of the project, read from its signed form."""
        return secagg.Project.from_bytes(replace(self.project.successor_of(), **changes).sign(self.authority))

    def without(self, *names: str) -> secagg.Project:
        """The next manifest, with sites revoked."""
        sites = [replace(member, revoked=member.revoked or member.name in names) for member in self.project.sites]
        return self.reissue(sites=tuple(sites))


def sign_federation(federation: Federation, count: int = 3, **fields: Any) -> Signed:
    """Give a server and `count` sites identities, and sign a project of them; `fields` are other fields of it."""
    authority, server, *others = identities(count + 2)
    sites = {f"site-{number}": identity for number, identity in enumerate(others, 1)}
    now, key = int(time.time()), federation.keys.server
    project = secagg.Project(
        **{
            "name": "project",
            "serial": 0,
            "issued": now - DAY,
            "expires": now + DAY,
            "config": federation.config,
            "epoch": key.epoch,
            "key": key.fingerprint,
            "authority": authority.public,
            "server": member("server", server),
            "sites": tuple(itertools.starmap(member, sites.items())),
            **fields,
        }
    )
    return Signed(federation, authority, server, sites, secagg.Project.from_bytes(project.sign(authority)))


@cache
def identities(count: int) -> tuple[secagg.Identity, ...]:
    return tuple(secagg.Identity.generate() for _ in range(count))


def member(name: str, identity: secagg.Identity) -> Party:
    return Party(name, identity.public, identity.public[::-1].hex())  # no certificate, but one of its own


# The server's craft: updates taken apart, and put together as it likes.


@dataclass
class Parts:
    """An update or aggregate taken apart: change anything, and `build` makes all digests right."""

    header: Header
    payloads: list[bytes]
    tags: tuple[int, ...]
    proofs: tuple[Proof, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, update: secagg.Update) -> Parts:
        payloads = [bytes(payload) for _, payload in update.frames()]
        return cls(update.header, payloads, update.tail.tags, update.tail.proofs)

    def under(self, *updates: secagg.Update) -> Parts:
        """The same sum under the list of other updates."""
        contributions = tuple(update.header.contributions[0] for update in updates)
        header = replace(self.header, kind=SUMS.get(self.header.kind, self.header.kind), contributions=contributions)
        return replace(self, header=header, proofs=tuple(update.tail.proofs[0] for update in updates))

    def but(self, **fields: Any) -> Parts:
        """The same under another header."""
        return replace(self, header=replace(self.header, **fields))

    def to_bytes(self) -> bytes:
        stream = BytesIO()
        writer = UpdateWriter(stream, self.header)
        for frame, payload in zip(self.header.frames, self.payloads, strict=True):
            writer.write(frame, memoryview(payload))
        stream.write(Tail(self.tags, self.proofs).pack(self.header.head, len(self.payloads)))
        return stream.getvalue()

    def build(self) -> secagg.Update:
        return secagg.Update.from_bytes(self.to_bytes())

    def body(self) -> bytes:
        """The digest of the body, as an update or model must have it."""
        head = self.header.head
        digests = [frame_digest(head, index, payload) for index, payload in enumerate(self.payloads)]
        return body_digest(head, digests)

    def sealed(self, signature: bytes | None = None) -> secagg.Update:
        """An update or model whose body digest is right, too; with the signature that it had, or another."""
        proof = Proof(self.body(), self.proofs[0].signature if signature is None else signature)
        return replace(self, proofs=(proof,)).build()


def combine(federation: Federation, terms: Sequence[tuple[int, secagg.Update]]) -> Parts:
    """Each update so many times, words and tags; it lists all of them once. A factor of 0 lists, and does not add."""
    listed = [update for _, update in terms]
    parts = Parts.of(listed[0]).under(*listed)
    totals = [np.zeros(len(payload), np.uint8) for payload in parts.payloads]
    moduli = tag_moduli(federation.keys.server)
    tags = (0,) * len(moduli)
    for factor, update in terms:
        for _ in range(factor):
            for frame, payload in update.frames():
                ring_of(federation, frame.section).add(totals[frame.index], np.frombuffer(payload, np.uint8))
            tags = add_tags(tags, update.tail.tags, moduli)
    return replace(parts, payloads=[total.tobytes() for total in totals], tags=tags)


def ring_of(federation: Federation, section: str) -> Ring:
    if section == "clear":
        return CLEAR_RING
    return Ring.of_update(federation.config.params, federation.keys.server.primes)


def add_constant(federation: Federation, payload: bytes, section: str, block: int, number: int) -> bytes:
    """Add a number to every value of a block without a key.

    Of a lattice that is a constant polynomial, every word of which is the number, on c0 alone.
    """
    ring = ring_of(federation, section)
    words = ring.from_bytes(memoryview(payload)).reshape(-1, len(ring.moduli), ring.degree)
    seeded = getattr(federation.config.params, "seeded", True) or section == "clear"
    for row, modulus in enumerate(ring.moduli[: None if seeded else len(ring.moduli) // 2]):
        total = words[block, row].astype(object) + number
        words[block, row] = (total % modulus).astype(np.uint64)
    return ring.to_bytes(words.reshape(-1)).tobytes()
