"""Heavy ball and Nesterov momentum. Arithmetic of `torch.optim.SGD(momentum=...)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import HypergradientError
from .base import Scalar, Slots, check_fields, undo
from .in_place import fused
from .parts import coupled, is_zero


@dataclass(frozen=True, kw_only=True, eq=False)
class Momentum:
    """b' = mu b + (1 - dampening) g;  theta' = theta - lr b'  (Nesterov: theta - lr (g + mu b')).

    As in torch, the first step sets b' = g whatever the dampening (and whatever the buffer holds), and ``momentum=0``
    ignores the dampening altogether. Unlike `torch.optim.SGD(differentiable=True)`, which detaches that first buffer, its
    derivative is exact.

    Args:
        lr: learning rate.
        momentum: mu in [0, 1).
        dampening: 0 gives the classical heavy ball, ``dampening=momentum`` an average of gradients.
        nesterov: look ahead by one step; needs ``dampening=0`` and a positive momentum.
        weight_decay: coupled (L2) decay: g + weight_decay * theta replaces g.

    Raises:
        HypergradientError: a field is out of range, or Nesterov with dampening.
    """

    lr: Scalar
    momentum: Scalar = 0.9
    dampening: Scalar = 0.0
    nesterov: bool = False
    weight_decay: Scalar = 0.0
    linear: ClassVar[bool] = True
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 0  # the derivative is a constant, always

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0}, below={"momentum": 1.0})
        if self.nesterov and (
            is_zero(self.momentum) or not (isinstance(self.dampening, Tensor) or self.dampening == 0)
        ):
            raise HypergradientError(
                "Momentum(nesterov=True) needs a positive momentum and dampening=0, as torch.optim.SGD does"
            )

    @property
    def _fresh(self) -> Scalar:
        """What a new gradient weighs in the buffer."""
        return 1.0 if is_zero(self.momentum) else 1 - self.dampening

    @property
    def gradient_step(self) -> Scalar:
        """Stable on a quadratic exactly when this rule is: lr(1-d)/(1+mu); Nesterov: lr(1+2mu)/(1+mu).

        The roots of z^2 - (1 + mu - lr(1-d) h) z + mu lie in the unit circle for 0 < lr(1-d) h < 2(1+mu); likewise
        for Nesterov's z^2 - (1 + mu)(1 - lr h) z + mu (1 - lr h): 0 < lr h < 2(1+mu)/(1+2mu).
        """
        if self.nesterov:
            return self.lr * (1 + 2 * self.momentum) / (1 + self.momentum)
        return self.lr * self._fresh / (1 + self.momentum)

    def init(self, param: Tensor) -> Slots:
        return {"momentum_buffer": param.new_zeros(param.shape)}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        grad = coupled(grad, self.weight_decay, param)
        if t == 1:
            buffer = grad
        else:
            buffer = self.momentum * slots["momentum_buffer"] + self._fresh * grad
        direction = grad + self.momentum * buffer if self.nesterov else buffer
        return -self.lr * direction, {"momentum_buffer": buffer}

    def derivative(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> Scalar:
        buffer = 1.0 if t == 1 else self._fresh
        return -self.lr * (1 + self.momentum * buffer if self.nesterov else buffer)

    def step_(self, params: list[Tensor], grads: list[Tensor], slots: list[Slots], t: int) -> None:
        buffers = [s["momentum_buffer"] for s in slots]
        if is_zero(self.momentum):
            for buffer, grad, param in zip(buffers, grads, params, strict=True):
                buffer.copy_(coupled(grad, self.weight_decay, param))
            buffers = []  # the kernel takes none
        fused(
            torch._fused_sgd_, params, grads, buffers, lr=self.lr, weight_decay=self.weight_decay,
            momentum=self.momentum, dampening=self.dampening, nesterov=self.nesterov, maximize=False,
            is_first_step=t == 1,
        )  # fmt: skip

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        buffer = slots["momentum_buffer"]
        if self.nesterov:
            param = (param + self.lr * (grad + self.momentum * buffer)) / (1 - self.lr * self.weight_decay)
        else:
            param = param + self.lr * buffer
        added = self._fresh * coupled(grad, self.weight_decay, param)
        before = torch.zeros_like(buffer) if t == 1 else undo(buffer, added, self.momentum)
        return {"momentum_buffer": before}, param
