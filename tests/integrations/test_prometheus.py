"""Metrics, as a monitoring system scrapes them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mortal import free_port
from prometheus_client.parser import text_string_to_metric_families

from secagg.errors import ConfigError, TransportError
from secagg.integrations import prometheus as metrics_module
from secagg.integrations.prometheus import Metrics, MetricsEndpoint
from secagg.protocol.messages import ServerStatus

IDLE = ServerStatus(
    round=0,
    attempt=1,
    state="idle",
    added=(),
    waiting_for=(),
    seconds_left=None,
    uploads_in_flight=0,
    disk_used=0,
    disk_quota=1000,
    epoch=0,
    models=(),
    aggregates=(),
)
OPEN = ServerStatus(
    round=7,
    attempt=2,
    state="open",
    added=("site-1", "site-3"),
    waiting_for=("site-2",),
    seconds_left=12.5,
    uploads_in_flight=3,
    disk_used=123,
    disk_quota=1000,
    epoch=4,
    models=(7,),
    aggregates=(5, 6),
    disk_free=77,
    skipped=("site-4",),
)

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(endpoint: MetricsEndpoint) -> Samples:
    with urlopen(f"http://{endpoint.address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def test_what_happens_is_counted() -> None:
    metrics = Metrics()
    metrics.upload_received(1000, 2.0, True)
    metrics.upload_received(500, 20.0, True)
    metrics.upload_received(500, 0.01, False)
    metrics.refused("RoundMismatchError")
    metrics.refused("RoundMismatchError")
    metrics.round_ended("calibrated", 20.0)
    metrics.round_ended("completed", 100.0)
    metrics.round_ended("failed", 3600.0)
    metrics.aggregate_downloaded(4000)
    metrics.expires("certificate", 2e9)
    with MetricsEndpoint(metrics, "127.0.0.1:0") as endpoint:
        samples = scrape(endpoint)
    assert value(samples, "secagg_uploads_total", result="added") == 2
    assert value(samples, "secagg_uploads_total", result="already_added") == 1
    assert value(samples, "secagg_upload_bytes_total", result="added") == 1500
    assert value(samples, "secagg_upload_seconds_count") == 3
    assert value(samples, "secagg_upload_seconds_bucket", le="3.0") == 2
    assert value(samples, "secagg_refusals_total", error="RoundMismatchError") == 2
    assert value(samples, "secagg_rounds_total", outcome="completed") == 1
    assert value(samples, "secagg_rounds_total", outcome="calibrated") == 1
    assert value(samples, "secagg_rounds_total", outcome="failed") == 1
    assert value(samples, "secagg_round_seconds_sum", outcome="failed") == 3600
    assert value(samples, "secagg_downloads_total") == 1
    assert value(samples, "secagg_download_bytes_total") == 4000
    assert value(samples, "secagg_expiry_timestamp_seconds", what="certificate") == 2e9
    assert (value(samples, "process_resident_memory_bytes") or 0) > 1e6


def test_counters_begin_at_zero_and_not_by_appearing() -> None:
    with MetricsEndpoint(Metrics(), "127.0.0.1:0") as endpoint:
        samples = scrape(endpoint)
    for labels in ({"error": "IdentityError"}, {"error": "QuotaError"}, {"error": "other"}):
        assert value(samples, "secagg_refusals_total", **labels) == 0
    assert value(samples, "secagg_rounds_total", outcome="failed") == 0
    assert value(samples, "secagg_uploads_total", result="added") == 0


def test_labels_of_refusals_are_bounded() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.refused(f"a peer's own {number}")
    with MetricsEndpoint(metrics, "127.0.0.1:0") as endpoint:
        samples = scrape(endpoint)
    assert value(samples, "secagg_refusals_total", error="other") == 1000
    assert len([name for name, _ in samples if name == "secagg_refusals_total"]) < 50


def test_gauges_are_read_at_the_scrape() -> None:
    statuses = iter([OPEN, IDLE])
    metrics = Metrics()
    metrics.watch(lambda: next(statuses))
    with MetricsEndpoint(metrics, "127.0.0.1:0") as endpoint:
        first, second = scrape(endpoint), scrape(endpoint)
    assert value(first, "secagg_round") == 7
    assert value(first, "secagg_round_attempt") == 2
    assert value(first, "secagg_round_seconds_left") == 12.5
    assert value(first, "secagg_round_sites", state="added") == 2
    assert value(first, "secagg_round_sites", state="skipped") == 1
    assert value(first, "secagg_round_sites", state="waiting_for") == 1
    assert {site: value(first, "secagg_round_site_added", site=site) for site in ("site-1", "site-2", "site-3")} == {
        "site-1": 1,
        "site-2": 0,
        "site-3": 1,
    }
    assert value(first, "secagg_uploads_in_flight") == 3
    assert value(first, "secagg_disk_used_bytes") == 123
    assert value(first, "secagg_disk_quota_bytes") == 1000
    assert value(first, "secagg_disk_free_bytes") == 77
    assert value(first, "secagg_epoch") == 4
    # The clock stands still, and sites that left the roster are no series any more.
    assert value(second, "secagg_round") == 0
    assert value(second, "secagg_round_seconds_left") is None
    assert not [name for name, _ in second if name == "secagg_round_site_added"]


@pytest.mark.parametrize("stage", ["calibration", "update", ""])
def test_the_stage_of_a_round(stage: str) -> None:
    metrics = Metrics()
    metrics.watch(lambda: replace(OPEN, stage=stage))
    with MetricsEndpoint(metrics, "127.0.0.1:0") as endpoint:
        samples = scrape(endpoint)
    found = {name: value(samples, "secagg_round_stage", stage=name) for name in ("calibration", "update")}
    assert found == {name: float(name == stage) if stage else None for name in found}


def other_loopback() -> str:
    """That of IPv6, if this machine has it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return "127.0.0.1:0"
    return "[::1]:0"


def test_two_servers_in_a_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.refused("IdentityError")
    with MetricsEndpoint(first, "127.0.0.1:0") as one, MetricsEndpoint(second, other_loopback()) as two:
        assert value(scrape(one), "secagg_refusals_total", error="IdentityError") == 1
        assert value(scrape(two), "secagg_refusals_total", error="IdentityError") == 0


def test_the_endpoint_ends_and_its_port_is_free() -> None:
    address = f"127.0.0.1:{free_port()}"  # one that nobody else gets meanwhile
    with MetricsEndpoint(Metrics(), address) as endpoint:
        assert endpoint.address == address
    with pytest.raises(URLError):
        urlopen(f"http://{address}/metrics", timeout=5)
    with MetricsEndpoint(Metrics(), address):
        pass


def test_whoever_is_silent_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Connections that say nothing, or half of something, take a thread and a file each, but not for ever."""
    monkeypatch.setattr(metrics_module, "_SILENCE_SECONDS", 0.2)
    with MetricsEndpoint(Metrics(), "127.0.0.1:0") as endpoint, ExitStack() as open_ones:
        host, port = endpoint.address.split(":")
        silent = [open_ones.enter_context(socket.create_connection((host, int(port)), 120)) for _ in range(30)]
        for connection in silent[::2]:
            connection.sendall(b"GET /metr")
        assert value(scrape(endpoint), "secagg_refusals_total", error="other") == 0
        assert [connection.recv(1) for connection in silent] == [b""] * len(silent)
        assert value(scrape(endpoint), "secagg_refusals_total", error="other") == 0
    assert capfd.readouterr() == ("", "")


def test_addresses_that_cannot_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=f"cannot serve metrics on 127.0.0.1:{port}"):
            MetricsEndpoint(Metrics(), f"127.0.0.1:{port}")
    with pytest.raises(TransportError, match="cannot serve metrics on nowhere.invalid:9464"):
        MetricsEndpoint(Metrics(), "nowhere.invalid:9464")
    with pytest.raises(ConfigError, match="host:port"):
        MetricsEndpoint(Metrics(), "9464")
