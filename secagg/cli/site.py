"""``secagg site``: joins a federation and trains."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ..demo.task import LocalTask, Part, SiteRecord, check_least
from ..errors import QuorumError, RoundMismatchError, SecAggError
from ..scheme.params import QuantisedParams
from ..site import GlobalModel
from ..site.folder import UPDATE_FILE, make_client
from ..site.participant import Participant
from ..site.reporter import Report, Reporter
from ..trust.kit import SiteKit, load_site_kit, locked
from ..ui.progress import progress

if TYPE_CHECKING:
    from ..integrations.monai import SecAggHandler

EXAMPLE = "secagg site site-1 --server fl.example.org:8443 --part 1/3 --rounds 4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Train white-matter segmentation on a part of the MNI152 brain in a federation; started again, go on with it."""
    parser.add_argument("kit", type=Path, help="folder of the site's kit, as opened by `secagg unpack`")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    parser.add_argument("--part", type=Part.parse, default=Part(1, 1), metavar="I/N", help="which part of the data")
    parser.add_argument(
        "--rounds", type=int, default=4, help="rounds of the federation, also those without this site (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of network and training, equal at all sites (default: 0)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="longest try to reach the server (default: 600)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of PyTorch (default: 1, so that sites can share a machine)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="append a line of JSON a round")


def run(options: argparse.Namespace) -> None:
    """Train, encrypt, upload, wait, check and decrypt, until the federation has done its rounds."""
    rounds = check_least("--rounds", options.rounds)
    check_least("--threads", options.threads)
    check_least("--seed", options.seed, 0)
    kit = load_site_kit(options.kit)
    kit.project.check_time()
    with locked(kit.folder):
        _run(options, rounds, kit)


def _run(options: argparse.Namespace, rounds: int, kit: SiteKit) -> None:
    site = make_client(kit)

    import torch  # these take seconds: after all that can be wrong with the kit

    from ..integrations.grpc import SiteSession
    from ..integrations.monai import SecAggHandler
    from ..trust import Tls

    torch.set_num_threads(options.threads)
    with progress("load the brain MRI"):
        task = LocalTask(options.part, options.seed)
    if options.report is not None:
        options.report.open("ab").close()  # what cannot be written must not be found out after training
    model = GlobalModel(site, task.network.state_dict())
    handler = SecAggHandler(model, weight=len(task.patches), upload_path=kit.folder / UPDATE_FILE)
    with SiteSession(
        options.server,
        kit.name,
        tls=Tls.load(kit.tls),
        timeout=options.timeout,
        project=kit.project,
        layout=model.layout,
    ) as session:
        participant = Participant(kit, session, model, Printed())
        with progress(f"join the federation at {options.server}, for {options.timeout:g} s at most"):
            participant.join()
        while model.round < rounds:
            try:
                _take_part(rounds, task, handler, participant).append_to(options.report)
                if model.round < rounds:
                    participant.join()  # sites may have been added or removed since: the server shows the manifest
            except RoundMismatchError as error:  # the round ended without this site
                missed = model.round
                participant.join()
                if model.round == missed:
                    raise
                print(f"round {missed} ({missed + 1} of {rounds}): missed: {error}", flush=True)
        participant.clear()
    done = "1 round is" if rounds == 1 else f"{rounds} rounds are"
    print(f"{done} done: Dice {task.dice(participant.model.state):.4f} on held-out data", flush=True)


def _take_part(rounds: int, task: LocalTask, handler: SecAggHandler, participant: Participant) -> SiteRecord:
    """Take part in the round that the handler is at."""
    model = participant.model
    round, params = model.round, model.site.config.params
    here = f"round {round} ({round + 1} of {rounds})"
    train_seconds, encrypt_seconds, clipped = 0.0, 0.0, 0
    if participant.has_update():
        print(f"{here}: going on with the update that was encrypted before", flush=True)
    else:
        total_seconds = task.train(round, rounds, [handler])
        encrypt_seconds, clipped = handler.encrypt_seconds, participant.model.site.clipped
        train_seconds = total_seconds - encrypt_seconds
        if isinstance(params, QuantisedParams) and params.overflow == "clip":
            print(f"{here}: clipped {clipped:,} values beyond max_abs", flush=True)
    start = time.perf_counter()
    with progress(f"{here}: upload {participant.update_nbytes / 1e6:.1f} MB") as report:
        participant.upload(report)
    sent = time.perf_counter()
    with progress(f"{here}: wait for others") as report:
        try:
            aggregate = participant.download(report)
        except QuorumError as error:
            raise QuorumError(
                f"{error}; this site's update stays in the sum: the same command, started again, goes on waiting, and "
                "does not train again"
            ) from error
    received = time.perf_counter()
    with aggregate:
        participant.receive(aggregate)
        header = aggregate.header
    done = time.perf_counter()
    dice, verified = task.dice(participant.model.state), participant.model.site.verified
    sites = (
        f"sum of {len(header.sites)} updates, {'' if verified else f'not ({params.scheme} is approximate) '}verified"
    )
    print(f"{here}: Dice {dice:.4f} on held-out data; {sites}", flush=True)
    try:
        participant.store_model(header)
    except SecAggError as error:  # another site stores the next one
        print(f"{here}: the global model is not stored on the server: {error}", file=sys.stderr, flush=True)
    return SiteRecord(
        round=round,
        dice=dice,
        nbytes=participant.update_nbytes,
        train_seconds=train_seconds,
        encrypt_seconds=encrypt_seconds,
        upload_seconds=sent - start,
        wait_seconds=received - sent,
        decrypt_seconds=done - received,
        clipped=clipped,
        verified=verified,
    )


class Printed(Reporter):
    """Lines for the terminal."""

    def step(self, what: str) -> AbstractContextManager[Report]:
        """Show a bar on a terminal, a line elsewhere."""
        return progress(what)

    def news(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def warning(self, line: str) -> None:
        """Print a line on standard error."""
        print(line, file=sys.stderr, flush=True)
