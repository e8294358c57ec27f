"""Adam (Kingma & Ba 2015), L2 decay and AMSGrad included. Arithmetic of `torch.optim.Adam`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields
from .in_place import counter, fused
from .parts import Betas, averages, coupled, earlier_averages, is_zero, larger, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class Adam(Betas):
    """m' = b1 m + (1-b1) g;  s' = b2 s + (1-b2) g^2;  theta' = theta - lr/(1-b1^t) m' / (sqrt(s'/(1-b2^t)) + eps).

    The square root has an infinite slope at 0. A coordinate whose second moment is exactly 0 has never received
    a gradient (an unused embedding row, a dead unit): its change is the constant that torch computes, and its
    derivative is *defined* as 0. So there is no NaN, and such coordinates do not swamp an adapted cotangent with
    the 1/eps that the formula would give them.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root, outside it.
        weight_decay: coupled (L2) decay: g + weight_decay * theta replaces g.
        amsgrad: divide by the largest second moment so far (Reddi et al. 2018).

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    amsgrad: bool = False
    decoupled_weight_decay: ClassVar[bool] = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 10  # with noise about a third of D is negative at t = 2, under 5 % from t = 10 on

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "eps": 0.0, "weight_decay": 0.0})
        self._check_betas()

    def init(self, param: Tensor) -> Slots:
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.amsgrad else [])]
        return {name: param.new_zeros(param.shape) for name in names}

    def _step(self, slots: Slots, t: int) -> Tensor:
        """-lr/(1-b1^t) m / (sqrt(s/(1-b2^t)) + eps) from the slots after the step."""
        mean, square = slots["exp_avg"], slots["max_exp_avg_sq" if self.amsgrad else "exp_avg_sq"]
        ratio = mean / (root(square) / (1 - self.beta2**t) ** 0.5 + self.eps)
        return -self.lr / (1 - self.beta1**t) * where_live(square > 0, ratio)

    def _decayed_grad(self, grad: Tensor, param: Tensor) -> Tensor:
        return coupled(grad, self.weight_decay, param)

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        grad = self._decayed_grad(grad, param)
        after = averages(grad, slots, self.beta1, self.beta2)
        if self.amsgrad:
            after["max_exp_avg_sq"] = larger(after["exp_avg_sq"], slots["max_exp_avg_sq"])
        return self._step(after, t), after

    def derivative(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> Tensor:
        """-lr/(1-b1^t) [(1-b1) - (1-b2) m' g / (r c d)] / d with r = sqrt(s'), c = sqrt(1-b2^t), d = r/c + eps; 0 where s' is."""
        if not self.decoupled_weight_decay and not is_zero(self.weight_decay):
            grad = self._decayed_grad(grad, param - self._step(slots, t))
        mean, square = slots["exp_avg"], slots["max_exp_avg_sq" if self.amsgrad else "exp_avg_sq"]
        correction, rate = (1 - self.beta2**t) ** 0.5, self.lr / (1 - self.beta1**t)
        deviation = square.sqrt()
        denominator = (deviation / correction).add_(self.eps)
        through_root = (mean * grad).div_(deviation.mul_(denominator))
        if self.amsgrad:  # a maximum of an earlier step does not move
            through_root.masked_fill_(square > slots["exp_avg_sq"], 0.0)
        slope = through_root.mul_(rate * (1 - self.beta2) / correction).sub_(rate * (1 - self.beta1)).div_(denominator)
        return slope.masked_fill_(square == 0, 0.0)

    def pull(
        self, grad: Tensor, slots: Slots, t: int, param: Tensor, on_change: Tensor, on_slots: Slots
    ) -> tuple[Tensor, Slots, Tensor | None] | None:
        """The chain rule through m', s' and -a m' / (r / c + eps), with r = sqrt(s'), c = sqrt(1-b2^t), a = lr/(1-b1^t)."""
        if self.amsgrad:
            return None
        b1, b2, correction, rate = self.beta1, self.beta2, (1 - self.beta2**t) ** 0.5, self.lr / (1 - self.beta1**t)
        grad = self._decayed_grad(grad, param)
        mean = torch.lerp(slots["exp_avg"], grad, 1 - b1)
        square = (slots["exp_avg_sq"] * b2).addcmul_(grad, grad, value=float(1 - b2))
        dead = square == 0
        deviation = square.sqrt_()
        denominator = (deviation / correction).add_(self.eps)
        through = (on_change / denominator).masked_fill_(dead, 0.0)
        on_mean = through * -rate
        through.mul_(mean).div_(denominator.mul_(deviation).masked_fill_(dead, 1.0))
        on_square = through.mul_(rate / (2 * correction))
        if "exp_avg" in on_slots:
            on_mean.add_(on_slots["exp_avg"])
        if "exp_avg_sq" in on_slots:
            on_square.add_(on_slots["exp_avg_sq"])
        on_grad = (on_mean * (1 - b1)).addcmul_(grad, on_square, value=float(2 * (1 - b2)))
        on_before = {"exp_avg": on_mean.mul_(b1), "exp_avg_sq": on_square.mul_(b2)}
        return on_grad, on_before, self._through_decay(on_grad, on_change)

    def _through_decay(self, on_grad: Tensor, on_change: Tensor) -> Tensor | None:
        return None if is_zero(self.weight_decay) else on_grad * self.weight_decay

    def step_(self, params: list[Tensor], grads: list[Tensor], slots: list[Slots], t: int) -> None:
        names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        moments = [[s[name] for s in slots if name in s] for name in names]
        fused(
            torch._fused_adamw_ if self.decoupled_weight_decay else torch._fused_adam_, params, grads, *moments,
            [counter(t, params[0])] * len(params), lr=self.lr, beta1=self.beta1, beta2=self.beta2, eps=self.eps,
            weight_decay=self.weight_decay, amsgrad=self.amsgrad, maximize=False,
        )  # fmt: skip

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        param = param - self._step(slots, t)
        grad = self._decayed_grad(grad, param)
        before = earlier_averages(grad, slots, self.beta1, self.beta2)
        if self.amsgrad:
            # Where the maximum was set by this step its earlier value is lost, and does not matter: any below will do.
            new = slots["max_exp_avg_sq"] <= slots["exp_avg_sq"]
            before["max_exp_avg_sq"] = torch.where(new, 0.0, slots["max_exp_avg_sq"])
        return before, param
