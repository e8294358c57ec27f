"""Residual networks (He et al. 2016) in torch.nn: 18 and 50 layers, for small images and for large ones.

BatchNorm normalises by the statistics of its batch and keeps no running ones. Statistics that a forward pass moves
would make the loss a function of how often an estimator has evaluated it, and what is wanted here is the loss of
training, which never reads them. (To classify single images, take the statistics in one pass over the training set.)
Two consequences: with data-parallel ranks each normalises by its own share of the batch, as is usual without
synchronised BatchNorm; and reverse over forward is refused where rows of the weights are wanted, because torch is not
known to be right through BatchNorm there, so that such products are double backward or central differences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from estimators import Tree

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Depth -> blocks in each of the four stages."""
EXPANSION = 4
"""A bottleneck block gives this many times the channels of its 3x3 convolution."""


def normalised_convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias (BatchNorm would cancel it), which keeps the size but for its stride, then BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, track_running_stats=False),
    )


class Block(nn.Module):
    """x -> relu(shortcut(x) + branch(x)); the shortcut is the identity where shapes allow it."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else normalised_convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.branch(x)).relu()


def _basic(inputs: int, width: int, stride: int) -> Block:
    branch = nn.Sequential(
        normalised_convolution(inputs, width, 3, stride), nn.ReLU(), normalised_convolution(width, width, 3)
    )
    return Block(branch, inputs, width, stride)


def _bottleneck(inputs: int, width: int, stride: int) -> Block:
    """The stride is the 3x3 convolution's, as in all released networks (the paper has it in the first one)."""
    branch = nn.Sequential(
        normalised_convolution(inputs, width, 1), nn.ReLU(),
        normalised_convolution(width, width, 3, stride), nn.ReLU(),
        normalised_convolution(width, EXPANSION * width, 1),
    )  # fmt: skip
    return Block(branch, inputs, EXPANSION * width, stride)


def resnet(depth: int, *, width: int, classes: int, small: bool) -> nn.Sequential:
    """The network, on the current default device.

    Args:
        depth: 18 (basic blocks) or 50 (bottlenecks).
        width: channels of the first stage; each next one has twice as many. Published: 64.
        classes: outputs.
        small: for images of 32x32 or so: a 3x3 stem that keeps the size, instead of a 7x7 one of stride 2 and a pool.

    Returns:
        (b, 3, h, w) images -> (b, classes) logits; without buffers.
    """
    if small:
        layers: list[nn.Module] = [normalised_convolution(3, width, 3), nn.ReLU()]
    else:
        layers = [normalised_convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    channels = width
    for i, blocks in enumerate(BLOCKS[depth]):
        for j in range(blocks):
            stride = 2 if i > 0 and j == 0 else 1
            make, expansion = (_basic, 1) if depth == 18 else (_bottleneck, EXPANSION)
            layers.append(make(channels, width * 2**i, stride))
            channels = width * 2**i * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def drawn_weights(net: nn.Module, source: torch.Generator, dtype: torch.dtype, device: torch.device | str) -> Tree:
    """A start for a network of convolutions, BatchNorm and linear layers, whose own tensors may be on "meta".

    Convolutions as He et al. 2015 (normal, fan-out, for ReLU), linear layers as torch's own, BatchNorm the identity.
    Drawn on the CPU, so that devices start alike, and leaf by leaf, so that no second copy of the weights is made.
    """
    start: Tree = {}
    for prefix, layer in net.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            shape = parameter.shape
            if isinstance(layer, nn.Conv2d):
                x = torch.randn(shape, generator=source) * (2 / (shape[0] * shape[2] * shape[3])) ** 0.5
            elif isinstance(layer, nn.Linear):
                x = (2 * torch.rand(shape, generator=source) - 1) / layer.in_features**0.5
            else:
                x = torch.ones(shape) if name == "weight" else torch.zeros(shape)
            start[f"{prefix}.{name}"] = x.to(device=device, dtype=dtype)
    return start
