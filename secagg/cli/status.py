"""``secagg status``: how a server and its open round stand."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, IdentityError, SecAggError, TransportError
from ..trust.kit import load_kit
from ..trust.project import Project
from ..ui.progress import progress
from ..ui.status import Report, ask

if TYPE_CHECKING:
    from ..integrations.grpc import SiteSession

EXAMPLE = """secagg status site-1 --server fl.example.org:8443
secagg status server --server localhost:8443 --check --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Show the open round, who is missing, and the server's state; with --check, fail if something needs attention."""
    parser.add_argument("kit", type=Path, help="folder of a site's or the server's kit, as opened by `secagg unpack`")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="ask again and again, until Ctrl-C")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit code 6 if the open round has failed for lack of sites, or was voided; 1 for all else",
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="longest wait for an answer (default: 10)"
    )


def run(options: argparse.Namespace) -> None:
    """Ask and show, once or until stopped."""
    if options.watch is not None and not 0 < options.watch <= 86400:
        raise ConfigError(f"--watch is {options.watch:g} s; use more than 0 and at most 86400")
    if options.watch is not None and options.check:
        raise ConfigError("--check judges one answer: leave out --watch")
    kit = load_kit(options.kit)

    from ..integrations.grpc import SiteSession
    from ..trust import Tls

    tls = Tls.load(kit.folder)
    with SiteSession(options.server, kit.name, tls=tls, timeout=options.timeout, project=kit.project) as session:
        if options.watch is not None:
            _watch(session, options, kit.project)
            return
        try:
            waiting = progress(f"ask {options.server}, for {options.timeout:g} s at most")
            with waiting if sys.stderr.isatty() else nullcontext():  # no line each time for who asks by cron
                report = _ask(session, options, kit.project)
        except SecAggError as error:
            if options.json:
                print(_failure(options.server, error))
            raise
        print(report.json() if options.json else report.text(), flush=True)
    if options.check:
        report.check()


def _ask(session: SiteSession, options: argparse.Namespace, project: Project) -> Report:
    try:
        status, ahead = ask(session)
    except IdentityError:
        raise
    except TransportError as error:
        from ..integrations.grpc.proxies import proxy_of

        asked = "is it up, and does the firewall let port and host through?"
        why = str(error) if proxy_of(options.server) else f"{asked} ({error})"  # it says of a proxy what to do
        raise TransportError(
            f"no answer from the server at {options.server} within {options.timeout:g} s: {why}"
        ) from error
    return Report(options.server, status, project, ahead, time.time())


def _watch(session: SiteSession, options: argparse.Namespace, project: Project) -> None:
    with ExitStack() as stack:
        show = _screen(stack) if sys.stdout.isatty() and not options.json else _print
        while True:
            try:
                report = _ask(session, options, project)
                text = report.json() if options.json else report.text()
            except TransportError as error:
                text = _failure(options.server, error) if options.json else f"ATTENTION    {error}"
            show(text if options.json else f"{time.strftime('%H:%M:%S')}\n{text}\n")
            time.sleep(options.watch)


def _screen(stack: ExitStack) -> Callable[[str], None]:
    """Return what shows a text in the place of the one before."""
    from rich.live import Live
    from rich.text import Text

    live = stack.enter_context(Live(auto_refresh=False))
    return lambda text: live.update(Text(text), refresh=True)


def _print(text: str) -> None:
    print(text, flush=True)


def _failure(server: str, error: SecAggError) -> str:
    data: dict[str, Any] = {"server": server, "error": type(error).__name__, "message": str(error)}
    return json.dumps(data, sort_keys=True)
