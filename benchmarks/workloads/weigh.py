"""Small networks that make hyperparameters of a data set's quality: Meta-Weight-Net and label correction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from estimators import Tree

HIDDEN = 100
"""Units of the hidden layer in Shu et al. 2019."""


def two_layers(
    name: str,
    inputs: int,
    outputs: int,
    *,
    source: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str,
    hidden: int = HIDDEN,
) -> Tree:
    """Leaves of a perceptron with one hidden layer, drawn as `torch.nn.Linear`'s: uniform within inputs^-1/2.

    Args:
        name: what the leaves' names begin with.
        inputs, outputs, hidden: widths.
        source: of the draws; on the CPU, so that devices see the same numbers.
        dtype, device: of the leaves.

    Returns:
        "<name>.0.weight" (hidden, inputs), "<name>.0.bias" (hidden,), "<name>.2.weight" (outputs, hidden) and
        "<name>.2.bias" (outputs,), named as in ``Sequential(Linear, ReLU, Linear)``.
    """

    def layer(at: str, wide: int, narrow: int) -> Tree:
        def uniform(*shape: int) -> Tensor:
            return ((2 * torch.rand(shape, generator=source) - 1) / wide**0.5).to(dtype=dtype, device=device)

        return {f"{name}.{at}.weight": uniform(narrow, wide), f"{name}.{at}.bias": uniform(narrow)}

    return layer("0", inputs, hidden) | layer("2", hidden, outputs)


def perceptron(leaves: Tree, name: str, x: Tensor) -> Tensor:
    """(b, inputs) -> (b, outputs) through the leaves of `two_layers`, in their dtype under autocast too: it costs nothing
    here, and a central difference of weights rounded to bfloat16 would be mostly rounding."""
    first = leaves[f"{name}.0.weight"]
    with torch.autocast(first.device.type, enabled=False):
        x = linear(x.to(first.dtype), first, leaves[f"{name}.0.bias"]).relu()
        return linear(x, leaves[f"{name}.2.weight"], leaves[f"{name}.2.bias"])


def weights(hparams: Tree, features: Tensor, name: str = "weight") -> Tensor:
    """Meta-Weight-Net (Shu et al. 2019): what is known of each example -> its weight in (0, 1).

    Args:
        hparams: hold ``two_layers(name, k, 1, ...)``.
        features: (b, k), or (b,) if k = 1: an example's loss, and whatever else tells of it.

    Returns:
        (b,)
    """
    return perceptron(hparams, name, features.reshape(len(features), -1))[:, 0].sigmoid()


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension. Not torch's own, through which reverse over forward mode is refused (torch 2.13): written
    out, every estimator can differentiate what lies between the hyperparameters and the loss."""
    spread = (x - x.amax(-1, keepdim=True)).exp()  # the top cancels, its derivative too
    return spread / spread.sum(-1, keepdim=True)
