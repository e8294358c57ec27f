"""What the rules are held to: reference optimizers, and states to start from."""

from __future__ import annotations

import torch
from torch import Tensor

from estimators import Rule
from estimators.rules import Slots

F64 = torch.float64


def warm(rule: Rule, shape: tuple[int, ...], seed: int, updates: int = 4) -> tuple[Tensor, Slots]:
    """A parameter, and slots that hold some earlier gradients: a state that a run could be in."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(shape, dtype=F64, generator=generator)
    slots = rule.init(theta)
    for t in range(1, updates + 1):
        grad = torch.randn(shape, dtype=F64, generator=generator)
        _, slots = rule.update(grad, slots, t, theta)
    return theta, slots
