"""BatchNorm's variances near 1e-5 under the coarse presets: they went below zero, and validation was not a number."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet

import secagg
from secagg.site import GlobalModel

ROUNDS = 6


def network() -> UNet:
    torch.manual_seed(0)
    return UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), num_res_units=1, norm="batch"
    )


def train(net: torch.nn.Module, seed: int) -> None:
    """A few steps on images of 0 … 0.04, as those that are scaled by 1/255 twice, of which most is black."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(20):
        images = 0.04 * torch.rand(2, 1, 16, 16, generator=generator) ** 2
        loss = torch.nn.functional.cross_entropy(net(images), (images[:, 0] > 0.01).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("preset", ["exact", "smallest"])
def test_validation_stays_a_number(preset: str) -> None:
    config = secagg.Config.from_dict(
        {"he": {"preset": preset}, "aggregation": {"min_clients": 3, "max_clients": 4, "max_abs": 8.0}}
    )
    keys = secagg.generate_keys(config)
    models = [GlobalModel(secagg.Client(config, keys.client, f"site-{index}"), network()) for index in range(3)]
    images = 0.04 * torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(99)) ** 2
    touched = 0
    for round in range(ROUNDS):
        aggregator = secagg.Aggregator(config, keys.server, round)
        for index, model in enumerate(models):
            net = network()
            model.load(net)
            train(net, 10 * round + index)
            if round == ROUNDS - 1:  # all channels die: their variances are below a step, and rounded with it
                for name, value in net.state_dict().items():
                    if name.endswith("running_var"):
                        value.zero_()
            aggregator.add(model.encrypt(net, 1.0))
        aggregate = aggregator.finish()
        before = models[0].state
        mean = models[0].site.decrypt(aggregate, like=before)
        for model in models:
            model.apply(aggregate)
        for name, value in models[0].state.items():
            assert all(torch.equal(value, model.state[name]) for model in models if value.is_floating_point())
            if name.endswith("running_var"):
                assert (value >= 0).all()
                touched += int((before[name] + mean[name] < 0).sum())
        net = network()
        models[0].load(net)
        net.eval()
        assert torch.isfinite(net(images)).all()
    assert touched  # the sums alone would have been negative
