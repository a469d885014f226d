"""DynUNet names every tensor twice: what is secret by one name must not be clear by the other.

Containers are read as a server reads them, without a key: what lies in the clear section is held against every value
that was to be encrypted, and against all its multiples, the private weight being one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from container import Container
from monai.networks.nets import DynUNet
from numpy.typing import NDArray

import secagg
from secagg.site import GlobalModel

#: Values in a row that are a multiple of a tensor's: more would be no chance.
_RUN = 6


def network(seed: int = 0) -> DynUNet:
    torch.manual_seed(seed)
    return DynUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[4, 8, 16],
        deep_supervision=True,
        deep_supr_num=1,
        norm_name=("instance", {"affine": True}),
    )


def trained(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Each parameter changed as training would, by values that no two have in common."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net


def clear_values(update: secagg.Update) -> NDArray[np.float64]:
    """All words of the clear section, as the server may read them."""
    container = Container.read(update.to_bytes())
    clear = [
        np.frombuffer(payload, "<i8")
        for frame, payload in zip(update.header.frames, container.payloads, strict=True)
        if frame.section == "clear"
    ]
    return np.concatenate([np.zeros(0), *clear]).astype(np.float64)


def multiples(values: NDArray[np.float64], secret: NDArray[np.float64]) -> bool:
    """Whether a run of values is a multiple of one of the secret."""
    run = secret[: min(_RUN, secret.size)]
    if values.size < run.size or not run.all():
        return False
    windows = np.lib.stride_tricks.sliding_window_view(values, run.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = windows / run
        spread = np.ptp(ratios, axis=1) / np.abs(ratios[:, 0])
    return bool((spread < 1e-6).any())


ENCRYPTS: dict[str, Any] = {
    "all": "all",
    "conv": "conv",
    "first-middle-last": "first-middle-last",
    "one name of a pair": {"include": ["input_block.*"]},
    "the other name of a pair": {"include": ["skip_layers.downsample.*"]},
    "a name of a head": {"include": ["deep_supervision_heads.*"]},
    "all but one name of a pair": {"exclude": ["input_block.*"]},
    "all but the other": {"exclude": ["skip_layers.*"]},
    "upsampling": {"include": ["upsamples.0.*", "skip_layers.next_layer.*"]},
}


@pytest.mark.parametrize("encrypt", ENCRYPTS.values(), ids=ENCRYPTS)
def test_no_encrypted_value_is_in_the_clear(encrypt: Any) -> None:
    config = secagg.Config.from_dict(
        {
            "he": {"lib": "flashe", "config": {"value_bits": 16}},
            "encrypt": encrypt,
            "aggregation": {"min_clients": 2, "max_clients": 4, "max_abs": 1.0, "max_weight": 100},
        }
    )
    keys = secagg.generate_keys(config)
    sites = [GlobalModel(secagg.Client(config, keys.client, f"site-{index}"), network()) for index in range(2)]
    locals_ = [trained(network(), seed) for seed in (1, 2)]
    updates = [model.encrypt(net, 37.0) for model, net in zip(sites, locals_, strict=True)]
    layout, values = updates[0].header.layout, clear_values(updates[0])
    # Each parameter is sent once, though the state dict has it twice.
    state = network().state_dict()
    assert sum(value.numel() for value in state.values()) > 1.9 * sum(spec.size for spec in layout.sent)
    assert sum(spec.size for spec in layout.sent) == sum(value.numel() for value in network().parameters())
    assert {name for spec in layout.tensors for name in spec.names} == set(state)
    changed = sites[0].difference(locals_[0])
    for spec in layout.sent:
        for name in spec.names:
            secret = changed[name].numpy().astype(np.float64).reshape(-1)
            assert spec.role in ("encrypted", "clear")
            # Those that are clear are found: so would the others be.
            assert multiples(values, secret) == (spec.role == "clear"), name
    assert layout.role("encrypted")
    aggregator = secagg.Aggregator(config, keys.server)
    for update in updates:
        aggregator.add(update)
    aggregate = aggregator.finish()
    for model in sites:
        model.apply(aggregate)
    again = network(9)
    sites[0].load(again)
    for name, value in again.state_dict().items():
        expected = sum(net.state_dict()[name] for net in locals_) / 2
        assert torch.allclose(value, expected, atol=2e-4), name
        assert torch.equal(value, sites[1].state[name])


def test_a_handler_that_copies_tensor_by_tensor() -> None:
    """What shares no memory any more is one tensor by the global model all the same."""
    config = secagg.Config.from_dict(
        {
            "he": {"lib": "flashe", "config": {"value_bits": 16}},
            "encrypt": {"include": ["input_block.*"]},
            "aggregation": {"min_clients": 2, "max_abs": 1.0},
        }
    )
    site = secagg.Client(config, secagg.generate_keys(config).client, "site-1")
    model = GlobalModel(site, network())
    copies = {name: value.clone() for name, value in trained(network(), 1).state_dict().items()}
    update = model.encrypt(copies, 1.0)
    values = clear_values(update)
    for spec in update.header.layout.role("encrypted"):
        assert not multiples(values, (copies[spec.name] - network().state_dict()[spec.name]).numpy().reshape(-1))
    # Without a global model that knows, the copies themselves are refused.
    with pytest.raises(secagg.errors.LayoutError, match="is clear and has the very values of"):
        site.encrypt(copies, 1.0)
