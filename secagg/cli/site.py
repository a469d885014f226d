"""``secagg site``: joins a federation and trains."""

from __future__ import annotations

import argparse
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..demo.task import MNI152, SEGMENTATION, check_least, data_arguments
from ..errors import ConfigError, TaskError
from ..setup.progress import Report
from ..site import run_task
from ..site.record import SiteRecord, show_metrics
from ..site.reporter import Reporter
from ..site.running import check_files
from ..site.task import CheckedTask
from ..site.task_class import load_task, read_options
from ..trust.kit import SiteKit, load_site_kit
from ..trust.kit_files import locked
from ..ui.progress import progress
from ..ui.units import show_count
from ..wire.layout import Layout

EXAMPLE = """secagg site site-1 --server fl.example.org:8443 --task own.py:Task --option lr=0.1 --out model.safetensors
secagg site site-1 --server fl.example.org:8443 --data Task09_Spleen --fold 1/5 --option tensorboard=curves
secagg site site-1 --server fl.example.org:8443 --option part=1/3"""

_MNI152 = f"{MNI152.__module__}:{MNI152.__name__}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Train on your own data, or a task of your own, or the demo's, in a federation; started again, go on with it."""
    parser.add_argument("kit", type=Path, help="folder of the site's kit, as opened by `secagg unpack`")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    parser.add_argument(
        "--task",
        metavar="PLACE:CLASS",
        help=f"what is trained: module:Class or file.py:Class, see docs/own-task.md (default: {_MNI152})",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="in place of a task: segment what is in the folder of a Medical Segmentation Decathlon task, see "
        "docs/own-data.md",
    )
    parser.add_argument(
        "--fold", metavar="I/N", help="with --data: which part of the cases validates the model (default: 1/5)"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an argument of that class; repeatable"
    )
    parser.add_argument(
        "--rounds", type=int, default=4, help="rounds of the federation, also those without this site (default: 4)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="longest try to reach the server (default: 600)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="append a line of JSON a round")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="first global model, the same at all sites: .npz, .safetensors, .pt or .pth (default: the task makes it)",
    )
    parser.add_argument(
        "--start-by", metavar="SITE", help="take the first global model of this site, which stores it on the server"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the model when all rounds are done: .safetensors, .pt or .pth; a file that is there is replaced",
    )
    parser.add_argument(
        "--best",
        type=Path,
        metavar="FILE",
        help="write the global model with the best mean of the first of the configuration's metrics, too",
    )


def run(options: argparse.Namespace) -> None:
    """Train, encrypt, upload, wait, check and decrypt, until the federation has done its rounds."""
    check_least("--rounds", options.rounds)
    _check_task(options)
    arguments = read_options(options.option)
    kit = load_site_kit(options.kit)
    kit.project.check_time()
    check_files(kit, options.out, options.best)
    if options.report is not None:
        options.report.open("ab").close()  # what cannot be written must not be found out after training
    with locked(kit.folder):  # another process of the site is found out before libraries take seconds
        pass
    try:
        _run(options, arguments, kit)
    except TaskError as error:  # whoever has written the task wants to see where
        traceback.print_exception(error.__cause__)
        raise


def _run(options: argparse.Namespace, arguments: dict[str, Any], kit: SiteKit) -> None:
    reporter = Printed()

    # Its libraries take seconds: after all that can be wrong with the kit. And before gRPC is loaded: a process that
    # loaded it before PyTorch once ended with a corrupted heap.
    task = _load(options, arguments, kit, reporter)

    from ..integrations.grpc import SiteSession
    from ..trust import Tls

    def connect(kit: SiteKit, layout: Layout) -> SiteSession:
        return SiteSession(
            options.server,
            kit.name,
            tls=Tls.load(kit.tls),
            timeout=options.timeout,
            project=kit.project,
            layout=layout,
        )

    metrics = run_task(
        kit,
        connect,
        task,
        options.rounds,
        reporter=reporter,
        keep=lambda record: _keep(record, options.report),
        start=options.start,
        start_by=options.start_by,
        out=options.out,
        best=options.best,
    )
    done = f"{show_count(options.rounds, 'round')} {'is' if options.rounds == 1 else 'are'} done"
    print(f"{done}: {show_metrics(metrics)}" if metrics else done, flush=True)


def _check_task(options: argparse.Namespace) -> None:
    """Raise `ConfigError` if options contradict each other on what is trained."""
    if options.data is not None and options.task is not None:
        raise ConfigError("--data names what is trained, and so does --task: give one of them")
    if options.data is None and options.fold is not None:
        raise ConfigError("--fold holds out cases of --data: give a folder, too")


def _load(options: argparse.Namespace, arguments: dict[str, Any], kit: SiteKit, reporter: Reporter) -> CheckedTask:
    """Return what is trained."""
    if options.data is None:
        place = options.task or _MNI152
        with reporter.step(f"load the task {place}"):
            return load_task(place, arguments)
    with reporter.step(f"read the cases of {options.data}") as report:
        return load_task(SEGMENTATION, data_arguments(options.data, options.fold, kit.project, arguments, report))


def _keep(record: SiteRecord, path: Path | None) -> None:
    if path is not None:
        record.append_to(path)


class Printed(Reporter):
    """Shows bars and lines on the terminal."""

    def step(self, what: str) -> AbstractContextManager[Report]:
        """Show a bar on a terminal, a line elsewhere."""
        return progress(what)

    def news(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def warning(self, line: str) -> None:
        """Print a line on standard error."""
        print(line, file=sys.stderr, flush=True)
