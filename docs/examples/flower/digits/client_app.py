"""What a node does: train the model on its images, and evaluate it."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import fit, load_data, test
from secagg.integrations.flower import secagg_mod

app = ClientApp(mods=[secagg_mod])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the global model on this node's images."""
    (images, labels), _ = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    model = msg.content["arrays"].to_numpy_ndarrays()
    loss = fit(model, images, labels, context.run_config["learning-rate"], context.run_config["local-steps"])
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the global model on images of this node that it is not trained on."""
    _, (images, labels) = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    model = msg.content["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"accuracy": test(model, images, labels), "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
