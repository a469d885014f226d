"""A training script of NVFlare's Client API, as that of its hello-pt example: digits, and a small network of torch.

As a module, it is what the same training does without NVFlare, in the clear.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nvflare.client as flare
import torch
from sklearn.datasets import load_digits
from torch import nn

SITES = ("site-1", "site-2", "site-3")


def network() -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def train(net: nn.Module, site: str, round: int) -> tuple[float, int]:
    """Return the accuracy of what was received, and the steps that were trained: sites have more and less data."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    begin, end = {"site-1": (0, 200), "site-2": (200, 600), "site-3": (600, 1300)}[site]
    net.eval()
    accuracy = float((net(images[1300:]).argmax(1) == labels[1300:]).float().mean())
    net.train()
    optimizer, steps = torch.optim.SGD(net.parameters(), 0.1), 0
    torch.manual_seed(round)
    for batch in (begin + torch.randperm(end - begin)).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        steps += 1
    return accuracy, steps


def main(notes: Path) -> None:
    net = network()
    flare.init()
    site = flare.get_site_name()
    while flare.is_running():
        received = flare.receive()
        net.load_state_dict(received.params)
        accuracy, steps = train(net, site, received.current_round)
        with (notes / site).open("a") as file:
            file.write(f"{received.current_round} {accuracy!r} {received.metrics}\n")
        metrics, meta = {"accuracy": accuracy}, {"NUM_STEPS_CURRENT_ROUND": steps}
        flare.send(flare.FLModel(params=net.state_dict(), metrics=metrics, meta=meta))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
