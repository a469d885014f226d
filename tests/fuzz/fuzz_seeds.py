"""Write the inputs that fuzzing begins from, all valid but for one. Run it after a change of the wire format."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import fuzz_paths  # noqa: F401
import numpy as np
from fuzz_handlers import (
    ASK,
    CHUNK,
    DOWNLOAD,
    FETCH,
    JOIN,
    MEASURED,
    RESTART,
    SEND,
    STATUS,
    TEMPLATES,
    UPLOAD,
    WAIT,
    Record,
    chunks_of,
)
from fuzz_worlds import (
    AUTHORITY,
    BASE,
    CORPUS,
    EARLIER,
    NAMES,
    ROUND,
    SCALES_SEED,
    SERVER,
    WORLDS,
    identity,
)
from signed import Parts

import secagg
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.wire.tail import Proof, signed_message


def calibrations(folder: Path) -> secagg.Update:
    """What sites exchange before a round, which the updates of "measured" then name."""
    world = WORLDS["measured"]
    aggregator = world.aggregator(kind="calibration")
    for name in NAMES:
        calibration = world.site(name).calibrate(world.state, 1.0, ROUND, base=BASE)
        aggregator.add(calibration)
        (folder / "seed-measured-calibration").write_bytes(calibration.to_bytes())
    scales = aggregator.finish()
    (folder / SCALES_SEED).write_bytes(scales.to_bytes())
    return scales


def parsers(folder: Path) -> None:
    scales = calibrations(folder)
    for scheme, world in WORLDS.items():
        updates = world.updates(scales)
        aggregator = world.aggregator()
        for update in updates:
            aggregator.add(update)
        (folder / f"seed-{scheme}-update").write_bytes(updates[0].to_bytes())
        aggregate = aggregator.finish()
        (folder / f"seed-{scheme}-aggregate").write_bytes(aggregate.to_bytes())
        if scheme == "words":  # one that lay there when the manifest came
            parts = Parts.of(aggregate).but(manifest=EARLIER)
            proofs = []
            for item, proof in zip(parts.header.contributions, parts.proofs, strict=True):
                message = signed_message(parts.header.of(item).head, proof.body)
                proofs.append(Proof(proof.body, identity(item.site).sign(message)))
            (folder / f"seed-{scheme}-earlier").write_bytes(replace(parts, proofs=tuple(proofs)).to_bytes())
        (folder / f"seed-{scheme}-project").write_bytes(world.project.sign(AUTHORITY))
        if scheme in ("words", "seeded"):
            world.key.save(folder / f"seed-{scheme}-client-key")
        if scheme in ("words", "seeded", "measured"):
            world.key.server.save(folder / f"seed-{scheme}-server-key")
    world = WORLDS["seeded"]
    world.site().encrypt_model(folder / "seed-model", world.state, round=ROUND, base=BASE)
    world.site().encrypt_model(folder / "seed-empty-model", {"e": np.zeros(0), "n": np.zeros(2, int)}, round=ROUND)
    update = world.site().encrypt(world.state, round=ROUND, base=BASE)
    (folder / "seed-receipt").write_bytes(secagg.Receipt.of(update, SERVER).to_bytes())
    # Patterns, ties, and BGV's planned params, whose blocks are large: its words are zeros here, under no key.
    he = {"lib": "seal", "config": {"scheme": "BGV", "value_bits": 8}}
    numbers = {"min_clients": 2, "max_clients": 4, "max_abs": {"default": 1.0, "w": 0.5}}
    bgv = secagg.Config.from_dict({"he": he, "encrypt": "conv", "aggregation": numbers})
    tied = np.zeros((1, 1, 2), np.float16)
    state = {"a.weight": tied, "b.weight": tied, "w": np.zeros(3), "running_var": np.ones(1), "n": np.zeros(2, int)}
    layout = secagg.Layout.of(state, bgv)
    project = replace(world.project, config=bgv, layout=layout, base=BASE)
    (folder / "seed-bgv-project").write_bytes(project.sign(AUTHORITY))
    header = replace(update.header, params=bgv.params, aggregation=bgv.aggregation, layout=layout)
    empty, tags = [bytes(frame.nbytes) for frame in header.frames], (0,) * header.tag_count
    (folder / "seed-bgv-update").write_bytes(Parts(header, empty, tags, update.tail.proofs).sealed().to_bytes())


def handlers(folder: Path) -> None:
    def send(template: int, caller: int, *options: int) -> Record:
        return Record(SEND, caller, bytes([template, *options]))

    head, *others = (pb.Chunk(data=chunk).SerializeToString() for chunk in chunks_of(TEMPLATES[False][0]))
    joins = [Record(JOIN, caller, b"") for caller in range(3)]
    first = [send(0, 0), send(1, 1), send(2, 2)]
    again = [send(8, 0), send(9, 1), Record(WAIT, 0, b"")]
    scripts = {
        "round": [*joins, *first, Record(FETCH, 0, bytes([0, 1, 1, 1]))],
        "rounds": [*joins, *first, *again, send(12, 0), send(13, 1), send(14, 2)],
        "resumed": [*joins, send(0, 0, 0, 1, 1), Record(ASK, 0, b"\0"), Record(RESTART, 0, b""), send(0, 0, 1)],
        "quorum": [joins[0], first[0], Record(WAIT, 0, b""), Record(FETCH, 0, bytes([0, 1, 1, 1])), first[1]],
        "models": [*joins, send(3, 1), Record(FETCH, 0, bytes([3, 0, 2, 1])), Record(FETCH, 2, bytes([3, 0, 2, 0]))],
        "strangers": [Record(JOIN, caller, b"") for caller in range(10)] + [send(0, caller) for caller in range(10)],
        "status": [Record(STATUS, 0, b""), *first[:2], Record(STATUS, 3, b""), Record(DOWNLOAD, 3, b"")],
        "bytes": [Record(UPLOAD, 0, head), *(Record(CHUNK, 0, chunk) for chunk in others)],
    }
    late = [send(4, 0), send(5, 1), Record(WAIT, 0, b"")]
    scales = Record(FETCH, 0, bytes([0, 1, 4, 1]))
    measured = {
        "measured": [*joins, *first, scales, send(4, 0), send(5, 1), send(6, 2), send(16, 0), send(17, 1), send(18, 2)],
        "measured-late": [*joins, *first[:2], Record(WAIT, 0, b""), scales, *first[2:], *late, send(6, 2)],
        "measured-restart": [*joins, *late, *first, Record(RESTART, 0, b""), *late, Record(RESTART, 0, b"")],
        "measured-alone": [joins[0], first[0], Record(WAIT, 0, b""), scales, Record(STATUS, 0, b""), first[1]],
    }
    for name, (begin, *others) in measured.items():
        scripts[name] = [Record(MEASURED + begin.operation, begin.caller, begin.payload), *others]
    for name, records in scripts.items():
        (folder / f"seed-{name}").write_bytes(b"".join(record.to_bytes() for record in records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=CORPUS)
    root = parser.parse_args().folder
    for make in (parsers, handlers):
        folder = root / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)


if __name__ == "__main__":
    main()
