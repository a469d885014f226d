"""Uploads an update, says so in the middle, and then stalls until it is killed."""

from __future__ import annotations

import sys
import time

from secagg.integrations.grpc import SiteSession
from secagg.trust import Tls

address, site, certificates, path = sys.argv[1:]


def stall(done: int, total: int) -> None:
    if done > total // 2:
        print(done, flush=True)
        time.sleep(3600)


SiteSession(address, site, tls=Tls.load(certificates)).upload(path, progress=stall)
