"""Adamax (Kingma & Ba 2015, section 7.1): Adam with the infinity norm. Arithmetic of `torch.optim.Adamax`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields, undo
from .parts import Betas, UnlessCoupled, average, coupled, larger, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class Adamax(Betas):
    """m' = b1 m + (1-b1) g;  u' = max(b2 u, |g| + eps);  theta' = theta - lr/(1-b1^t) m' / u'.

    Where u' is no more than eps no gradient ever came: the derivative is defined as 0 there, as in `Adam`.

    Args:
        lr: learning rate.
        betas: decay rates of the mean and of the norm, each in [0, 1).
        eps: added to the absolute value of the gradient.
        weight_decay: coupled (L2) decay.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 2e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 20  # a maximum forgets slowly: 10 % of D is negative at t = 10, under 6 % from t = 20 on

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "eps": 0.0, "weight_decay": 0.0})
        self._check_betas()

    def init(self, param: Tensor) -> Slots:
        return {name: param.new_zeros(param.shape) for name in ("exp_avg", "exp_inf")}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        grad = coupled(grad, self.weight_decay, param)
        mean = average(grad, slots["exp_avg"], self.beta1)
        norm = larger(self.beta2 * slots["exp_inf"], grad.abs() + self.eps)
        after = {"exp_avg": mean, "exp_inf": norm}
        return self._step(after, t), after

    def _step(self, slots: Slots, t: int) -> Tensor:
        norm = slots["exp_inf"]
        return -self.lr / (1 - self.beta1**t) * where_live(norm > self.eps, slots["exp_avg"] / norm)

    @UnlessCoupled
    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        norm = slots["exp_inf"]
        # Where the norm was set by this step its earlier value is lost, and does not matter: any below will do.
        new = norm <= grad.abs() + self.eps
        before = {
            "exp_avg": undo(slots["exp_avg"], (1 - self.beta1) * grad, self.beta1),
            "exp_inf": torch.where(new, 0.0, undo(norm, torch.zeros_like(norm), self.beta2)),
        }
        return before, param - self._step(slots, t)
