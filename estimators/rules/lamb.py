"""LAMB (You et al. 2020, algorithm 2): Adam's direction, each leaf scaled to the length of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields
from .parts import Betas, averages, coupled, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class LAMB(Betas):
    """r = mhat / (sqrt(shat) + eps) + weight_decay theta;  theta' = theta - lr (||theta|| / ||r||) r, leaf by leaf.

    mhat, shat are Adam's moments with bias correction. The paper's phi is the identity. It leaves open what happens if
    a norm is 0: the trust ratio ||theta|| / ||r|| is then 1, as in optax (flax takes 0, and a zero leaf never moves).
    A change scaled to a given length has no derivative along itself; a leaf of one entry therefore has none at all.
    Coordinates that never received a gradient have derivative 0, as in `Adam`.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root, outside it.
        weight_decay: inside the ratio, beside Adam's direction; it does not enter the moments.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-6
    weight_decay: Scalar = 0.0
    decoupled_weight_decay: ClassVar[bool] = True
    diagonal: ClassVar[bool] = False
    settles: ClassVar[int] = 10  # Adam's

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "eps": 0.0, "weight_decay": 0.0})
        self._check_betas()

    def init(self, param: Tensor) -> Slots:
        return {name: param.new_zeros(param.shape) for name in ("exp_avg", "exp_avg_sq")}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        after = averages(grad, slots, self.beta1, self.beta2)
        mean, square = after["exp_avg"] / (1 - self.beta1**t), after["exp_avg_sq"] / (1 - self.beta2**t)
        direction = where_live(square > 0, mean / (root(square) + self.eps))
        direction = coupled(direction, self.weight_decay, param)
        size, length = torch.linalg.vector_norm(param), torch.linalg.vector_norm(direction)
        scaled = (size > 0) & (length > 0)
        trust = torch.where(scaled, size / torch.where(scaled, length, 1.0), 1.0)
        return -self.lr * trust * direction, after
