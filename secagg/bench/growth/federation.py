"""A federation of any number of sites, as its provisioner would list it: to ask the code what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...config import Config
from ...scheme import aggregation
from ...setup.sizes import header
from ...trust.identity import Identity
from ...trust.parties import Party
from ...trust.project import Project
from ...wire.header import MAX_SITE_LENGTH, NONCE_NBYTES, Contribution, Header
from ...wire.layout import Layout
from ..settings import SETTINGS
from .model import empty_model


def config_of(setting: str, sites: int) -> Config:
    """Return the configuration of so many sites, or of the most that one can name."""
    return SETTINGS[setting].config(min(sites, aggregation.MAX_CLIENTS))


def project_of(setting: str, parameters: int, sites: int, known: Sequence[Identity] = ()) -> Project:
    """Return a manifest of so many sites, whose names are as long as any; the first ones are `known`."""
    config = config_of(setting, sites)
    keys = [identity.public for identity in known] + [_number(number) for number in range(len(known), sites)]
    return Project(
        name="growth",
        serial=1,
        issued=0,
        expires=1 << 40,
        config=config,
        epoch=0,
        key="0" * 64,
        authority=bytes(32),
        server=Party("server", b"\xff" * 32, "f" * 64),
        sites=tuple(Party(long_name(number), public, _number(number).hex()) for number, public in enumerate(keys)),
        layout=Layout.of(empty_model(parameters), config),
    )


def sum_of(setting: str, parameters: int, sites: int) -> Header:
    """Return the header of an aggregate that lists so many sites, whose names are as long as any."""
    config = config_of(setting, sites)
    one = header("aggregate", 1, config, Layout.of(empty_model(parameters), config))
    listed = tuple(Contribution(long_name(number), _number(number)) for number in range(sites))
    return replace(one, contributions=listed)


def long_name(number: int) -> str:
    """Return a name of a site, of the most characters."""
    return f"site-{number}".ljust(MAX_SITE_LENGTH, "-")


def _number(number: int) -> bytes:
    return number.to_bytes(NONCE_NBYTES, "big")
