"""Updates that lie in a folder, the kit of whoever adds them there, and the sum that an aggregator makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from signed import Signed

import secagg
from secagg.trust import ServerKit


def kit_of(signed: Signed, folder: Path) -> ServerKit:
    """The server's kit, as `secagg.trust.load_server_kit` would read it from the folder."""
    return ServerKit(folder, signed.config, signed.federation.keys.server, signed.project, signed.server)


def lay(updates: Sequence[secagg.Update], place: str | Path) -> list[str]:
    """Write updates to a folder or to a URL, and return where they lie."""
    urls = [f"{place}/{update.site}.secagg" for update in updates]
    for update, url in zip(updates, urls, strict=True):
        update.save(url)
    return urls


def summed(signed: Signed, updates: Sequence[secagg.Update]) -> bytes:
    """What `secagg.Aggregator` makes of updates or calibrations of one round."""
    first = updates[0].header
    aggregator = signed.aggregator(first.round, base=first.base, kind=first.kind)
    for update in updates:
        aggregator.add(update)
    return aggregator.finish().to_bytes()
