"""RMSprop (Tieleman & Hinton 2012), centred (Graves 2013) and with momentum. Arithmetic of `torch.optim.RMSprop`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Scalar, Slots, check_fields, undo
from .parts import UnlessCoupled, average, coupled, is_zero, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class RMSprop:
    """s' = a s + (1-a) g^2;  theta' = theta - lr g / (sqrt(s') + eps);  centred: s' - mean^2 in place of s'.

    With momentum, b' = mu b + g / (sqrt(s') + eps) and theta' = theta - lr b'.

    Coordinates that never received a gradient (s' = 0) have derivative 0, as in `Adam`. A centred variance is 0 as well
    where all gradients were equal; rounding may take it below 0, where torch answers NaN: it then counts as 0, and
    its root as constant.

    Args:
        lr: learning rate.
        alpha: decay rate of the averages, in [0, 1).
        eps: added to the root, outside it.
        weight_decay: coupled (L2) decay.
        momentum: mu, at least 0; the number 0 keeps no buffer.
        centered: divide by the standard deviation instead of the root mean square.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1e-2
    alpha: Scalar = 0.99
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    momentum: Scalar = 0.0
    centered: bool = False
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 1  # g / |g|; after that no derivative is negative

    def __post_init__(self) -> None:
        check_fields(
            self,
            at_least={"lr": 0.0, "alpha": 0.0, "eps": 0.0, "weight_decay": 0.0, "momentum": 0.0},
            below={"alpha": 1.0},
        )

    def init(self, param: Tensor) -> Slots:
        names = ["square_avg"]
        names += [] if is_zero(self.momentum) else ["momentum_buffer"]
        names += ["grad_avg"] if self.centered else []
        return {name: param.new_zeros(param.shape) for name in names}

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        grad = coupled(grad, self.weight_decay, param)
        after = {**slots, "square_avg": average(grad * grad, slots["square_avg"], self.alpha)}
        if self.centered:
            after["grad_avg"] = average(grad, slots["grad_avg"], self.alpha)
        step = self._scaled(grad, after)
        if not is_zero(self.momentum):
            step = after["momentum_buffer"] = self.momentum * slots["momentum_buffer"] + step
        return -self.lr * step, after

    def _scaled(self, grad: Tensor, slots: Slots) -> Tensor:
        """g / (sqrt(s) + eps) from the slots after the step."""
        square = slots["square_avg"]
        variance = square - slots["grad_avg"] ** 2 if self.centered else square
        return where_live(square > 0, grad / (root(variance) + self.eps))

    @UnlessCoupled
    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        step = self._scaled(grad, slots)
        # rounding must not leave a negative average of squares
        square = undo(slots["square_avg"], (1 - self.alpha) * grad * grad, self.alpha).clamp_min(0.0)
        before = {**slots, "square_avg": square}
        if self.centered:
            before["grad_avg"] = undo(slots["grad_avg"], (1 - self.alpha) * grad, self.alpha)
        if is_zero(self.momentum):
            return before, param + self.lr * step
        buffer = slots["momentum_buffer"]
        before["momentum_buffer"] = undo(buffer, step, self.momentum)
        return before, param + self.lr * buffer
