"""Adam with decoupled weight decay (Loshchilov & Hutter 2019). Arithmetic of `torch.optim.AdamW`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .adam import Adam
from .base import Scalar, Slots
from .parts import is_zero


@dataclass(frozen=True, kw_only=True, eq=False)
class AdamW(Adam):
    """`Adam`'s step from the undecayed gradient, and theta shrinks by lr * weight_decay * theta beside it.

    Args: as `Adam`; ``weight_decay`` does not enter the moments, hence not the adaptation either.
    """

    weight_decay: Scalar = 1e-2
    decoupled_weight_decay: ClassVar[bool] = True
    diagonal: ClassVar[bool] = True
    step_ = Adam.step_
    pull = Adam.pull

    def _decayed_grad(self, grad: Tensor, param: Tensor) -> Tensor:
        return grad

    def _through_decay(self, on_grad: Tensor, on_change: Tensor) -> Tensor | None:
        return None if is_zero(self.weight_decay) else on_change * (-self.lr * self.weight_decay)

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        change, after = super().update(grad, slots, t, param)
        return change - self.lr * self.weight_decay * param, after

    def derivative(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> Tensor:
        return super().derivative(grad, slots, t, param)  # decay beside the step has no part in it

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        before, moved = super().rewind(grad, slots, t, param)
        return before, moved / (1 - self.lr * self.weight_decay)
