"""``secagg serve``: the server of a federation."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import select
import signal
import sys
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from ..errors import ConfigError, IdentityError, PrivacyWarning, TransportError, show_size
from ..protocol.address import parse_address
from ..server.limits import Limits
from ..setup.disk import round_nbytes
from ..trust.kit import load_server_kit
from ..trust.project import Project
from ..ui.logs import FORMATS, start_log
from ..ui.units import parse_size
from .expiry import wait_and_tell

EXAMPLE = """secagg serve server --address 0.0.0.0:8443 --run-dir /var/lib/secagg
secagg serve server --address 0.0.0.0:8443 --metrics 9464 --log-format json --disk-quota 200G
secagg serve server --address 0.0.0.0:8443 --bucket s3://federation-updates/brain"""

#: Fields of `Limits`, and the options that set them.
_LIMITS = {
    "uploads_in_flight": "max_uploads",
    "idle_seconds": "idle_timeout",
    "upload_seconds": "upload_timeout",
    "disk_quota": "disk_quota",
    "max_upload_nbytes": "max_upload",
}

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the encrypted updates of the sites, round after round, until stopped."""
    parser.add_argument("kit", type=Path, help="folder of the server's kit, as opened by `secagg unpack`")
    parser.add_argument("--address", default="127.0.0.1:8443", help="HOST:PORT to listen on (default: 127.0.0.1:8443)")
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("run"),
        metavar="FOLDER",
        help="updates, aggregates and models; a server that is started on it again goes on (default: run)",
    )
    parser.add_argument(
        "--round-timeout",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="longest round, training included; where one begins with a calibration, the longest stage (default: 3600)",
    )
    parser.add_argument(
        "--disk-quota",
        type=parse_size,
        default=Limits.disk_quota,
        metavar="SIZE",
        help="what the run folder may take, with what lies in the bucket, as 200G or 1.5T (default: 64G)",
    )
    parser.add_argument(
        "--bucket",
        metavar="URL",
        help="s3://BUCKET/PREFIX, this server's alone: sites put updates there by presigned URLs, if `storage` in "
        "project.yaml names its host; credentials as of AWS's tools, AWS_ACCESS_KEY_ID and so on (default: none)",
    )
    parser.add_argument(
        "--max-upload",
        type=parse_size,
        default=Limits.max_upload_nbytes,
        metavar="SIZE",
        help="largest update before the model's layout is known, and largest model (default: 4G)",
    )
    parser.add_argument(
        "--max-uploads",
        type=int,
        default=Limits.uploads_in_flight,
        metavar="N",
        help=f"uploads received at a time; others wait (default: {Limits.uploads_in_flight})",
    )
    parser.add_argument(
        "--idle-timeout",
        type=float,
        default=Limits.idle_seconds,
        metavar="SECONDS",
        help=f"a stream without a frame (1 MiB) for so long is cut off, and resumed (default: {Limits.idle_seconds:g})",
    )
    parser.add_argument(
        "--upload-timeout",
        type=float,
        default=Limits.upload_seconds,
        metavar="SECONDS",
        help=f"longest upload, then cut off, and resumed by its site (default: {Limits.upload_seconds:g})",
    )
    parser.add_argument(
        "--metrics",
        type=_metrics_address,
        metavar="[HOST:]PORT",
        help="serve Prometheus metrics there, without TLS; HOST is 127.0.0.1 if not given (default: off)",
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="of the log on stderr (default: text)")


def run(options: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM, then stop in order; at a second signal, at once."""
    kit = load_server_kit(options.kit)
    _check_time(kit.project)
    limits = _limits(options)

    from ..integrations.grpc import Server
    from ..trust import Certificate, Tls

    _raise_open_files()
    start_log(options.log_format)
    weakness = kit.config.aggregation.weakness
    if weakness:
        log.warning("%s", weakness, extra={"event": "privacy"})
    warnings.simplefilter("ignore", PrivacyWarning)  # it has been said
    needed = round_nbytes(kit.project)
    if needed is not None and needed > limits.disk_quota:
        log.warning(
            "--disk-quota is %s, rounds take up to %s: uploads may be refused",
            show_size(limits.disk_quota),
            show_size(needed),
            extra={"event": "quota_small"},
        )
    tls = Tls.load(kit.folder)
    ends = {"project": float(kit.project.expires), "certificate": Certificate.load(tls).expires}
    stop = _Stop()
    with ExitStack() as stack:
        metrics = None
        if options.metrics is not None:
            from prometheus_client import disable_created_metrics

            from ..integrations.prometheus import Metrics, MetricsEndpoint

            disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
            metrics = Metrics()
            for what, end in ends.items():
                metrics.expires(what, end)
            endpoint = stack.enter_context(MetricsEndpoint(metrics, options.metrics))
            log.info("metrics on http://%s/metrics", endpoint.address, extra={"event": "metrics"})
            if not endpoint.local:
                log.warning(
                    "metrics are served to whoever reaches %s, without TLS: let only the monitoring through",
                    endpoint.address,
                    extra={"event": "metrics_open"},
                )
        server = Server(
            kit.config,
            kit.key,
            options.run_dir,
            address=options.address,
            tls=tls,
            round_timeout=options.round_timeout,
            project=kit.project,
            identity=kit.identity,
            limits=limits,
            events=metrics,
            bucket=options.bucket,
        )
        if metrics is not None:
            metrics.watch(server.status)
        server.start()
        # Whoever reads JSON, or has both on a terminal, reads it in the log.
        if options.log_format == "text" and not (sys.stdout.isatty() and sys.stderr.isatty()):
            print(f"serving on {server.address}", flush=True)
        name = wait_and_tell(stop.wait, ends, time.time)
        log.info("%s: stopping; a second signal stops at once", name, extra={"event": "stopping"})
        server.stop()
        log.info("stopped; the open round goes on at the next start", extra={"event": "stopped"})


def _limits(options: argparse.Namespace) -> Limits:
    """Return the limits; `ConfigError` that names the option, as an operator knows it."""
    try:
        return Limits(**{field: getattr(options, option) for field, option in _LIMITS.items()})
    except ConfigError as error:
        message = str(error)
        for field, option in _LIMITS.items():
            message = message.replace(f"limits.{field} ", f"--{option.replace('_', '-')} ")
        raise ConfigError(message) from error


def _check_time(project: Project) -> None:
    try:
        project.check_time()
    except IdentityError as error:
        if time.time() >= project.expires:
            raise
        # The clock of a machine that has just started may not be set yet: another exit code, worth another start.
        raise TransportError(str(error)) from error


def _raise_open_files() -> None:
    """Let the process have as many files open as the system allows: on that depends how many connections it takes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # systems that say more than they keep
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Stop:
    """Waits for SIGINT or SIGTERM. A second one ends the process: what was acknowledged is on the disk anyway."""

    def __init__(self) -> None:
        # Python's C code writes the number of the signal to the pipe, whatever thread the signal interrupts. A handler
        # that set a `threading.Event` could wait for the lock that the interrupted `Event.wait` holds.
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._reader, True)
        self._signalled = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> str | None:
        """Return the name of the signal, once there is one; None if there is none for so many seconds."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        return signal.Signals(os.read(self._reader, 1)[0]).name if ready else None

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            os.write(2, b"secagg: stopped at once\n")  # no print in here: it may be what the signal interrupted
            os._exit(128 + number)
        self._signalled = True


def _metrics_address(text: str) -> str:
    address = text if ":" in text else f"127.0.0.1:{text}"
    try:
        parse_address(address)
    except ConfigError:
        raise argparse.ArgumentTypeError(f"{text!r}: write PORT, as 9464, or HOST:PORT") from None
    return address
