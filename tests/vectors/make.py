"""Makes the vectors; docs/wire-format.md says what is right and what is a fault.

python tests/vectors/make.py            the same bytes again, from the good files and the keys that are checked in
python tests/vectors/make.py --fresh    good files under new keys first: ciphertexts are random
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import pinned  # noqa: E402
import pinned_scales  # noqa: E402
import tail_by_hand  # noqa: E402
from configs import (  # noqa: E402
    BASED,
    BEFORE,
    CALIBRATED,
    CONFIGS,
    EPOCH,
    FOLLOWING,
    PROJECT,
    ROUND,
    WEIGHTS,
    arrays_of,
)
from container import Container  # noqa: E402
from container_faults import container_faults  # noqa: E402
from entries import index, keys_of  # noqa: E402
from maker import Good, Maker, prefix_of  # noqa: E402
from project_by_hand import EARLIER, earlier, project, receipt  # noqa: E402
from project_faults import project_faults  # noqa: E402
from scales_faults import scales_faults  # noqa: E402
from scheme_faults import scheme_faults  # noqa: E402
from sum_faults import sum_faults  # noqa: E402
from tail_faults import tail_faults  # noqa: E402

#: The files of a round: the last site first, so that the order of an aggregate is not that of names.
SITES = {"site-2": "-2", "site-1": ""}


def make_good() -> None:
    """Write keys, updates and aggregates under new keys."""
    import secagg

    keys: dict[str, Any] = {}
    for name, block in CONFIGS.items():
        config, (client, server) = secagg.Config.from_dict(block), keys_of(name)
        if client not in keys:
            keys[client] = secagg.generate_keys(config, EPOCH)
            keys[client].client.save(HERE / client)
            keys[client].server.save(HERE / server)
            (HERE / client).chmod(0o644)  # it keeps no secret, and a checkout would widen it anyway
        known = None
        if name == PROJECT:
            layout = secagg.Client(config, keys[client].client, "site-1").layout(arrays_of(name, "site-1")).to_json()
            blob = project(block, Container.read((HERE / server).read_bytes()).header, layout).to_bytes()
            (HERE / f"good-{name}-project.secagg").write_bytes(blob)
            known = secagg.Project.from_bytes(blob)
        make_round = Round(name, config, keys[client], known)
        if name == FOLLOWING:
            make_following(make_round)
            continue
        base = make_round.first_base() if name in BASED else None
        scales = None
        if name in CALIBRATED:
            scales = make_round.sum(base, calibrates=True)
            make_round.save("scales", scales)
        aggregate = make_round.sum(base, calibration=scales)
        make_round.save("aggregate", aggregate)
        if name == PROJECT:
            make_project(make_round, aggregate)


class Round:
    """Makes the files of a configuration."""

    def __init__(self, name: str, config: Any, keys: Any, project: Any) -> None:
        self.name, self.config, self.keys, self.project = name, config, keys, project

    def party(self, site: str) -> Any:
        import secagg

        identity = secagg.Identity(tail_by_hand.identity(site)) if self.project else None
        party = secagg.Client(self.config, self.keys.client, site, identity=identity, project=self.project)
        party.restore_carry(b"")
        return party

    def first_base(self) -> bytes:
        return self.party("site-1").base(arrays_of(self.name, "site-1"))

    def sum(
        self,
        base: bytes | None,
        round: int = ROUND,
        calibration: Any = None,
        saves: bool = True,
        calibrates: bool = False,
    ) -> Any:
        """What sites send in a round, saved, and its sum."""
        import secagg

        kind = "calibration" if calibrates else "update"
        aggregator = secagg.Aggregator(self.config, self.keys.server, round=round, project=self.project, kind=kind)
        for site, suffix in SITES.items():
            party, state = self.party(site), arrays_of(self.name, site)
            if calibrates:
                update = party.calibrate(state, WEIGHTS[site], round, base=base)
            else:
                update = party.encrypt(state, WEIGHTS[site], round, base=base, calibration=calibration)
            if saves:
                self.save(f"{kind}{suffix}", update)
            aggregator.add(update)
        return aggregator.finish()

    def save(self, name: str, update: Any) -> None:
        update.save(self.path(name))

    def path(self, name: str) -> Path:
        return HERE / f"good-{prefix_of(self.name)}{name}.secagg"


def make_following(make_round: Round) -> None:
    """Rounds whose scales follow from the round before, and the model that the next one begins from."""
    from secagg.scheme.scales import Scales

    first = make_round.sum(make_round.first_base(), 0, saves=False)
    make_round.save("first", first)
    before = make_round.sum(first.next_base, ROUND - 1, Scales(BEFORE), saves=False)
    make_round.save("before", before)
    aggregate = make_round.sum(before.next_base, calibration=before)
    make_round.save("aggregate", aggregate)
    party = make_round.party("site-1")
    party.decrypt(aggregate)
    party.encrypt_model(
        make_round.path("model"),
        arrays_of(make_round.name, "site-1"),
        round=ROUND + 1,
        base=aggregate.next_base,
        scales=party.scales_after(aggregate),
    )


def make_project(make_round: Round, aggregate: Any) -> None:
    """Models, a receipt, and the same sum under an earlier manifest."""
    name, model = make_round.name, arrays_of(make_round.name, "site-1")
    for part, tensors in (("model", model), ("model-empty", {"empty": model["empty"]})):
        path = make_round.path(part)
        make_round.party("site-1").encrypt_model(path, tensors, round=ROUND + 1, base=aggregate.next_base)
    make_round.path("receipt").write_bytes(receipt(Container.read(make_round.path("update").read_bytes())))
    before = Container.read(aggregate.to_bytes())
    before.header["manifest"] = earlier(len(EARLIER) - 1)
    tail_by_hand.fit(before, Container.read((HERE / keys_of(name)[0]).read_bytes()))
    tail_by_hand.sign(before)
    make_round.path("aggregate-earlier").write_bytes(before.to_bytes())


def write(folder: Path) -> None:
    """Write every vector with a fault, the pinned ones, and the index, into a folder."""
    good = Good(HERE)
    maker = Maker(good)
    container_faults(maker)
    scheme_faults(maker)
    scales_faults(maker)
    tail_faults(maker)
    sum_faults(maker)
    project_faults(maker)
    for vector in maker.vectors:
        (folder / vector.file).write_bytes(vector.blob)
    for name, content in (
        ("index", index(good, maker.vectors)),
        ("expansion", pinned.expansions()),
        ("pads", pinned.pads()),
        ("tags", pinned.tags()),
        ("scales", pinned_scales.scales()),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="make the good files anew first")
    if parser.parse_args().fresh:
        make_good()
    for path in HERE.glob("bad-*.secagg"):
        path.unlink()
    write(HERE)
