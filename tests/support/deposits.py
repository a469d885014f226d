"""A federation whose server takes updates by a bucket: kits, a server in this process, and an S3 server over TLS."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from s3_server import S3Server

import secagg
from secagg.integrations.grpc import Server, SiteSession
from secagg.protocol import Progress
from secagg.setup.project_file import ProjectFile
from secagg.setup.provisioner import Provisioner
from secagg.trust import Tls
from secagg.trust.kit import SiteKit, load_server_kit, load_site_kit

SITES = ("site-1", "site-2", "site-3")
#: Quick params of two schemes; no library is needed for the first.
SCHEMES: dict[str, dict[str, Any]] = {
    "FLASHE": {"lib": "flashe", "config": {"scheme": "FLASHE", "value_bits": 24}},
    "BGV": {"lib": "seal", "config": {"scheme": "BGV", "value_bits": 8}},
}
AGGREGATION = {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 1.0}
#: Its update takes one part; that of `LARGE`, by FLASHE, three.
SMALL, LARGE = 5_000, 5_500_000


@dataclass
class World:
    """Parties, and where they meet."""

    folder: Path
    s3: S3Server
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/brain"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def rounds(self) -> list[str]:
        return sorted(path.name for path in (self.run / "round-0").iterdir())

    @property
    def spool(self) -> list[str]:
        return sorted(path.name for path in (self.run / "spool").iterdir())

    @property
    def objects(self) -> list[str]:
        """The names of what lies in the bucket."""
        found = self.s3.client().list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return [item["Key"] for item in found]

    def kit(self, site: str) -> SiteKit:
        return load_site_kit(self.folder / "kits" / site)

    def remove(self, site: str) -> None:
        """Revoke a site; the server has its new kit."""
        changed, kits = self.folder / "changed", self.folder / "new"
        for folder in (changed, kits):
            folder.mkdir()
        Provisioner.load(self.folder / "authority").remove((site,), changed, kits)
        shutil.copytree(kits / "server", self.folder / "kits" / "server", dirs_exist_ok=True)

    @contextmanager
    def serving(self, *, bucket: bool = True, **options: Any) -> Iterator[Server]:
        kit = load_server_kit(self.folder / "kits" / "server")
        server = Server(
            kit.config,
            kit.key,
            self.run,
            tls=Tls.load(kit.folder),
            project=kit.project,
            identity=kit.identity,
            bucket=self.url if bucket else None,
            **options,
        )
        with server:
            yield server

    def session(self, server: Any, site: str, timeout: float = 60.0) -> SiteSession:
        kit = self.kit(site)
        return SiteSession(server.address, site, tls=Tls.load(kit.folder), timeout=timeout, project=kit.project)

    def client(self, site: str) -> secagg.Client:
        kit = self.kit(site)
        client = secagg.Client(kit.config, kit.key, kit.name, identity=kit.identity, project=kit.project)
        client.restore_carry(b"")
        return client

    def state(self, site: str, count: int) -> Any:
        return np.random.default_rng(SITES.index(site)).uniform(-1, 1, count).astype(np.float32)

    def update(self, site: str, count: int = SMALL) -> secagg.Update:
        return self.client(site).encrypt({"w": self.state(site, count)}, weight=1.0)

    def join(self, server: Any, *sites: str) -> None:
        for site in sites:
            with self.session(server, site) as session:
                assert session.join().deposits

    def deposit(
        self, server: Any, update: secagg.Update, progress: Progress | None = None, timeout: float = 60.0
    ) -> bool:
        """Upload an update by the bucket; return whether it had been added before."""
        with self.session(server, update.site, timeout) as session:
            assert session.join().deposits
            uploaded = session.upload(update, progress)
            assert uploaded.receipt is not None
            return uploaded.already_added


@contextmanager
def world(
    folder: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, scheme: str = "FLASHE", *, storage: bool = True
) -> Iterator[World]:
    """Make the kits, and let this process find the S3 server over TLS."""
    config = secagg.Config.from_dict({"he": SCHEMES[scheme], "aggregation": AGGREGATION})
    hosts = (s3.https.removeprefix("https://"),) if storage else ()
    (folder / "kits").mkdir()
    Provisioner.create(
        ProjectFile("brain", config, SITES, ("localhost",), storage=hosts), folder / "authority", folder / "kits"
    )
    for name, value in s3.environment(secure=True).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSL_CERT_FILE", str(s3.tls.ca))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield World(folder, s3, s3.bucket())
