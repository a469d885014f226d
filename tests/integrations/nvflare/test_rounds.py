"""Rounds of a job: sums, who comes late or misses some, and what is due over rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from nvflare.fuel.utils import fobs
from nvflare_job import AGGREGATION, SITES, Server, Site, adds, first_model, params_of
from provisioned import Federation

from secagg.errors import QuorumError

Job = Callable[..., tuple[Server, list[Site]]]

STEP = 2.0 / 2**16  # of 16 bits for ±1


def play(server: Server, sites: Iterable[Site], deltas: Iterable[float] = (0.1, 0.2, 0.3)) -> None:
    """Play a round in which sites of weights 1, 2, 3 … change the weights."""
    for weight, (site, delta) in enumerate(zip(sites, deltas, strict=False), 1):
        server.accept(site.name, site.train(server.task(), adds({"layer.weight": delta}, weight)))
    server.finish()


def final(server: Server, site: Site) -> dict[str, np.ndarray]:
    """Return what a site keeps of the last task."""
    reply = site.run(server.task(), lambda data: data, name="secagg_final")
    assert reply.get_return_code() == "OK"
    assert params_of(reply) == {"kept": 1}
    with np.load(site.folder / "global_model.npz") as file:
        return dict(file)


def test_sites_get_the_weighted_mean(job: Job) -> None:
    server, sites = job()
    for _ in range(3):
        play(server, sites)
    mean = 3 * (1 * 0.1 + 2 * 0.2 + 3 * 0.3) / 6
    for site in sites:
        model = final(server, site)
        assert model["layer.weight"] == pytest.approx(first_model()["layer.weight"] + mean, abs=9 * STEP)
        assert model["layer.bias"] == pytest.approx(0, abs=9 * STEP)
        assert model["num_batches_tracked"] == 3  # the site's own
        assert model["num_batches_tracked"].dtype == first_model()["num_batches_tracked"].dtype
    assert list(model) == list(first_model())


def test_first_model_travels_once(job: Job) -> None:
    server, sites = job()
    assert params_of(server.task())["secagg.first"].keys() == first_model().keys()
    play(server, sites)
    assert params_of(server.task())["secagg.first"] == {}
    assert len(params_of(server.task())["secagg.blobs"]) == 2  # manifest and aggregate


def test_reply_holds_nothing_else(job: Job) -> None:
    server, sites = job(metrics=["accuracy"])
    script = adds({}, 3, {"accuracy": 0.5, "loss": 0.25})
    reply = sites[0].train(server.task(), script)
    sent = fobs.loads(reply)
    assert sent.keys() == {"DXO", "__headers__"}
    assert sent["DXO"]["meta"] == {}
    assert sent["DXO"]["data"].keys() == {"secagg.update"}
    for text in (b"NUM_STEPS", b"loss", b"secret"):
        assert text not in reply


def test_metrics_come_back_as_means(job: Job) -> None:
    server, sites = job(metrics=["accuracy"])
    for weight, site in enumerate(sites, 1):
        script = adds({}, weight, {"accuracy": weight / 10, "loss": 2.0})
        server.accept(site.name, site.train(server.task(), script))
    server.finish()
    seen = []
    sites[0].train(server.task(), lambda model: (seen.append(model.metrics), adds({})(model))[1])
    assert seen[0].keys() == {"accuracy"}
    assert seen[0]["accuracy"] == pytest.approx((1 * 0.1 + 2 * 0.2 + 3 * 0.3) / 6, abs=1e-3)


def test_latecomer_and_who_missed_a_round_catch_up(job: Job) -> None:
    server, (one, two, three) = job()
    play(server, [one, two])  # the third is connected, and sends nothing
    assert params_of(server.task())["secagg.first"].keys() == first_model().keys()
    play(server, [one, three])
    play(server, [one, two, three])
    models = [final(server, site) for site in (one, two, three)]
    for model in models[1:]:
        assert np.array_equal(model["layer.weight"], models[0]["layer.weight"])


def test_a_site_stores_the_model_for_those_that_come_late(job: Job) -> None:
    server, (one, two, three) = job()
    asked = []
    for _ in range(6):
        task = server.task()
        stores = params_of(task)["secagg.stores"]
        for site in (one, two):
            reply = site.train(task, adds({"layer.weight": 0.1}))
            assert (site.name == stores) == ("secagg.model" in params_of(reply))
            server.accept(site.name, reply)
        asked.append(stores)
        server.finish()
    assert "site-1" in asked
    assert (server.folder / "model.secagg").is_file()
    assert len(params_of(server.task())["secagg.blobs"]) < 7  # not all six aggregates
    assert np.array_equal(final(server, three)["layer.weight"], final(server, one)["layer.weight"])


def test_server_saves_ciphertext(job: Job) -> None:
    server, sites = job()
    play(server, sites)
    play(server, sites)
    assert sorted(path.name for path in server.folder.glob("*.secagg"))[:2] == [
        "aggregate-0.secagg",
        "aggregate-1.secagg",
    ]


def test_fewer_than_min_clients_end_the_job(job: Job) -> None:
    server, sites = job()
    server.accept("site-1", sites[0].train(server.task(), adds({})))
    with pytest.raises(QuorumError, match="min_clients"):
        server.finish()


@pytest.mark.parametrize("restarts", [False, True])
def test_error_feedback_is_paid_over_rounds(tmp_path: Path, restarts: bool) -> None:
    """Of 6 bits, a change of a fifth of a step would never arrive; what is due arrives, also over restarts."""
    he = {"lib": "flashe", "config": {"value_bits": 6, "rounding": "nearest", "error_feedback": True}}
    federation = Federation.make(tmp_path, sites=list(SITES), he=he, aggregation=AGGREGATION)
    server = Server(tmp_path / "job", federation["server"], first_model(), SITES)

    def make() -> list[Site]:
        return [Site(tmp_path / name, name, None if (tmp_path / name).exists() else federation[name]) for name in SITES]

    sites = make()
    for _ in range(20):
        for site in sites:
            server.accept(site.name, site.train(server.task(), adds({"layer.weight": 0.02})))
        server.finish()
        sites = make() if restarts else sites
    moved = final(server, sites[0])["layer.weight"] - first_model()["layer.weight"]
    assert moved == pytest.approx(0.4, abs=0.1)


def test_state_of_a_site_is_its_own_to_read(job: Job) -> None:
    server, sites = job()
    sites[0].train(server.task(), adds({}))
    assert (sites[0].folder / "secagg.state").stat().st_mode & 0o777 == 0o600


def test_a_site_that_has_lost_its_state_is_back_after_a_round(job: Job, kits: Federation, tmp_path: Path) -> None:
    server, (one, two, three) = job()
    play(server, [one, two, three])
    (three.folder / "secagg.state").unlink()
    again = Site(tmp_path / "site-3", "site-3", None)
    reply = again.run(server.task(), lambda data: pytest.fail("it has no model to train"))
    assert reply.get_return_code() == "TASK_DATA_FILTER_ERROR"
    play(server, [one, two])
    play(server, [one, two, again])
    assert np.array_equal(final(server, again)["layer.weight"], final(server, one)["layer.weight"])
