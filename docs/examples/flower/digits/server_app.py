"""What the server does: add what nodes send, which it cannot read."""

import os

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits.task import new_model
from secagg.integrations.flower import SecAggStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    nodes = context.run_config["num-nodes"]
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    strategy = SecAggStrategy(strategy, os.environ["SECAGG_SERVER_KIT"])
    strategy.start(grid, ArrayRecord(new_model()), num_rounds=context.run_config["num-server-rounds"])
