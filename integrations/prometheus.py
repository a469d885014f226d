"""Prometheus metrics of a server: what happened is counted, how it stands is read when somebody asks.

==================================================  ==================================================================
``secagg_uploads_total{result}``                    uploads that were ``added``, or ``already_added`` before
``secagg_upload_bytes_total{result}``               their bytes
``secagg_upload_seconds``                           histogram: from the head of an upload to its answer
``secagg_refusals_total{error}``                    refused calls, by the type in `secagg.errors`
``secagg_rounds_total{outcome}``                    rounds ``completed``, or ``calibrated`` and open still; those
                                                    ``failed`` or ``voided`` are open again
``secagg_round_seconds{outcome}``                   histogram: from the opening of a round, or its stage, to its end
``secagg_downloads_total``                          aggregates, scales and models that were sent
``secagg_download_bytes_total``                     their bytes
``secagg_round``, ``secagg_round_attempt``          the open round; attempts count from 1
``secagg_round_stage{stage}``                       1 if the open round adds this now, else 0: ``calibration``,
                                                    ``update``; absent where no round has a calibration
``secagg_round_seconds_left``                       until its timeout; absent while its clock stands still
``secagg_round_sites{state}``                       of the open stage: ``added``, ``skipped``, ``waiting_for``
``secagg_round_site_added{site}``                   1 if the site is in the sum of the stage, 0 if that waits for it
``secagg_uploads_in_flight``                        uploads that are being received
``secagg_disk_used_bytes``                          what the run folder takes
``secagg_disk_quota_bytes``                         what it may take
``secagg_disk_free_bytes``                          what its file system has left
``secagg_epoch``                                    of the HE key
``secagg_expiry_timestamp_seconds{what}``           when the ``certificate`` or the ``project`` expires
``process_*``                                       memory, CPU, open files, start: prometheus_client's own
==================================================  ==================================================================

Names of sites are all that tells one site from another. Labels are bounded: sites by ``max_clients``, errors by the
types that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

from secagg import errors
from secagg.errors import SecAggError, TransportError
from secagg.protocol import is_loopback, parse_address

if TYPE_CHECKING:
    from secagg.protocol import ServerStatus

_RESULTS = {True: "added", False: "already_added"}
_OUTCOMES = ("completed", "calibrated", "failed", "voided")
_STAGES = ("calibration", "update")
_OTHER = "other"

#: Whoever says nothing for so long is not answered.
_SILENCE_SECONDS = 5.0

#: Every label of a refusal, so that the first refusal of a kind is an increase, not the appearance of a series.
_ERRORS = tuple(name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SecAggError))

_UPLOAD_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800)
_ROUND_BUCKETS = (1, 10, 60, 300, 900, 1800, 3600, 7200, 21600, 43200, 86400)


class Metrics:
    """Counts what a `Server` tells it, in a registry of its own.

    Pass it to the server, and to a `MetricsEndpoint` that serves it. Safe for threads.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._uploads = Counter(
            "secagg_uploads", "Updates, calibrations and models.", ["result"], registry=self.registry
        )
        self._upload_bytes = Counter("secagg_upload_bytes", "Their bytes.", ["result"], registry=self.registry)
        self._upload_seconds = Histogram(
            "secagg_upload_seconds",
            "From the head of an upload to its answer.",
            buckets=_UPLOAD_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "secagg_refusals", "Refused calls, by the type of the error.", ["error"], registry=self.registry
        )
        self._rounds = Counter(
            "secagg_rounds", "Rounds and calibrations that ended.", ["outcome"], registry=self.registry
        )
        self._round_seconds = Histogram(
            "secagg_round_seconds",
            "From the opening of a round, or its stage, to its end.",
            ["outcome"],
            buckets=_ROUND_BUCKETS,
            registry=self.registry,
        )
        self._downloads = Counter(
            "secagg_downloads", "Aggregates, scales and models that were sent.", registry=self.registry
        )
        self._download_bytes = Counter("secagg_download_bytes", "Their bytes.", registry=self.registry)
        self._expiry = Gauge(
            "secagg_expiry_timestamp_seconds",
            "When the server's certificate and the project manifest expire.",
            ["what"],
            registry=self.registry,
        )
        for result in _RESULTS.values():
            self._uploads.labels(result)
            self._upload_bytes.labels(result)
        for outcome in _OUTCOMES:
            self._rounds.labels(outcome)
            self._round_seconds.labels(outcome)
        for error in (*_ERRORS, _OTHER):
            self._refusals.labels(error)

    def upload_received(self, nbytes: int, seconds: float, added: bool) -> None:
        """Count an upload that ended well; `added` is False if this very update had been added before."""
        self._uploads.labels(_RESULTS[added]).inc()
        self._upload_bytes.labels(_RESULTS[added]).inc(nbytes)
        self._upload_seconds.observe(seconds)

    def refused(self, error_type: str) -> None:
        """Count a call that ended with the error of this name in `secagg.errors`; others count as ``other``."""
        self._refusals.labels(error_type if error_type in _ERRORS else _OTHER).inc()

    def round_ended(self, outcome: str, seconds: float) -> None:
        """Count a round or calibration that ended, as `Events` has it, `seconds` after it was opened."""
        self._rounds.labels(outcome).inc()
        self._round_seconds.labels(outcome).observe(seconds)

    def aggregate_downloaded(self, nbytes: int) -> None:
        """Count an aggregate, scales or a model that were sent whole."""
        self._downloads.inc()
        self._download_bytes.inc(nbytes)

    def expires(self, what: str, timestamp: float) -> None:
        """State when the ``"certificate"`` or the ``"project"`` expires, in seconds since 1970."""
        self._expiry.labels(what).set(timestamp)

    def watch(self, status: Callable[[], ServerStatus]) -> None:
        """Read the gauges from what `status` returns, at each scrape."""
        self.registry.register(_Gauges(status))


class _Gauges:
    """How the server stands at the moment of the scrape: sites that left the roster are no series any more."""

    def __init__(self, status: Callable[[], ServerStatus]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        # Without it a registry may collect just to learn the names.
        return []

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        yield GaugeMetricFamily("secagg_round", "The open round.", now.round)
        yield GaugeMetricFamily("secagg_round_attempt", "Attempts of the open round, from 1.", now.attempt)
        stage = GaugeMetricFamily("secagg_round_stage", "What the open round adds now.", labels=["stage"])
        for name in _STAGES if now.stage else ():
            stage.add_metric([name], float(name == now.stage))
        yield stage
        left = GaugeMetricFamily("secagg_round_seconds_left", "Until the round timeout; absent while the clock stands.")
        if now.seconds_left is not None:
            left.add_metric([], now.seconds_left)
        yield left
        sites = GaugeMetricFamily("secagg_round_sites", "Sites of the open round.", labels=["state"])
        sites.add_metric(["added"], len(now.added))
        sites.add_metric(["skipped"], len(now.skipped))
        sites.add_metric(["waiting_for"], len(now.waiting_for))
        yield sites
        each = GaugeMetricFamily(
            "secagg_round_site_added",
            "1 if the site is in the sum of the open stage, 0 if that waits for it.",
            labels=["site"],
        )
        for site in sorted({*now.added, *now.waiting_for}):
            each.add_metric([site], float(site in now.added))
        yield each
        yield GaugeMetricFamily("secagg_uploads_in_flight", "Uploads that are being received.", now.uploads_in_flight)
        yield GaugeMetricFamily("secagg_disk_used_bytes", "What the run folder takes.", now.disk_used)
        yield GaugeMetricFamily("secagg_disk_quota_bytes", "What the run folder may take.", now.disk_quota)
        if now.disk_free is not None:
            yield GaugeMetricFamily("secagg_disk_free_bytes", "What its file system has left.", now.disk_free)
        yield GaugeMetricFamily("secagg_epoch", "Epoch of the HE key.", now.epoch)


def _impatient(handler: Any) -> Any:
    """Return a handler of connections that hangs up on whoever is silent: each takes a thread and an open file."""

    class Handler(handler):  # type: ignore[misc]  # prometheus_client makes the class for each endpoint anew
        timeout = _SILENCE_SECONDS

        def handle(self) -> None:
            with suppress(OSError):  # silence is one; it is nobody's business but the peer's
                super().handle()

    return Handler


class MetricsEndpoint:
    """Serves metrics over HTTP, with prometheus_client's own server, until `close`. A context manager.

    It speaks HTTP without TLS and answers whoever asks: listen on a loopback address, or where a firewall lets
    only the monitoring in.

    Parameters
    ----------
    metrics : Metrics
        What to serve.
    address : str
        Where to listen, as ``host:port``; port 0 takes a free one, which `address` then names.

    Raises
    ------
    ConfigError
        If the address is none.
    TransportError
        If nothing can listen there.
    """

    def __init__(self, metrics: Metrics, address: str) -> None:
        self._host, port = parse_address(address)
        try:
            self._server, self._thread = start_http_server(port, self._host, registry=metrics.registry)
            self._server.RequestHandlerClass = _impatient(self._server.RequestHandlerClass)
        except OSError as error:
            raise TransportError(
                f"cannot serve metrics on {address}: {error.strerror}; is another server there already?"
            ) from error

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._server.server_port}"

    @property
    def local(self) -> bool:
        """Whether it listens on a loopback address only."""
        return is_loopback(self._host)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsEndpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
