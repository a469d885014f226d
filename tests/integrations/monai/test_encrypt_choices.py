"""What the named choices of `encrypt` mean for MONAI's networks: modules counted by hand, from their sources."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import monai.networks.blocks.crossattention
import monai.networks.blocks.patchembedding
import monai.networks.blocks.selfattention
import pytest
import torch
from monai.networks.nets import UNETR, DenseNet121, DynUNet, SegResNet, UNet, ViT

import secagg
from secagg.errors import ConfigError, PrivacyWarning
from secagg.site import network_state

pytestmark = pytest.mark.filterwarnings("ignore::secagg.errors.PrivacyWarning")  # that is what the choices are about


class Rearrange(torch.nn.Identity):
    """einops', which need not be installed: it has no tensors."""


@pytest.fixture(autouse=True)
def without_einops(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crossattention", "patchembedding", "selfattention"):
        monkeypatch.setattr(getattr(monai.networks.blocks, name), "Rearrange", Rearrange)


def vit(patches: str) -> ViT:
    return ViT(
        1, (16, 16), (8, 8), 8, 16, num_layers=2, num_heads=2, proj_type=patches, classification=True, spatial_dims=2
    )


def dynunet(supervised: bool) -> DynUNet:
    return DynUNet(
        2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], deep_supervision=supervised, deep_supr_num=1
    )


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "UNet": lambda: UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2),
    "SegResNet": lambda: SegResNet(3, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
    "DynUNet": lambda: dynunet(False),
    "DynUNet, deep supervision": lambda: dynunet(True),
    "ViT": lambda: vit("conv"),
    "ViT, perceptron": lambda: vit("perceptron"),
    "UNETR": lambda: UNETR(1, 2, (32, 32), feature_size=4, hidden_size=8, mlp_dim=16, num_heads=2, spatial_dims=2),
    "DenseNet121": lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2),
}

#: Number of convolutions, and the ends of their names. Tied tensors, DynUNet's, count once.
CONV: dict[str, tuple[int, tuple[str, ...]]] = {
    "UNet": (13, (".conv", ".residual")),  # 3 a level on the way down, 2 on each of the 2 ways up
    "SegResNet": (10, (".conv",)),  # the first, 2 + 3 down, 2 + 1 up, the last
    "DynUNet": (13, (".conv",)),  # 2 a level down, 3 on each of the 2 ways up, the last
    "DynUNet, deep supervision": (14, (".conv",)),
    "ViT": (1, ("patch_embedding.patch_embeddings",)),
    "UNETR": (
        33,
        (".conv", "vit.patch_embedding.patch_embeddings"),
    ),  # 3 + 7 + 4 + 1, 4 decoders of 4, the last, patches
    "DenseNet121": (120, (".conv", ".conv0", ".conv1", ".conv2")),  # all but the classifier
}

#: First, middle and last of the modules, in order, whose weight has two or more dimensions; tied ones by all names.
FIRST_MIDDLE_LAST: dict[str, set[str]] = {
    "UNet": {
        "model.0.conv.unit0.conv",
        "model.1.submodule.1.submodule.conv.unit0.conv",  # number 6 of 13
        "model.2.1.conv.unit0.conv",
    },
    "SegResNet": {"convInit.conv", "down_layers.1.1.conv2.conv", "conv_final.2.conv"},  # number 5 of 10
    "DynUNet": {
        "input_block.conv1.conv",
        "skip_layers.downsample.conv1.conv",
        "upsamples.0.transp_conv.conv",  # number 6 of 13
        "skip_layers.next_layer.upsample.transp_conv.conv",
        "output_block.conv.conv",
    },
    "DynUNet, deep supervision": {
        "input_block.conv1.conv",
        "skip_layers.downsample.conv1.conv",
        "upsamples.0.conv_block.conv1.conv",  # number 7 of 14
        "skip_layers.next_layer.upsample.conv_block.conv1.conv",
        "deep_supervision_heads.0.conv.conv",
        "skip_layers.next_layer.super_head.conv.conv",
    },
    "ViT": {"patch_embedding.patch_embeddings", "blocks.1.mlp.linear1", "classification_head.0"},  # number 5 of 10
    "ViT, perceptron": {"patch_embedding.patch_embeddings.1", "blocks.1.mlp.linear1", "classification_head.0"},
    "UNETR": {"vit.patch_embedding.patch_embeddings", "vit.blocks.9.attn.qkv", "out.conv.conv"},  # number 40 of 81
    "DenseNet121": {
        "features.conv0",
        "features.denseblock3.denselayer11.layers.conv2",  # number 60 of 121: 1, 12 + 1, 24 + 1, 22nd of the third
        "class_layers.out",
    },
}


def encrypted(network: str, choice: str) -> tuple[int, set[str], dict[str, Any]]:
    """Number of encrypted tensors, all their names, and the state dict."""
    config = secagg.Config.from_dict(
        {
            "he": {"lib": "flashe", "config": {"value_bits": 8}},
            "encrypt": choice,
            "aggregation": {"min_clients": 3, "max_clients": 3, "max_abs": 1},
        }
    )
    state = network_state(NETWORKS[network]())
    site = secagg.Client(config, secagg.generate_keys(config).client, "site-1")
    specs = site.layout(state).role("encrypted")
    return len(specs), {name for spec in specs for name in spec.names}, state


@pytest.mark.parametrize("network", CONV)
def test_conv(network: str) -> None:
    count, names, _ = encrypted(network, "conv")
    expected, ends = CONV[network]
    assert {name for name in names if not name.removesuffix(".weight").endswith(ends)} == set()
    assert all(name.endswith(".weight") for name in names)
    assert count == expected


def test_conv_of_a_network_without_convolutions() -> None:
    with pytest.raises(ConfigError, match="would encrypt no tensor"):
        encrypted("ViT, perceptron", "conv")


@pytest.mark.parametrize(("patches", "dense"), [("perceptron", True), ("conv", False)])
def test_a_dense_layer_on_pixels_is_spoken_of(
    patches: str, dense: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """`conv` leaves it clear, wherever the convolutions are that it encrypts."""
    warnings.simplefilter("always")
    network = UNETR(
        1, 2, (32, 32), feature_size=4, hidden_size=8, mlp_dim=16, num_heads=2, spatial_dims=2, proj_type=patches
    )
    monkeypatch.setitem(NETWORKS, "UNETR", lambda: network)
    encrypted("UNETR", "conv")
    (told,) = (str(one.message) for one in recwarn if issubclass(one.category, PrivacyWarning))
    first = "the first layer, 'vit.patch_embedding.patch_embeddings.1.weight', a dense one"
    assert (first in told) == dense


@pytest.mark.parametrize("network", FIRST_MIDDLE_LAST)
def test_first_middle_last(network: str) -> None:
    _, names, state = encrypted(network, "first-middle-last")
    assert names == {name for name in state if name.rpartition(".")[0] in FIRST_MIDDLE_LAST[network]}
    assert {name.rpartition(".")[0] for name in names} == FIRST_MIDDLE_LAST[network]
