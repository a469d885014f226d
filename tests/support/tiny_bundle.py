"""A MONAI bundle as sites have them: a small UNet finds what is bright in noise, which the bundle draws itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Everything but what a site says when it runs it: ``--site 1``.
TRAIN: dict[str, Any] = {
    "imports": ["$import torch", "$import monai", "$from monai.handlers import from_engine"],
    "bundle_root": ".",
    "site": 0,
    "device": "$torch.device('cpu')",
    "draw": "$torch.Generator().manual_seed(@site)",
    "pictures": "$[torch.randn(1, 8, 8, generator=@draw) for _ in range(12 + @site)]",
    "items": "$[{'image': picture, 'label': (picture > 0).float()} for picture in @pictures]",
    "network": {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [4, 8],
        "strides": [2],
        "norm": "batch",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
            {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        ],
    },
    "train": {
        "dataset": {"_target_": "Dataset", "data": "$@items[4:]"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 4},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.05},
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": 100,
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "optimizer": "@train#optimizer",
            "loss_function": {"_target_": "DiceLoss", "sigmoid": True},
            "train_handlers": [
                {
                    "_target_": "ValidationHandler",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": 1,
                }
            ],
        },
    },
    "validate": {
        "dataset": {"_target_": "Dataset", "data": "$@items[:4]"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@validate#dataloader",
            "network": "@network",
            "postprocessing": "@postprocessing",
            "key_val_metric": {
                "val_mean_dice": {"_target_": "MeanDice", "output_transform": "$from_engine(['pred', 'label'])"}
            },
        },
    },
    "initialize": ["$torch.set_num_threads(1)", "$monai.utils.set_determinism(seed=0)"],
    "run": ["$@train#trainer.run()"],
}

METADATA = {"version": "0.1.0", "monai_version": "1.6", "task": "bright", "network_data_format": {}}


def write_bundle(folder: Path, **more: Any) -> Path:
    """Write a bundle; `more` are files of configuration beside its own, by name, as text or as what JSON has of it."""
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True)
    files = {"train": TRAIN, "metadata": METADATA, **more}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=4)
        (folder / "configs" / f"{name}.json").write_text(text, encoding="utf-8")
    return folder
