"""Which of many patients was it? The update that each would have given, beside what is seen of the true one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .view import View


def identified(view: View, candidates: Tensor, truth: Sequence[int]) -> float | None:
    """Return the share of images whose own update is the most like what is seen; None where nothing is seen.

    Parameters
    ----------
    view : View
        What is seen.
    candidates : Tensor
        The update that the server expects of each candidate, of shape (candidates, values).
    truth : sequence of int
        Which candidate each image is.
    """
    if not view.places:
        return None
    alike = torch.stack([view.cosines(candidate[None]) for candidate in candidates])
    return float((alike.argmax(0) == torch.tensor(truth)).float().mean())
