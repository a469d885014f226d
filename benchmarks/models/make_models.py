"""Make the lists of shapes in this folder from the libraries that the networks are in: ``python make_models.py``.

Each is what ``secagg plan`` reads, a tensor a line. Networks are made without values, of the sizes that their papers
have: nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks.nets import SegResNet
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

CLASSES = 1000
RANK, ADAPTED = 8, ("q_proj", "v_proj")

State = Mapping[str, torch.Tensor]


def models() -> dict[str, State]:
    """Return the state dict of each model by name, on a device that holds no values."""
    with torch.device("meta"):
        return {
            "segresnet": SegResNet(init_filters=16, out_channels=2).state_dict(),  # Clara's, 4.7 M parameters
            "resnet50": ResNetForImageClassification(ResNetConfig(num_labels=CLASSES)).state_dict(),
            "vit-b": ViTForImageClassification(ViTConfig(num_labels=CLASSES)).state_dict(),  # B/16, 224 × 224
            "lora": adapter(LlamaForCausalLM(LlamaConfig())),  # of 7 B
            "logistic": {"weight": torch.empty(64, 10), "bias": torch.empty(10)},  # of the digits, 8 × 8 pixels
        }


def adapter(network: torch.nn.Module) -> State:
    """Return the matrices of LoRA beside the layers that it adapts, named and ordered as peft saves them."""
    state = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] in ADAPTED:
            state[f"base_model.model.{name}.lora_A.weight"] = torch.empty(RANK, layer.in_features)
            state[f"base_model.model.{name}.lora_B.weight"] = torch.empty(layer.out_features, RANK)
    return state


def text(state: State) -> str:
    """Return the file of a state dict: the shape of each tensor, and the dtype of what is no float32."""
    lines = []
    for name, tensor in state.items():
        shape, dtype = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        entry = shape if dtype == "float32" else {"shape": shape, "dtype": dtype}
        lines.append(f"{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def texts() -> dict[str, str]:
    """Return the contents of each file by its name."""
    return {f"{name}.json": text(state) for name, state in models().items()}


if __name__ == "__main__":
    for file, content in texts().items():
        (Path(__file__).parent / file).write_text(content, encoding="utf-8")
