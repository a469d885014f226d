"""A job as a user writes it: in the simulator, or in POC with kits that are provisioned.

Usage: nvflare_submit.py simulator|PROJECT.YML WORKSPACE NOTES CLIENTS
"""

from __future__ import annotations

import sys
from pathlib import Path

from nvflare.recipe.poc_env import PocEnv
from nvflare.recipe.sim_env import SimEnv
from nvflare_script import network

from secagg.integrations.nvflare import SecAggFedAvgRecipe


def main(where: str, workspace: str, notes: str, clients: str) -> None:
    recipe = SecAggFedAvgRecipe(
        model=network(),
        min_clients=int(clients),
        num_rounds=3,
        train_script=str(Path(__file__).with_name("nvflare_script.py")),
        train_args=notes,
        metrics=["accuracy"],
    )
    if where == "simulator":
        recipe.run(SimEnv(num_clients=int(clients), workspace_root=workspace))
        return
    run = recipe.run(PocEnv(num_clients=int(clients), project_conf_path=where))
    print("result:", run.get_result(timeout=300, clean_up=False))
    print("status:", run.get_status())


if __name__ == "__main__":
    main(*sys.argv[1:])
