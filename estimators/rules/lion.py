"""Lion (Chen et al. 2023, algorithm 2): the sign of an interpolated momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields
from .parts import Betas, average, decoupled


@dataclass(frozen=True, kw_only=True, eq=False)
class Lion(Betas):
    """theta' = theta - lr (sign(b1 m + (1-b1) g) + weight_decay theta);  m' = b2 m + (1-b2) g.

    Its derivative with respect to the gradient is zero almost everywhere, so estimators that differentiate the rule refuse
    it; those that differentiate the loss alone do not.

    Args:
        lr: learning rate.
        betas: weights of the momentum in the step and in the average, each in [0, 1).
        weight_decay: decoupled.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1e-4
    betas: tuple[Scalar, Scalar] = (0.9, 0.99)
    weight_decay: Scalar = 0.0
    differentiable: ClassVar[bool] = False
    decoupled_weight_decay: ClassVar[bool] = True
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 0  # there is no derivative to settle

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "weight_decay": 0.0})
        self._check_betas()

    def init(self, param: Tensor) -> Slots:
        return {"exp_avg": param.new_zeros(param.shape)}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        change = -self.lr * torch.sign(average(grad, slots["exp_avg"], self.beta1))
        after = {"exp_avg": average(grad, slots["exp_avg"], self.beta2)}
        return decoupled(change, self.lr, self.weight_decay, param), after
