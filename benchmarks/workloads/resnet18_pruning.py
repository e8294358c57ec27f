"""Pruning CIFAR-10 with ResNet-18 (SAMA, section 4.3 and Table 7): images of 32x32 in 10 classes.

A user's CIFAR is used as it is: standardised by channel, no augmentation, so that a step's batch is a pure function of
its number. The meta batch is drawn from the same training set, as the paper has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.cifar import READS, SIDE, read_cifar
from ..problems.common import require, require_positive
from .base import GENERATED, Workload
from .images import generated_images, read_images
from .pruning import CITATION, pruning
from .resnet import resnet

__all__ = ["ABOUT", "CITATION", "READS", "SIZES", "make"]

ABOUT = "ResNet-18 on small images; a Meta-Weight-Net reads each example's loss and uncertainty"
CLASSES = 10


@dataclass(frozen=True)
class Size:
    """Channels of the first stage, images a step, and their side."""

    width: int
    batch: int
    side: int


SIZES = {"tiny": Size(4, 8, 16), "base": Size(64, 128, 32), "large": Size(128, 256, 32)}
"""All have the 18 layers; "base" is the paper's, "large" has four times the weights."""


def make(
    *,
    size: str = "tiny",
    unroll: int = 2,
    batch: int | None = None,
    width: int | None = None,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    ema: float = 0.95,
    detach: bool = False,
    data: str | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Workload:
    """Build it.

    Args:
        size: one of `SIZES`.
        unroll: steps before a meta step; the paper's is 2.
        batch: images a step, at least 2 (BatchNorm); the size's own if None.
        width: channels of the first stage; the size's own if None. 64 is ResNet-18.
        lr, weight_decay: of SGD with momentum; the paper's (Table 7).
        ema: what the average of the weights keeps of itself at a meta step; see `pruning`.
        detach: the weight net reads loss and uncertainty as constants.
        data: a CIFAR folder (see `READS`), whose images are 32x32 in every size; generated ones if None.
        seed: of the weights and the data.
        dtype, device: of everything.

    Raises:
        ValueError: no such size, or a number out of range.
        DataError: ``data`` is no CIFAR folder.
    """
    require(size in SIZES, f"size={size!r}: choose one of {', '.join(SIZES)}")
    own = SIZES[size]
    n, w = (own.batch if batch is None else batch), (own.width if width is None else width)
    require_positive(unroll=unroll, width=w)
    require(n >= 2, f"batch={n}: BatchNorm needs at least 2 images")
    side, classes = own.side, CLASSES
    if data is None:
        described = f"{GENERATED}: {side}x{side} patterns and noise in {classes} classes"
        drawn = generated_images(classes=classes, channels=3, side=side, batch=n, seed=seed, dtype=dtype, device=device)
    else:
        cifar = read_cifar(data)
        side, classes, described = SIDE, cifar.classes, cifar.name
        drawn = read_images(cifar, batch=n, seed=seed, dtype=dtype, device=device)
    return pruning(
        "resnet18_pruning",
        ABOUT,
        lambda: resnet(18, width=w, classes=classes, small=True),
        drawn,
        data=described,
        batch=n,
        unroll=unroll,
        lr=lr,
        weight_decay=weight_decay,
        ema=ema,
        detach=detach,
        seed=seed,
        dtype=dtype,
        device=device,
        settings={"size": size, "depth": 18, "width": w, "side": side, "classes": classes, "data": described},
    )
