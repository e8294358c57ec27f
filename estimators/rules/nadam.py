"""NAdam (Dozat 2016): Adam with Nesterov momentum. Arithmetic of `torch.optim.NAdam`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Scalar, Slots, check_fields, undo
from .parts import Betas, UnlessCoupled, averages, coupled, decoupled, earlier_averages, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class NAdam(Betas):
    """theta' = theta - lr [ (1-mu_t)/(1-P_t) g + mu_{t+1}/(1-P_{t+1}) m' ] / (sqrt(s'/(1-b2^t)) + eps).

    mu_t = b1 (1 - 0.96^(t momentum_decay) / 2), P_t = mu_1 ... mu_t; m', s' are Adam's moments. P is a slot, so that b1 and
    momentum_decay may be hyperparameters or change along the run. Coordinates that never received a gradient have
    derivative 0, as in `Adam`.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root, outside it.
        weight_decay: coupled (L2) decay unless ``decoupled_weight_decay``.
        momentum_decay: how fast mu_t rises to b1.
        decoupled_weight_decay: theta shrinks by lr * weight_decay * theta beside the step.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 2e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    momentum_decay: Scalar = 4e-3
    decoupled_weight_decay: bool = False
    diagonal: ClassVar[bool] = True
    settles: ClassVar[int] = 1  # g / |g|; from t = 2 on at most 2 % of D is negative: g itself outweighs the moments

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "eps": 0.0, "weight_decay": 0.0, "momentum_decay": 0.0})
        self._check_betas()

    def _mu(self, t: int) -> Scalar:
        return self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def init(self, param: Tensor) -> Slots:
        # shaped as mu: 0-d, unless b1 or momentum_decay differ by coordinate
        shape = torch.as_tensor(self._mu(1)).shape
        zeros = {name: param.new_zeros(param.shape) for name in ("exp_avg", "exp_avg_sq")}
        return {**zeros, "mu_product": param.new_ones(shape)}

    def _step(self, grad: Tensor, slots: Slots, t: int) -> Tensor:
        """The change without decoupled decay, from the slots after the step."""
        mu, following, product = self._mu(t), self._mu(t + 1), slots["mu_product"]
        mean = (1 - mu) / (1 - product) * grad + following / (1 - product * following) * slots["exp_avg"]
        square = slots["exp_avg_sq"]
        return -self.lr * where_live(square > 0, mean / (root(square / (1 - self.beta2**t)) + self.eps))

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        if not self.decoupled_weight_decay:
            grad = coupled(grad, self.weight_decay, param)
        after = averages(grad, slots, self.beta1, self.beta2)
        after["mu_product"] = slots["mu_product"] * self._mu(t)
        change = self._step(grad, after, t)
        if self.decoupled_weight_decay:
            change = decoupled(change, self.lr, self.weight_decay, param)
        return change, after

    @UnlessCoupled
    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        param = param - self._step(grad, slots, t)
        if self.decoupled_weight_decay:
            param = param / (1 - self.lr * self.weight_decay)
        product = slots["mu_product"]
        before = earlier_averages(grad, slots, self.beta1, self.beta2)
        return {**before, "mu_product": undo(product, torch.zeros_like(product), self._mu(t))}, param
