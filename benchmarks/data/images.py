"""What readers of images return."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelledImages(NamedTuple):
    """A set of images in memory.

    Attributes:
        name: what it is and where it is from, for outputs.
        images: (n, channels, height, width) bytes.
        labels: (n,) classes from 0.
        classes: number of classes; every label is below it.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: int

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of each channel over the whole set, each (channels, 1, 1)."""
        # by histogram: a copy of the set in floating point would take four times the memory of the set, and more
        values = np.arange(256, dtype=np.float64)
        shares = [np.bincount(c.reshape(-1), minlength=256) / c.size for c in self.images.swapaxes(0, 1)]
        mean = np.array([p @ values for p in shares])
        deviation = np.sqrt(np.array([p @ (values - m) ** 2 for p, m in zip(shares, mean, strict=True)]))
        deviation[deviation == 0] = 1.0  # a channel that is the same everywhere
        shape = (-1, 1, 1)
        return mean.astype(np.float32).reshape(shape), deviation.astype(np.float32).reshape(shape)
