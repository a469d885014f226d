"""``secagg aggregate``: the sum of a round whose updates lie in a folder or an object store."""

from __future__ import annotations

import argparse
import threading
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

from ..errors import ConfigError, one_line, show_size
from ..shards import Pool, SumJob, ThreadPool, aggregate
from ..storage.pinned import shown
from ..trust.kit import load_server_kit
from ..ui.progress import progress

EXAMPLE = """secagg aggregate 'round-3/*.secagg' --kit server --round 3 --out aggregate-3.secagg
secagg aggregate 's3://bucket/round-3/*.secagg' --kit server --round 3 --out s3://bucket/aggregate-3.secagg
secagg aggregate 's3://bucket/round-3/*.secagg' --kit server --round 3 --out s3://bucket/a-3.secagg --ray auto"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a round's updates where they lie, in a folder or an object store, without a server; nothing is decrypted.

    Each update must be signed by its site; one that is unfit is left out, and named. Stores are those that fsspec
    reaches, with the credentials of its configuration or of the environment, as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
    Partial sums lie beside the result until it is there: the same command, started again, goes on with them.
    """
    parser.add_argument("updates", nargs="+", metavar="URL", help="path or URL of an update, or a pattern with *")
    parser.add_argument("--kit", type=Path, required=True, metavar="FOLDER", help="the server's kit, opened")
    parser.add_argument("--round", type=int, required=True, metavar="N", help="the round that the updates are of")
    parser.add_argument("--out", required=True, metavar="URL", help="path or URL of the aggregate to write")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="add on this Ray cluster: HOST:PORT, ray://HOST:PORT, or auto (default: here)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="ranges that are added here at a time (default: one a processor)"
    )
    parser.add_argument("--shards", type=int, metavar="N", help="number of ranges (default: one each 32 MiB)")


def run(options: argparse.Namespace) -> None:
    """Add, with progress; say who was left out."""
    if options.ray is not None and options.workers is not None:
        raise ConfigError("--workers is of this machine: with --ray, the cluster's processors say how many there are")
    kit = load_server_kit(options.kit)
    lock, done, total = threading.Lock(), 0, 0
    with progress(f"adding the updates of round {options.round}") as bar, ExitStack() as quiet:

        def began(job: SumJob) -> None:
            nonlocal done, total
            done, total = 0, job.header.tail_offset * len(job.sources)

        def read(nbytes: int) -> None:
            nonlocal done
            with lock:
                done += nbytes
                bar(min(done, total), total)

        pool: Pool = ThreadPool(options.workers, read)
        if options.ray is not None:
            from ..integrations.ray import RayPool

            quiet.enter_context(redirect_stdout(None))  # where Ray tells of each worker that it has lost and replaced
            pool = RayPool(options.ray, read)
        report = aggregate(
            kit, options.updates, options.out, options.round, pool=pool, shards=options.shards, began=began
        )
    for url, error in report.left_out.items():
        print(f"left out: {shown(url)}: {type(error).__name__}: {one_line(str(error))}")
    header = report.header
    there = " (it was there already)" if not report.passes else ""
    print(
        f"the {header.kind} of round {header.round}, the sum of {len(header.sites)} updates, "
        f"{show_size(report.nbytes)}, is at {shown(options.out)}{there}"
    )
