"""Pruning ImageNet with ResNet-50 (SAMA, section 4.3 and Table 6): images of 224x224 in 1000 classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..problems.common import require, require_positive
from .base import GENERATED, Workload
from .images import generated_images
from .pruning import CITATION, pruning
from .resnet import resnet

__all__ = ["ABOUT", "CITATION", "SIZES", "make"]

ABOUT = "ResNet-50 on large images; a Meta-Weight-Net reads each example's loss and uncertainty"


@dataclass(frozen=True)
class Size:
    """Channels of the first stage, images a step, their side, and classes."""

    width: int
    batch: int
    side: int
    classes: int


SIZES = {"tiny": Size(4, 8, 64, 10), "base": Size(64, 64, 224, 1000), "large": Size(64, 256, 224, 1000)}
"""All have the 50 layers; "large" has the paper's batch."""


def make(
    *,
    size: str = "tiny",
    unroll: int = 2,
    batch: int | None = None,
    width: int | None = None,
    side: int | None = None,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    ema: float = 0.95,
    detach: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step; the paper's is 2.
        batch: images a step, at least 2 (BatchNorm); the size's own if None.
        width: channels of the first stage; the size's own if None. 64 is ResNet-50.
        side: of the images; the size's own if None. At least 33, so that the last stage is more than one pixel.
        lr, weight_decay: of SGD with momentum; the paper's (Table 6).
        ema: what the average of the weights keeps of itself at a meta step; see `pruning`.
        detach: the weight net reads loss and uncertainty as constants.
        seed: of the weights and the data.
        dtype, device: of everything.

    Raises:
        ValueError: no such size, or a number out of range.
    """
    require(size in SIZES, f"size={size!r}: choose one of {', '.join(SIZES)}")
    own = SIZES[size]
    n, w, s = (
        (own.batch if batch is None else batch),
        (own.width if width is None else width),
        (own.side if side is None else side),
    )
    require_positive(unroll=unroll, width=w)
    require(n >= 2, f"batch={n}: BatchNorm needs at least 2 images")
    require(s >= 33, f"side={s}: must be at least 33")
    return pruning(
        "resnet50_pruning",
        ABOUT,
        lambda: resnet(50, width=w, classes=own.classes, small=False),
        generated_images(classes=own.classes, channels=3, side=s, batch=n, seed=seed, dtype=dtype, device=device),
        data=f"{GENERATED}: {s}x{s} patterns and noise in {own.classes} classes",
        batch=n,
        unroll=unroll,
        lr=lr,
        weight_decay=weight_decay,
        ema=ema,
        detach=detach,
        seed=seed,
        dtype=dtype,
        device=device,
        settings={"size": size, "depth": 50, "width": w, "side": s, "classes": own.classes},
    )
