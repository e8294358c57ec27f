"""RAdam (Liu et al. 2020): Adam with rectified variance. Arithmetic of `torch.optim.RAdam`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Scalar, Slots, check_fields
from .parts import Betas, averages, choose, coupled, decoupled, earlier_averages, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class RAdam(Betas):
    """theta' = theta - lr mhat r_t sqrt(1-b2^t) / (sqrt(s') + eps) if rho_t > 5, else theta - lr mhat.

    mhat = m'/(1-b1^t), rho_inf = 2/(1-b2) - 1, rho_t = rho_inf - 2 t b2^t/(1-b2^t), and r_t^2 =
    (rho_t-4)(rho_t-2) rho_inf / ((rho_inf-4)(rho_inf-2) rho_t). With the default b2 the first five steps are
    momentum, and so is their derivative. After that, coordinates that never received a gradient have derivative 0, as
    in `Adam`.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root before its bias is corrected, unlike in `Adam`.
        weight_decay: coupled (L2) decay unless ``decoupled_weight_decay``.
        decoupled_weight_decay: theta shrinks by lr * weight_decay * theta beside the step.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    decoupled_weight_decay: bool = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 10  # momentum for five steps, then Adam's derivative, still unsettled

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "eps": 0.0, "weight_decay": 0.0})
        self._check_betas()

    def init(self, param: Tensor) -> Slots:
        return {name: param.new_zeros(param.shape) for name in ("exp_avg", "exp_avg_sq")}

    def _step(self, slots: Slots, t: int) -> Tensor:
        """The change without decay, from the slots after the step."""
        longest, forgotten = 2 / (1 - self.beta2) - 1, self.beta2**t
        rho = longest - 2 * t * forgotten / (1 - forgotten)
        rectified = rho > 5
        # any number above 5 on the branch not taken, where the formula may be infinite or a root of a negative number
        rho, longest = choose(rectified, rho, 6.0), choose(rectified, longest, 6.0)
        rectifier = ((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)) ** 0.5
        mean, square = slots["exp_avg"] / (1 - self.beta1**t), slots["exp_avg_sq"]
        adaptive = where_live(square > 0, mean * (1 - forgotten) ** 0.5 / (root(square) + self.eps))
        return -self.lr * choose(rectified, rectifier * adaptive, mean)

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        if not self.decoupled_weight_decay:
            grad = coupled(grad, self.weight_decay, param)
        after = averages(grad, slots, self.beta1, self.beta2)
        change = self._step(after, t)
        if self.decoupled_weight_decay:
            change = decoupled(change, self.lr, self.weight_decay, param)
        return change, after

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        param = param - self._step(slots, t)
        if self.decoupled_weight_decay:
            param = param / (1 - self.lr * self.weight_decay)
        else:
            grad = coupled(grad, self.weight_decay, param)
        return earlier_averages(grad, slots, self.beta1, self.beta2), param
