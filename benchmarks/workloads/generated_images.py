"""Generated images, for workloads that were given no data: classes can be told apart, and drawing costs next to nothing.

An image is a coarse pattern of its class plus coarse noise, enlarged to size on the device. Only the coarse numbers are
drawn on the CPU (so that all devices see the same images), since drawing every pixel there would take longer than a
training step takes on a GPU, and no more than the batch in use is alive, as with a data loader.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..problems.common import generator

GRID = 8
"""Side of the coarse pattern."""


def generated_images(
    *,
    classes: int,
    channels: int,
    side: int,
    batch: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    noise: float = 1.0,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """number -> (images (batch, channels, side, side), labels (batch,)), a pure function of the number.

    Args:
        classes: patterns to choose from.
        channels, side: of an image.
        batch: images.
        seed: of patterns and draws.
        dtype, device: of the images; labels are int64.
        noise: standard deviation, where the patterns have 1.
    """
    patterns = torch.randn(classes, channels, GRID, GRID, generator=generator(seed))

    def drawn(number: int) -> tuple[Tensor, Tensor]:
        own = generator(1_000_003 * (seed + 1) + number)
        labels = torch.randint(classes, (batch,), generator=own)
        coarse = patterns[labels] + noise * torch.randn(batch, channels, GRID, GRID, generator=own)
        images = interpolate(coarse.to(device=device, dtype=dtype), size=(side, side), mode="bilinear")
        return images, labels.to(device)

    return drawn
