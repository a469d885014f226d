"""Where a test runs: on the CPU always, and by ``pytest -m gpu`` on a GPU, the same code."""

from __future__ import annotations

import pytest
import torch

#: Parameters for ``device``; without a GPU, ``-m gpu`` says that it has tested nothing.
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device: nothing was run"),
        ],
    ),
]
