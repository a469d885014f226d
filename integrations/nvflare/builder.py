"""The builder: secagg's kits come with those of ``nvflare provision``."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from secagg import Config
from secagg.errors import ConfigError
from secagg.setup import ProjectFile, Provisioner

from . import framework as nvflare
from .common import FOLDER


class SecAggBuilder(nvflare.Builder):
    """Puts a kit into ``startup/secagg`` of the server and each client, signed as NVFlare signs its own files.

    In project.yml it comes after ``CertBuilder``; its arguments are the blocks of a configuration, ``he`` and so on.
    """

    def __init__(self, **config: Any) -> None:
        self._config = Config.from_dict(config)

    def build(self, project: nvflare.Project, ctx: nvflare.ProvisionContext) -> None:
        """Make a federation and its kits, once."""
        state, signer = Path(ctx.get_state_dir(), FOLDER), ctx.get(nvflare.CtxKey.ROOT_PRI_KEY)
        if signer is None:
            raise ConfigError("SecAggBuilder signs with the key of CertBuilder, which must come before it")
        if state.exists():
            raise ConfigError(f"{state} has a federation: change it by `secagg add-site`, or move it away")
        clients = {client.name: client for client in project.get_clients()}
        with TemporaryDirectory(dir=ctx.get_state_dir()) as room:
            made, kits = (Path(mkdtemp(dir=room)) for _ in range(2))
            Provisioner.create(ProjectFile(project.name, self._config, tuple(clients)), made / "authority", kits)
            for kit in kits.iterdir():
                folder = Path(ctx.get_kit_dir(clients.get(kit.name, project.get_server())), FOLDER)
                shutil.move(kit, folder)
                nvflare.sign_folders(folder, signer, signature_file=nvflare.ProvFileName.SIGNATURE_JSON)
            made.rename(state)
