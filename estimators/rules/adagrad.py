"""Adagrad (Duchi et al. 2011). Arithmetic of `torch.optim.Adagrad`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import HypergradientError
from .base import Scalar, Slots, check_fields
from .in_place import counter, fused
from .parts import UnlessCoupled, coupled, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class Adagrad:
    """S' = S + g^2;  theta' = theta - lr/(1 + (t-1) lr_decay) g / (sqrt(S') + eps).

    Coordinates whose S' is 0 have derivative 0, as in `Adam`.

    Args:
        lr: learning rate.
        lr_decay: makes the rate fall as 1/t.
        weight_decay: coupled (L2) decay.
        initial_accumulator_value: S before the first step, a number (first slots are constants).
        eps: added to the root, outside it.

    Raises:
        HypergradientError: a field is out of range, or ``initial_accumulator_value`` is a tensor.
    """

    lr: Scalar = 1e-2
    lr_decay: Scalar = 0.0
    weight_decay: Scalar = 0.0
    initial_accumulator_value: float = 0.0
    eps: Scalar = 1e-10
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 1  # g / |g|; after that no derivative is negative

    def __post_init__(self) -> None:
        if isinstance(self.initial_accumulator_value, Tensor):
            raise HypergradientError(
                "Adagrad(initial_accumulator_value=<tensor>): estimators take first slots for constants, so it cannot be a "
                "hyperparameter; give a number"
            )
        names = ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        check_fields(self, at_least=dict.fromkeys(names, 0.0))

    def init(self, param: Tensor) -> Slots:
        return {"sum": param.new_full(param.shape, self.initial_accumulator_value)}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        grad = coupled(grad, self.weight_decay, param)
        total = slots["sum"] + grad * grad
        return self._step(grad, total, t), {"sum": total}

    def step_(self, params: list[Tensor], grads: list[Tensor], slots: list[Slots], t: int) -> None:
        fused(
            torch._fused_adagrad_, params, grads, [s["sum"] for s in slots], [counter(t, params[0])] * len(params),
            lr=self.lr, lr_decay=self.lr_decay, weight_decay=self.weight_decay, eps=self.eps, maximize=False,
        )  # fmt: skip

    def _step(self, grad: Tensor, total: Tensor, t: int) -> Tensor:
        rate = self.lr / (1 + (t - 1) * self.lr_decay)
        return -rate * where_live(total > 0, grad / (root(total) + self.eps))

    @UnlessCoupled
    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        total = slots["sum"]
        # rounding must not leave a negative sum of squares
        return {"sum": (total - grad * grad).clamp_min(0.0)}, param - self._step(grad, total, t)
