"""Adadelta (Zeiler 2012). Arithmetic of `torch.optim.Adadelta`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields, undo
from .parts import UnlessCoupled, average, coupled, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class Adadelta:
    """s' = r s + (1-r) g^2;  d = sqrt(x + eps) / sqrt(s' + eps) g;  x' = r x + (1-r) d^2;  theta' = theta - lr d.

    eps stands inside the roots, so that nothing is infinite where no gradient ever came; but d would have slope 1 there,
    hundreds of times that of other coordinates, and is defined to have slope 0 as in `Adam`.

    Args:
        lr: learning rate.
        rho: decay rate r of both averages, in [0, 1).
        eps: inside both roots.
        weight_decay: coupled (L2) decay.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1.0
    rho: Scalar = 0.9
    eps: Scalar = 1e-6
    weight_decay: Scalar = 0.0
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 1  # nearly g / |g|; after that no derivative is negative

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "rho": 0.0, "eps": 0.0, "weight_decay": 0.0}, below={"rho": 1.0})

    def init(self, param: Tensor) -> Slots:
        return {name: param.new_zeros(param.shape) for name in ("square_avg", "acc_delta")}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        grad = coupled(grad, self.weight_decay, param)
        square = average(grad * grad, slots["square_avg"], self.rho)
        step = self._scaled(grad, square, slots["acc_delta"])
        return -self.lr * step, {"square_avg": square, "acc_delta": average(step * step, slots["acc_delta"], self.rho)}

    def _scaled(self, grad: Tensor, square: Tensor, steps: Tensor) -> Tensor:
        return where_live(square > 0, root(steps + self.eps) / root(square + self.eps) * grad)

    @UnlessCoupled
    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        square, rho = slots["square_avg"], self.rho
        # x' = r x + (1-r) (x + eps) q with q = g^2 / (s' + eps), solved for x; where r + (1-r) q is 0, x had no influence
        q = (1 - rho) * grad * grad / (square + self.eps)
        kept = rho + q
        steps = torch.where(kept > 0, (slots["acc_delta"] - q * self.eps) / torch.where(kept > 0, kept, 1.0), 0.0)
        steps = steps.clamp_min(0.0)
        before = {"square_avg": undo(square, (1 - rho) * grad * grad, rho).clamp_min(0.0), "acc_delta": steps}
        return before, param + self.lr * self._scaled(grad, square, steps)
