"""Sums of honest updates under another header: tags refuse them also where there is no project, and nobody signs.

The sites of another run, or of this one under its last configuration, share the key; a server has their updates. It
adds them up as they are, and says of the sum what the reader expects to hear: its round, base, manifest or scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from federation import LATTICE, TINY, VARIANTS, Federation, federate, is_symmetric, random_states
from signed import ROUND, Parts, combine

import secagg
from secagg.encryption import Encryption
from secagg.errors import DecryptionError
from secagg.trust.tags import Authenticator

#: With room for twice as much, to which sums are relabelled.
AGREED = {"min_clients": 2, "max_clients": 4, "max_abs": 0.5, "max_weight": 0.5}
WEIGHTS = [0.0625, 0.125, 0.1875]
BASE, MANIFEST = b"b" * 32, b"m" * 32


@dataclass
class Scene:
    """Updates of one round, base and configuration, which a server holds; nobody has signed them."""

    federation: Federation
    states: list
    updates: list[secagg.Update]

    @property
    def sum(self) -> Parts:
        return combine(self.federation, [(1, update) for update in self.updates])

    def encrypt(self, *bases: bytes, round: int = ROUND) -> list[secagg.Update]:
        sites = self.federation.sites(3)
        return [
            site.encrypt(state, weight, round, base=base)
            for site, state, weight, base in zip(sites, self.states, WEIGHTS, bases, strict=True)
        ]

    def under(self, **changes: Any) -> Federation:
        """The federation with the same key and other params."""
        config = self.federation.config
        return replace(self.federation, config=replace(config, params=replace(config.params, **changes)))


CASES = [("flashe", None)] + [
    (variant, seeded)
    for variant in LATTICE
    for seeded in (False, True)
    if not seeded or is_symmetric(VARIANTS[variant][0])
]


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=[f"{variant}-{seeded}" if seeded is not None else variant for variant, seeded in CASES],
)
def scene(request):
    variant, seeded = request.param
    exact = {"value_bits": 10}
    params = {"CKKS": TINY | {"seeded": seeded}, "BGV": exact | {"seeded": seeded}, "FLASHE": exact}
    federation = federate(variant, params, encrypt={"exclude": ["c"]}, **AGREED)
    made = Scene(federation, random_states(3, {"w": (50,), "c": (5,)}, largest=0.2), [])
    made.updates = made.encrypt(BASE, BASE, BASE)
    return made


@pytest.fixture
def looked(monkeypatch):
    """What was looked at: blocks that a library of a lattice was asked to decrypt, and values that were decoded."""
    found: list[str] = []

    def spy(owner: type, name: str) -> None:
        genuine = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: found.append(name) or genuine(*given))

    for backend in {secagg.backends.registry.load_backend(VARIANTS[variant][0]) for variant in LATTICE}:
        spy(backend, "decrypt")
    spy(Encryption, "_fault")
    return found


Attack = Callable[[Scene], tuple[Parts, Federation, dict[str, Any]]]


def another_base(scene):
    return scene.sum.but(base=bytes(32)), scene.federation, {"base": bytes(32)}


def another_base_unasked(scene):
    return scene.sum.but(base=bytes(32)), scene.federation, {}


def no_base(scene):
    return scene.sum.but(base=None), scene.federation, {}


def each_of_its_own_base(scene):
    """No aggregator adds them; a server that lies does."""
    terms = [(1, update) for update in scene.encrypt(BASE, bytes(32), bytes([1] * 32))]
    return combine(scene.federation, terms).but(base=BASE), scene.federation, {"base": BASE}


def another_manifest(scene):
    return scene.sum.but(manifest=MANIFEST), scene.federation, {"base": BASE}


def another_round(scene):
    return scene.sum.but(round=ROUND + 1), scene.federation, {"round": ROUND + 1}


def _agreed(scene, **changes):
    """As the reader's own configuration says, under the same key."""
    reader = scene.federation.but(**changes)
    return scene.sum.but(aggregation=reader.config.aggregation), reader, {"base": BASE}


def another_max_abs(scene):
    """The mean would be twice as large."""
    return _agreed(scene, max_abs=1.0)


def another_max_abs_of_one(scene):
    return _agreed(scene, max_abs={"default": 0.5, "w": 1.0})


def another_max_weight(scene):
    return _agreed(scene, max_weight=1.0)


def another_max_clients(scene):
    """Lanes are as wide for three."""
    return _agreed(scene, max_clients=3)


def _params(scene, **changes):
    reader = scene.under(**changes)
    return scene.sum.but(params=reader.config.params), reader, {"base": BASE}


def another_scale(scene):
    """Of CKKS the scale of its words; else whether values beyond `max_abs` were cut off."""
    params = scene.federation.config.params
    return _params(scene, **({"scale_bits": 19} if params.scheme == "CKKS" else {"overflow": "clip"}))


#: Other keywords of `decrypt` are as the site of the honest round has them.
ATTACKS: list[Attack] = [
    another_base,
    another_base_unasked,
    no_base,
    each_of_its_own_base,
    another_manifest,
    another_round,
    another_max_abs,
    another_max_abs_of_one,
    another_max_weight,
    another_max_clients,
    another_scale,
]


def test_what_they_all_begin_from(scene, looked):
    mean = scene.federation.site().decrypt(scene.sum.build(), round=ROUND, base=BASE)
    assert looked  # by the spies
    scene.federation.assert_mean(mean, scene.states, WEIGHTS)


@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_updates_under_another_header(scene, attack, looked):
    """One error for all, before a library decrypts a word or a value is looked at, and it counts."""
    parts, reader, asked = attack(scene)
    site = reader.site()
    for failures in (1, 2):
        with pytest.raises(DecryptionError) as caught:
            site.decrypt(parts.build(), **{"round": ROUND} | asked)
        assert caught.value.args == DecryptionError().args
        assert site._failures._here == failures
    assert not looked


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack is not another_round])
def test_it_is_the_tags_that_tell(scene, attack, monkeypatch):
    """Without them, these sums look like any other; of another round, FLASHE's pads would tell."""
    parts, reader, asked = attack(scene)
    monkeypatch.setattr(Authenticator, "fits", lambda *_: True)
    reader.site().decrypt(parts.build(), **{"round": ROUND} | asked)
