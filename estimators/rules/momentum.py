"""Heavy ball and Nesterov momentum. Arithmetic of `torch.optim.SGD(momentum=...)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import HypergradientError
from .base import Scalar, Slots, check_fields


@dataclass(frozen=True, kw_only=True, eq=False)
class Momentum:
    """b' = mu b + (1 - dampening) g;  theta' = theta - lr b'  (Nesterov: theta - lr (g + mu b')).

    As in torch, the first step sets b' = g whatever the dampening. Unlike `torch.optim.SGD(differentiable=True)`,
    which detaches that first buffer, its derivative is exact.

    Args:
        lr: learning rate.
        momentum: mu in [0, 1).
        dampening: 0 gives the classical heavy ball, ``dampening=momentum`` an average of gradients.
        nesterov: look ahead by one step; needs ``dampening=0`` and a positive momentum.

    Raises:
        HypergradientError: a field is out of range, or Nesterov with dampening.
    """

    lr: Scalar
    momentum: Scalar = 0.9
    dampening: Scalar = 0.0
    nesterov: bool = False
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "momentum": 0.0}, below={"momentum": 1.0})
        if self.nesterov and not isinstance(self.dampening, Tensor) and self.dampening != 0:
            raise HypergradientError("Momentum(nesterov=True) needs dampening=0, as torch.optim.SGD does")

    @property
    def gradient_step(self) -> Scalar:
        """Stable on a quadratic exactly when this rule is: lr(1-d)/(1+mu); Nesterov: lr(1+2mu)/(1+mu).

        The roots of z^2 - (1 + mu - lr(1-d) h) z + mu lie in the unit circle for 0 < lr(1-d) h < 2(1+mu); likewise
        for Nesterov's z^2 - (1 + mu)(1 - lr h) z + mu (1 - lr h): 0 < lr h < 2(1+mu)/(1+2mu).
        """
        if self.nesterov:
            return self.lr * (1 + 2 * self.momentum) / (1 + self.momentum)
        return self.lr * (1 - self.dampening) / (1 + self.momentum)

    def init(self, param: Tensor) -> Slots:
        return {"momentum_buffer": param.new_zeros(param.shape)}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        if t == 1:
            buffer = grad
        else:
            buffer = self.momentum * slots["momentum_buffer"] + (1 - self.dampening) * grad
        direction = grad + self.momentum * buffer if self.nesterov else buffer
        return -self.lr * direction, {"momentum_buffer": buffer}

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        buffer = slots["momentum_buffer"]
        direction = grad + self.momentum * buffer if self.nesterov else buffer
        if t == 1 or (not isinstance(self.momentum, Tensor) and self.momentum == 0):
            before = buffer.new_zeros(buffer.shape)
        else:
            before = (buffer - (1 - self.dampening) * grad) / self.momentum
        return {"momentum_buffer": before}, param + self.lr * direction
