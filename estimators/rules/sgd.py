"""Gradient descent. Arithmetic of `torch.optim.SGD` without momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Scalar, Slots, check_fields


@dataclass(frozen=True, kw_only=True, eq=False)
class SGD:
    """theta' = theta - lr g.

    Args:
        lr: learning rate, a number or a 0-d tensor.

    Raises:
        HypergradientError: ``lr`` is negative.
    """

    lr: Scalar
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0})

    @property
    def gradient_step(self) -> Scalar:
        return self.lr

    def init(self, param: Tensor) -> Slots:
        return {}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        return -self.lr * grad, {}

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        return {}, param + self.lr * grad
