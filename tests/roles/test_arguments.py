"""What a caller gives: numbers of any library, and what is no update; a typed error says what to pass."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation import VARIANTS, federate

import secagg
from secagg.errors import (
    ConfigError,
    FormatError,
    LayoutError,
    MismatchError,
    RangeError,
    RoundMismatchError,
    StateError,
)
from secagg.protocol.messages import Chunk, DownloadRequest
from secagg.site import GlobalModel, Session
from secagg.trust.key import ClientKey
from secagg.wire.header import check_epoch, check_round

STATE = {"w": np.linspace(-1, 1, 50, dtype=np.float32)}
BASE = bytes(range(32))

WHOLE = {
    "int": 3,
    "int64": np.int64(3),
    "uint8": np.uint8(3),
    "array": np.array(3),
    "torch": torch.tensor(3),
    "index": type("Three", (), {"__index__": lambda self: 3})(),
}
NOT_WHOLE = {
    "bool": True,
    "numpy bool": np.True_,
    "torch bool": torch.tensor(True),
    "float": 3.0,
    "numpy float": np.float32(3),
    "text": "3",
    "none": None,
    "negative": np.int64(-1),
    "too large": np.uint64(2**63),
    "several": np.array([3, 3]),
    "many": torch.tensor([3, 3]),
}


@pytest.mark.parametrize("number", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_of_any_library(number: object, tmp_path: Path) -> None:
    for check in (check_round, check_epoch):
        assert type(check(number)) is int
        assert check(number) == 3
    federation = federate("flashe")
    site = federation.site()
    updates = [other.encrypt(STATE, round=number) for other in federation.sites(2)]
    aggregator = federation.aggregator(number)
    for update in updates:
        assert type(update.round) is int
        aggregator.add(secagg.Update.from_bytes(update.to_bytes()))
    aggregate = aggregator.finish()
    assert site.decrypt(aggregate, round=number)
    with pytest.raises(RoundMismatchError):
        site.decrypt(aggregate, round=4)
    site.encrypt_to(tmp_path / "update", STATE, round=number)
    site.encrypt_model(tmp_path / "model", STATE, round=number, base=BASE)
    for name in ("update", "model"):
        with secagg.Update.open(tmp_path / name) as opened:
            assert opened.round == 3
    model = GlobalModel(site, STATE, round=number, base=BASE)
    assert type(model.round) is int
    assert GlobalModel.from_bytes(site, model.to_bytes()).round == 3
    key = secagg.generate_keys(federation.config, number).server
    assert type(key.epoch) is int
    one = federation.keys.client
    again = ClientKey(one.params, one.secret_material(), one._root, number)
    again.save(tmp_path / "key")
    assert secagg.load_key(tmp_path / "key").fingerprint == again.fingerprint


class Stored:
    """A link to a server that has one aggregate and one model."""

    def __init__(self, *updates: secagg.Update) -> None:
        self.updates = {update.header.kind: update for update in updates}
        self.rounds: list[object] = []

    def download(self, request: DownloadRequest, seconds: float) -> Iterator[Chunk]:
        self.rounds.append(request.round)
        for chunk in self.updates[request.kind].chunks():
            yield Chunk(bytes(chunk))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("number", WHOLE.values(), ids=WHOLE)
def test_a_session_takes_them_too(number: object, tmp_path: Path) -> None:
    federation = federate("flashe")
    aggregator = federation.aggregator(3)
    for site in federation.sites(2):
        aggregator.add(site.encrypt(STATE, round=3))
    stream = io.BytesIO()
    federation.site().encrypt_model(stream, STATE, round=3, base=BASE)
    link = Stored(aggregator.finish(), secagg.Update.from_bytes(stream.getvalue()))
    with Session(link, "site-1") as session:  # type: ignore[arg-type]
        session.download(number, tmp_path / "aggregate").close()  # type: ignore[arg-type]
        session.load_model(tmp_path / "model", number).close()  # type: ignore[arg-type]
        assert [type(round) for round in link.rounds] == [int, int]
        with pytest.raises(ConfigError, match="round is True"):
            session.download(True, tmp_path / "aggregate")
        with pytest.raises(ConfigError, match="round is -1"):
            session.load_model(tmp_path / "model", -1)


@pytest.mark.parametrize("number", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_is_no_whole_number(number: object) -> None:
    federation = federate("flashe")
    aggregate = federation.sum([STATE, STATE])
    for use in (
        lambda: federation.aggregator(number),
        lambda: federation.site().encrypt(STATE, round=number),
        lambda: GlobalModel(federation.site(), STATE, round=number, base=BASE),
    ):
        with pytest.raises(ConfigError, match="round is "):
            use()
    if number is not None:  # that means: any
        with pytest.raises(ConfigError, match="round is "):
            federation.site().decrypt(aggregate, round=number)
    with pytest.raises(ConfigError, match="epoch is "):
        secagg.generate_keys(federation.config, number)


@pytest.mark.parametrize("weight", [np.int64(1), np.uint8(1), np.float32(1), np.float64(1)], ids=lambda w: str(w.dtype))
def test_weights_of_numpy(weight: object) -> None:
    federation = federate("flashe")
    states = [STATE, {"w": -STATE["w"]}]
    federation.assert_mean(federation.site().decrypt(federation.sum(states, [weight, weight])), states)
    with pytest.raises(RangeError):
        federation.site().encrypt(STATE, np.float64("nan"))


# What an aggregate is held against, and an aggregator fixed to.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"own": "x"}, "the nonce of an update is 'x'; give 32 bytes"),
        ({"own": bytes(31)}, "the nonce of an update is "),
        ({"own": STATE}, "the nonce of an update is "),
        ({"base": "x"}, "base is 'x'; give 32 bytes"),
        ({"base": b""}, "base is b''"),
        ({"base": bytearray(BASE)}, "base is bytearray"),
        ({"receipt": "abc"}, "receipt is 'abc'; give a Receipt"),
        ({"receipt": bytes(128)}, r"receipt is .*Receipt\.from_bytes"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_no_fault_of_the_server(given: dict[str, object], message: str) -> None:
    federation = federate("flashe")
    with pytest.raises(ConfigError, match=message):
        federation.site().decrypt(federation.sum([STATE, STATE]), **given)


@pytest.mark.parametrize("layout", [STATE, [], "w", b""], ids=lambda layout: type(layout).__name__)
def test_an_aggregator_of_no_layout(layout: object) -> None:
    federation = federate("flashe")
    with pytest.raises(LayoutError, match=rf"layout is a {type(layout).__name__}; give what Client\.layout\(state\)"):
        secagg.Aggregator(federation.config, federation.keys.server, layout=layout)


@pytest.mark.parametrize("base", ["zz", b"", bytes(31), 0], ids=repr)
def test_an_aggregator_of_no_base(base: object) -> None:
    federation = federate("flashe")
    with pytest.raises(ConfigError, match="base is .*; give 32 bytes"):
        secagg.Aggregator(federation.config, federation.keys.server, base=base)


def test_the_base_of_a_state_that_lacks_a_tensor() -> None:
    layout = secagg.Layout.of({**STATE, "b": np.ones(3)})
    with pytest.raises(LayoutError, match=r"tensor 'b' \(float64\[3\] encrypted\) is missing"):
        layout.base(STATE)


# An update says whose it is.


def test_what_an_update_is_of(tmp_path: Path) -> None:
    federation = federate("flashe")
    site = federation.site("site-7")
    update = site.encrypt(STATE, round=5)
    assert (update.site, update.round) == ("site-7", 5)
    assert update.nonce == update.header.contributions[0].nonce
    assert len(update.nonce) == 32
    site.encrypt_model(tmp_path / "model", STATE, round=6)
    with secagg.Update.open(tmp_path / "model") as model:
        assert (model.site, model.round, len(model.nonce)) == ("site-7", 6, 32)
    aggregate = federation.sum([STATE, STATE])
    assert aggregate.round == 0
    for name in ("site", "nonce"):
        with pytest.raises(StateError, match=rf"a sum has more than one {name}: see its header\.contributions"):
            getattr(aggregate, name)


# What is no update


def no_updates() -> dict[str, tuple[object, str]]:
    update = federate("flashe").site().encrypt(STATE)
    return {
        "tensors": (STATE, r"got dict: tensors must be encrypted first, by Client\.encrypt\(state"),
        "no tensors": ({}, "got dict: tensors must be encrypted first"),
        "a module's state": (torch.nn.Linear(2, 2).state_dict(), "got OrderedDict: tensors must be encrypted first"),
        "a tensor": (STATE["w"], r"got ndarray: pass what Client\.encrypt"),
        "bytes": (update.to_bytes(), r"got bytes: pass Update\.from_bytes"),
        "bytearray": (bytearray(update.to_bytes()), r"got bytearray: pass Update\.from_bytes"),
        "memoryview": (memoryview(update.to_bytes()), r"got memoryview: pass Update\.from_bytes"),
        "nothing": (None, r"got NoneType: pass what Client\.encrypt"),
        "text": ("update.secagg", r"got str: pass Update\.open"),
        "path": (Path("update.secagg"), r"got \w*Path: pass Update\.open"),
        "stream": (io.BytesIO(update.to_bytes()), r"got BytesIO: pass Update\.open"),
        "header": (update.header, "got Header: a header alone has no frames"),
        "layout": (update.header.layout, r"got Layout: pass what Client\.encrypt"),
        "list of updates": ([update], r"got list: pass what Client\.encrypt"),
    }


NO_UPDATES = no_updates()


@pytest.mark.parametrize(("value", "message"), NO_UPDATES.values(), ids=NO_UPDATES)
def test_what_is_no_update(value: object, message: str) -> None:
    federation = federate("flashe")
    site = federation.site()
    states = [STATE, {"w": -STATE["w"]}, STATE]
    aggregator = federation.aggregator()
    model = GlobalModel(site, STATE)
    for other, state in zip(federation.sites(3), states, strict=True):
        with pytest.raises(FormatError, match=message):
            aggregator.add(value)  # type: ignore[arg-type]
        aggregator.add(other.encrypt(state))
    for use in (site.decrypt, site.decrypt_model, model.apply, model.load_model):
        with pytest.raises(FormatError, match=message):
            use(value)  # type: ignore[operator]
    assert (model.round, model.base) == (0, site.base(STATE))
    federation.assert_mean(site.decrypt(aggregator.finish()), states)  # what was refused has changed nothing


@pytest.mark.parametrize("value", [{}, b"", None, "header", STATE], ids=repr)
def test_what_is_no_header(value: object) -> None:
    federation = federate("flashe")
    aggregator, update = federation.aggregator(), federation.site().encrypt(STATE)
    for given in (value, update):
        with pytest.raises(FormatError, match=f"got {type(given).__name__}: pass the header of an Update"):
            aggregator.admit(given)  # type: ignore[arg-type]
    aggregator.admit(update.header)


# What differs is said in one line.


def test_mixed_libraries_must_agree_on_seeds() -> None:
    """pyfhel knows no seeds: where one site uses it, the others must not either."""
    seeded, whole = federate("tenseal"), federate("pyfhel")
    assert seeded.config.params.seeded
    assert not whole.config.params.seeded
    update = secagg.Client(whole.config, seeded.keys.client, "site-1").encrypt(STATE)
    with pytest.raises(MismatchError) as caught:
        seeded.aggregator().add(update)
    assert str(caught.value) == (
        "the update from site-1 has other params: seeded False, expected True; pyfhel knows no seeds: where one site "
        "uses it, set `seeded: false` for all sites"
    )
    alike = replace(seeded.config, params=replace(seeded.config.params, seeded=False))
    secagg.Aggregator(alike, seeded.keys.server).add(update)  # what it says helps


@pytest.mark.parametrize("variant", VARIANTS)
def test_params_that_differ_are_named_and_no_others(variant: str) -> None:
    federation = federate(variant)
    params = federation.config.params.to_dict()
    change = {"value_bits": params["value_bits"] - 1} if "value_bits" in params else {"scale_bits": 19}
    other = replace(federation.config, params=replace(federation.config.params, **change))
    update = secagg.Client(other, federation.keys.client, "site-1").encrypt(STATE)
    (name, value), *_ = change.items()
    with pytest.raises(MismatchError, match=f"has other params: {name} {value}, expected {params[name]}$"):
        federation.aggregator().add(update)
