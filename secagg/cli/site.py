"""``secagg site``: joins a federation and trains."""

from __future__ import annotations

import argparse
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..client import Client
from ..demo.task import MNI152, check_least
from ..errors import TaskError
from ..setup.progress import Report
from ..site import GlobalModel
from ..site.final_model import check_final_model, write_final_model
from ..site.loop import check_examples, take_part
from ..site.participant import Participant
from ..site.record import SiteRecord, show_metrics
from ..site.reporter import Reporter
from ..site.task_class import load_task, read_options
from ..trust.kit import SiteKit, load_site_kit
from ..trust.kit_files import locked
from ..ui.progress import progress
from ..ui.units import show_count

EXAMPLE = """secagg site site-1 --server fl.example.org:8443 --task own.py:Task --option lr=0.1 --out model.safetensors
secagg site site-1 --server fl.example.org:8443 --option part=1/3"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Train a task of your own, or the demo's on a brain MRI, in a federation; started again, go on with it."""
    parser.add_argument("kit", type=Path, help="folder of the site's kit, as opened by `secagg unpack`")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    parser.add_argument(
        "--task",
        default=f"{MNI152.__module__}:{MNI152.__name__}",
        metavar="PLACE:CLASS",
        help="what is trained: module:Class or file.py:Class, see docs/own-task.md (default: %(default)s)",
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
        "--out",
        type=Path,
        metavar="FILE",
        help="write the model when all rounds are done: .safetensors, .pt or .pth; a file that is there is replaced",
    )


def run(options: argparse.Namespace) -> None:
    """Train, encrypt, upload, wait, check and decrypt, until the federation has done its rounds."""
    check_least("--rounds", options.rounds)
    arguments = read_options(options.option)
    kit = load_site_kit(options.kit)
    kit.project.check_time()
    if options.out is not None:
        check_final_model(options.out)
    if options.report is not None:
        options.report.open("ab").close()  # what cannot be written must not be found out after training
    with locked(kit.folder):
        try:
            _run(options, arguments, kit)
        except TaskError as error:  # whoever has written the task wants to see where
            traceback.print_exception(error.__cause__)
            raise


def _run(options: argparse.Namespace, arguments: dict[str, Any], kit: SiteKit) -> None:
    site, reporter = Client.load(kit), Printed()

    # Its libraries take seconds: after all that can be wrong with the kit. And before gRPC is loaded: a process that
    # loaded it before PyTorch once ended with a corrupted heap.
    with reporter.step(f"load the task {options.task}"):
        task = load_task(options.task, arguments)

    from ..integrations.grpc import SiteSession
    from ..trust import Tls

    check_examples(site, task)
    model = GlobalModel(site, task.state)
    with SiteSession(
        options.server,
        kit.name,
        tls=Tls.load(kit.tls),
        timeout=options.timeout,
        project=kit.project,
        layout=model.layout,
    ) as session:
        participant = Participant(kit, session, model, reporter)
        with reporter.step(f"join the federation at {options.server}, for {options.timeout:g} s at most"):
            participant.join()
        metrics = take_part(participant, task, options.rounds, lambda record: _keep(record, options.report))
    if options.out is not None:
        task.load(model.state)  # validation may have changed it, as BatchNorm's statistics
        write_final_model(options.out, task.state)
    done = f"{show_count(options.rounds, 'round')} {'is' if options.rounds == 1 else 'are'} done"
    print(f"{done}: {show_metrics(metrics)}" if metrics else done, flush=True)


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
