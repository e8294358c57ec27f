"""Batches of images, as pure functions of a number: generated, or drawn from a set that was read.

A generated image is a coarse pattern of its class plus coarse noise, enlarged to size on the device: classes can be told
apart. Only the coarse numbers are drawn on the CPU (so that all devices see the same images), since drawing every pixel
there would take longer than a training step takes on a GPU; and no more than the batch in use is alive, as with a data
loader.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.images import LabelledImages
from ..problems.common import of_number

GRID = 8
"""Side of the coarse pattern."""

Drawn = Callable[[int], tuple[Tensor, Tensor]]
"""number -> (images (batch, channels, height, width), labels (batch,) in int64)."""


def patterns(classes: int, channels: int, source: torch.Generator) -> Tensor:
    """(classes, channels, GRID, GRID): what the images of each class have in common."""
    return torch.randn(classes, channels, GRID, GRID, generator=source)


def noisy(coarse: Tensor, side: int, source: torch.Generator, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(n, channels, GRID, GRID) patterns -> (n, channels, side, side) images with noise of standard deviation 1."""
    coarse = coarse + torch.randn(coarse.shape, generator=source)
    return interpolate(coarse.to(device=device, dtype=dtype), size=(side, side), mode="bilinear")


def generated_images(
    *,
    classes: int,
    channels: int,
    side: int,
    batch: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Drawn:
    """Batches of generated images.

    Args:
        classes: patterns to choose from.
        channels, side: of an image.
        batch: images.
        seed: of patterns and draws.
        dtype, device: of the images.
    """
    shared = patterns(classes, channels, of_number(seed, -2))  # not ``generator(seed)``: weights are drawn from it

    def drawn(number: int) -> tuple[Tensor, Tensor]:
        source = of_number(seed, number)
        labels = torch.randint(classes, (batch,), generator=source)
        return noisy(shared[labels], side, source, dtype, device), labels.to(device)

    return drawn


def read_images(
    images: LabelledImages, *, batch: int, seed: int, dtype: torch.dtype, device: torch.device | str
) -> Drawn:
    """Batches drawn with replacement from a set in memory, each channel with mean 0 and standard deviation 1.

    The set stays on the CPU as bytes; a batch is moved and scaled when it is drawn.
    """
    pool, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels)
    mean, deviation = (torch.from_numpy(x).to(device=device, dtype=dtype) for x in images.moments())

    def drawn(number: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(pool), (batch,), generator=of_number(seed, number))
        return (pool[chosen].to(device).to(dtype) - mean) / deviation, labels[chosen].to(device)

    return drawn
