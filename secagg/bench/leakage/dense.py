"""The analytic attack: the gradient of a dense layer is a product of two vectors, and one of them is its input.

Of one image, the gradient of the weights is d·xᵀ with d that of the biases and x what the layer was given (Phong et al.
2017, section 3; Geiping et al. 2020, proposition 3.1). Where a part of the weights is hidden, as many equations are
left, for far fewer unknowns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import cosine_similarity

from .inversion import Cost
from .victims import Victim
from .view import View

_TURNS = 50


def layer_inputs(victim: Victim, view: View) -> Tensor | None:
    """Return what the first dense layer was given, each up to a factor above 0; None if it cannot be told.

    Of shape (images, inputs), NaN where no weight of an input is seen.
    """
    if not victim.dense:
        return None
    named = dict(zip(victim.sizes, torch.split(view.values, list(victim.sizes.values()), dim=1), strict=True))
    biases = named[f"{victim.dense}.bias"]
    weights = named[f"{victim.dense}.weight"].reshape(len(biases), biases.shape[1], -1)
    known = ~biases[0].isnan()
    seen = ~weights[0].isnan()
    if not known.any() or not seen[known].any():
        return None
    return torch.stack([_complete(*pair, seen, known) for pair in zip(weights, biases, strict=True)])


def features_cost(victim: Victim, inputs: Tensor) -> Cost:
    """Return the cost of images by what the layers before the dense one make of them: 1 − cosine similarity."""
    network = victim.features
    assert network is not None
    found = {name: victim.parameters[name] for name, _ in network.named_parameters()}
    told = ~inputs[0].isnan()

    def features(image: Tensor) -> Tensor:
        output: Tensor = functional_call(network, found, (image[None],))
        return output[0]

    return lambda images: 1 - cosine_similarity(vmap(features)(images)[:, told], inputs[:, told], dim=1)


def _complete(weights: Tensor, biases: Tensor, seen: Tensor, known: Tensor) -> Tensor:
    """Return x of a matrix d·xᵀ that is known in part, by least squares in turns, from the biases that are known."""
    matrix, mask = weights.nan_to_num(0.0).double(), seen.double()
    given = torch.where(known, biases, 0.0).double()
    left, right = given, torch.zeros(matrix.shape[1], dtype=torch.float64)
    for _ in range(_TURNS):
        right = _solve(matrix.T, mask.T, left)
        left = _solve(matrix, mask, right)
    right = torch.where(seen.any(0), right, torch.nan)
    return (right * torch.sign(left @ given)).float()


def _solve(matrix: Tensor, mask: Tensor, other: Tensor) -> Tensor:
    weight = mask @ other.square()
    return torch.where(weight > 0, matrix @ other / weight.clamp_min(1e-300), 0.0)
