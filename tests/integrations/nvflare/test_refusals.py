"""What NVFlare's own HE lets through, or worse, and what else a client or the server may send: each is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nvflare_job import AGGREGATION, FLASHE, SITES, Server, Site, adds, first_model, params_of, reply_of
from provisioned import Federation

import secagg
from secagg.errors import (
    ConfigError,
    DuplicateError,
    FormatError,
    IdentityError,
    MismatchError,
    RoundMismatchError,
    SecAggError,
    SignatureError,
)
from secagg.trust import load_site_kit

Job = Callable[..., tuple[Server, list[Site]]]


def updated(site: Site, task: bytes, delta: float = 0.1) -> bytes:
    """Return a site's encrypted update."""
    update: bytes = params_of(site.train(task, adds({"layer.weight": delta})))["secagg.update"]
    return update


def sends(update: bytes) -> bytes:
    return reply_of({"secagg.update": update})


def unharmed(server: Server, sites: list[Site]) -> None:
    """A round whose refused results left nothing in the sum ends as it would have without them."""
    for site in sites:
        if site.name not in server.persistor.relay.sites:
            server.accept(site.name, site.train(server.task(), adds({"layer.weight": 0.1})))
    server.finish()
    model = {}
    sites[0].run(server.task(), lambda data: model.update(data["DXO"]["data"]) or data)
    assert model["layer.weight"] == pytest.approx(first_model()["layer.weight"] + 0.1, abs=1e-3)


@pytest.mark.parametrize(
    "params",
    [
        first_model(),
        {"layer.weight": first_model()["layer.weight"]},
        {"secagg.update": np.zeros(3, np.float32)},
        {"secagg.update": None},
        {"secagg.update": b""},
        {"secagg.update": "text"},
        {"misspelt.update": b"bytes"},
    ],
)
def test_plaintext_and_what_is_no_update(job: Job, params: dict[str, object]) -> None:
    server, sites = job()
    with pytest.raises(FormatError):
        server.accept("site-1", reply_of(params))
    unharmed(server, sites)


def test_plaintext_beside_an_update(job: Job) -> None:
    server, sites = job()
    update = updated(sites[0], server.task())
    with pytest.raises(FormatError, match="SecAggEncryptor"):
        server.accept("site-1", reply_of({"secagg.update": update, "layer.new": np.zeros(3, np.float32)}))
    unharmed(server, sites)


def test_truncated_and_mutated_ciphertext(job: Job) -> None:
    """A fault in the middle of a message leaves no half of it in the sum."""
    server, sites = job()
    update = updated(sites[0], server.task())
    for cut in (1, 10, len(update) // 2, len(update) - 1):
        with pytest.raises(SecAggError):
            server.accept("site-1", sends(update[:cut]))
    for at in np.linspace(0, len(update) - 1, 64, dtype=int):
        broken = bytearray(update)
        broken[at] ^= 1
        with pytest.raises(SecAggError):
            server.accept("site-1", sends(bytes(broken)))
    with pytest.raises(SecAggError):
        server.accept("site-1", sends(update + b"\0"))
    unharmed(server, sites)


def test_update_twice(job: Job) -> None:
    server, sites = job()
    update = updated(sites[0], server.task())
    server.accept("site-1", sends(update))
    with pytest.raises(DuplicateError):
        server.accept("site-1", sends(update))
    with pytest.raises(DuplicateError):  # another of the same round
        server.accept("site-1", sends(updated(sites[0], server.task())))
    unharmed(server, sites)


def test_update_of_an_earlier_round(job: Job) -> None:
    server, sites = job()
    update = updated(sites[0], server.task(), 0.0)
    server.accept("site-1", sends(update))
    server.accept("site-2", sends(updated(sites[1], server.task(), 0.0)))
    server.accept("site-3", sends(updated(sites[2], server.task(), 0.0)))
    server.finish()
    with pytest.raises(RoundMismatchError):
        server.accept("site-1", sends(update))
    unharmed(server, sites)


def test_update_of_another_run(job: Job, kits: Federation, tmp_path: Path) -> None:
    """The same model, key and round."""
    server, sites = job()
    other = Server(tmp_path / "other", kits["server"], first_model(), SITES)
    update = updated(Site(tmp_path / "of-other", "site-1", kits["site-1"]), other.task())
    with pytest.raises(MismatchError):
        server.accept("site-1", sends(update))
    unharmed(server, sites)


def test_update_of_another_site(job: Job) -> None:
    server, sites = job()
    update = updated(sites[1], server.task())
    with pytest.raises(IdentityError, match=r"site-1 has sent an update of 'site-2'"):
        server.accept("site-1", sends(update))
    server.accept("site-2", sends(update))
    unharmed(server, sites)


def test_update_under_another_name(job: Job) -> None:
    """Signed by a site that is not the one which the update names."""
    server, sites = job()
    forged = updated(sites[1], server.task()).replace(b"site-2", b"site-1")
    with pytest.raises(SecAggError):
        server.accept("site-1", sends(forged))
    unharmed(server, sites)


def test_update_without_a_signature(job: Job, kits: Federation) -> None:
    server, sites = job()
    kit, relay, model = load_site_kit(kits["site-1"]), server.persistor.relay, first_model()
    client = secagg.Client(kit.config, kit.key, "site-1")
    layout = secagg.Layout.of(model, kit.config).widened()
    update = client.encrypt(model, 1, relay.round, base=relay.base, layout=layout)
    with pytest.raises((SignatureError, MismatchError)):  # of no member of the project
        server.accept("site-1", sends(update.to_bytes()))
    unharmed(server, sites)


def test_update_under_another_key(job: Job, tmp_path: Path) -> None:
    """A wrong key gives −1.6e7 in silence there."""
    server, sites = job()
    other = Federation.make(tmp_path / "federation", sites=list(SITES), he=FLASHE, aggregation=AGGREGATION)
    theirs = Server(tmp_path / "their-server", other["server"], first_model(), SITES)
    site = Site(tmp_path / "their-site", "site-1", other["site-1"])
    update = updated(site, theirs.task())
    with pytest.raises((MismatchError, SignatureError)):
        server.accept("site-1", sends(update))
    reply = site.run(server.task(), lambda data: pytest.fail("it has trained for another federation"))
    assert reply.get_return_code() == "TASK_DATA_FILTER_ERROR"
    unharmed(server, sites)


def test_another_layout(job: Job, kits: Federation, tmp_path: Path) -> None:
    """A misspelt or new layer goes in plaintext there, and a bad shape leaves half a message in the sum."""
    server, sites = job()
    layers = first_model() | {"layer.new": np.zeros(3, np.float32)}
    other = Server(tmp_path / "other", kits["server"], layers, SITES)
    update = updated(Site(tmp_path / "of-other", "site-1", kits["site-1"]), other.task())
    with pytest.raises(SecAggError):
        server.accept("site-1", sends(update))
    unharmed(server, sites)


def test_a_model_that_nobody_asked_for(job: Job) -> None:
    """It would become that of all who come late."""
    server, sites = job()
    reply = params_of(sites[0].train(server.task(), adds({"layer.weight": 0.1})))
    server.accept("site-1", reply_of(reply | {"secagg.model": b"anything"}))
    unharmed(server, sites)
    assert not (server.folder / "model.secagg").exists()


def test_task_that_is_played_back(job: Job) -> None:
    """The server says again what it has said: the site trains no model twice."""
    server, sites = job()
    old = server.task()
    unharmed(server, sites)
    reply = sites[0].run(old, lambda data: pytest.fail("it has trained an earlier round"))
    assert reply.get_return_code() == "TASK_DATA_FILTER_ERROR"


def test_aggregate_that_was_changed(job: Job) -> None:
    server, sites = job()
    for site in sites:
        server.accept(site.name, site.train(server.task(), adds({})))
    server.finish()
    good = params_of(server.task())
    aggregate = good["secagg.blobs"]["aggregate-0"]
    for at in (len(aggregate) // 3, len(aggregate) - 20):
        broken = bytearray(aggregate)
        broken[at] ^= 1
        task = reply_of(good | {"secagg.blobs": good["secagg.blobs"] | {"aggregate-0": bytes(broken)}})
        reply = sites[0].run(task, lambda data: pytest.fail("it has trained what the server has made up"))
        assert reply.get_return_code() == "TASK_DATA_FILTER_ERROR"
    assert sites[0].train(server.task(), adds({}))


def test_aggregate_of_one_update(job: Job) -> None:
    """A "sum" of one site's update is that update."""
    server, sites = job()
    alone = updated(sites[0], server.task())
    server.accept("site-1", sends(alone))
    server.accept("site-2", sends(updated(sites[1], server.task())))
    server.finish()
    good = params_of(server.task())
    task = reply_of(good | {"secagg.blobs": good["secagg.blobs"] | {"aggregate-0": alone}})
    reply = sites[1].run(task, lambda data: pytest.fail("it has decrypted one site's update"))
    assert reply.get_return_code() == "TASK_DATA_FILTER_ERROR"


def test_first_models_that_differ(job: Job) -> None:
    """A site that was shown another first model begins elsewhere, and its update is refused."""
    server, sites = job()
    task = params_of(server.task())
    shown = task["secagg.first"] | {"layer.bias": np.ones(2, np.float32)}
    update = updated(sites[0], reply_of(task | {"secagg.first": shown}))
    with pytest.raises(MismatchError):
        server.accept("site-1", sends(update))


def test_precision_that_needs_two_exchanges(tmp_path: Path) -> None:
    he, aggregation = {"lib": "flashe", "config": {"value_bits": 16}}, {"min_clients": 2, "precision": "auto"}
    federation = Federation.make(tmp_path / "f", sites=list(SITES), he=he, aggregation=aggregation)
    with pytest.raises(ConfigError, match="previous"):
        Server(tmp_path / "server", federation["server"], first_model(), SITES)


def test_metrics_that_are_one_text(job: Job) -> None:
    """Its letters would be names of metrics that no script has, and none would travel."""
    with pytest.raises(ConfigError, match="give names"):
        job(metrics="auc")


def test_scales_that_come_from_the_round_before(tmp_path: Path) -> None:
    he, aggregation = {"lib": "flashe", "config": {"value_bits": 16}}, {"min_clients": 2, "precision": "previous"}
    federation = Federation.make(tmp_path / "f", sites=list(SITES), he=he, aggregation=aggregation)
    server = Server(tmp_path / "server", federation["server"], first_model(), SITES)
    sites = [Site(tmp_path / name, name, federation[name]) for name in SITES]
    for _ in range(3):  # the first only measures
        for site in sites:
            server.accept(site.name, site.train(server.task(), adds({"layer.weight": 0.1, "layer.bias": -0.2})))
        server.finish()
    model: dict[str, np.ndarray] = {}
    sites[0].run(server.task(), lambda data: model.update(data["DXO"]["data"]) or data)
    assert model["layer.weight"] == pytest.approx(first_model()["layer.weight"] + 0.2, abs=1e-3)
