"""Write the inputs that fuzzing begins from: one of each kind, all valid. Run it after a change of the wire format."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from fuzz_worlds import AUTHORITY, BASE, CORPUS, NAMES, ROUND, SERVER, WORLDS

import secagg


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CORPUS / "parsers"
    folder.mkdir(parents=True, exist_ok=True)
    for scheme, world in WORLDS.items():
        updates = [world.site(name).encrypt(world.state, round=ROUND, base=BASE) for name in NAMES]
        aggregator = world.aggregator()
        for update in updates:
            aggregator.add(update)
        (folder / f"seed-{scheme}-update").write_bytes(updates[0].to_bytes())
        (folder / f"seed-{scheme}-aggregate").write_bytes(aggregator.finish().to_bytes())
        (folder / f"seed-{scheme}-project").write_bytes(world.project.sign(AUTHORITY))
        if scheme != "whole":
            world.key.save(folder / f"seed-{scheme}-client-key")
            world.key.server.save(folder / f"seed-{scheme}-server-key")
    world = WORLDS["seeded"]
    world.site().encrypt_model(folder / "seed-model", world.state, round=ROUND, base=BASE)
    world.site().encrypt_model(folder / "seed-empty-model", {"n": np.zeros(2, int)}, round=ROUND)
    update = world.site().encrypt(world.state, round=ROUND, base=BASE)
    (folder / "seed-receipt").write_bytes(secagg.Receipt.of(update, SERVER).to_bytes())


if __name__ == "__main__":
    main()
