"""Gradient descent. Arithmetic of `torch.optim.SGD` without momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields
from .in_place import fused
from .parts import coupled


@dataclass(frozen=True, kw_only=True, eq=False)
class SGD:
    """theta' = theta - lr (g + weight_decay theta).

    Args:
        lr: learning rate, a number or a 0-d tensor.
        weight_decay: coupled (L2) decay.

    Raises:
        HypergradientError: a field is negative.
    """

    lr: Scalar
    weight_decay: Scalar = 0.0
    linear: ClassVar[bool] = True
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 0  # the derivative is lr, always

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "weight_decay": 0.0})

    @property
    def gradient_step(self) -> Scalar:
        return self.lr

    def init(self, param: Tensor) -> Slots:
        return {}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        return -self.lr * coupled(grad, self.weight_decay, param), {}

    def derivative(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> Scalar:
        return -self.lr

    def step_(self, params: list[Tensor], grads: list[Tensor], slots: list[Slots], t: int) -> None:
        fused(
            torch._fused_sgd_, params, grads, [], lr=self.lr, weight_decay=self.weight_decay, momentum=0.0,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        return {}, (param + self.lr * grad) / (1 - self.lr * self.weight_decay)
