"""What several rules are made of: coupled decay, averages of moments, and derivatives where a root has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import HypergradientError
from .base import Scalar, Slots, check_fields, undo


class Betas:
    """The two decay rates of Adam and its kin, each in [0, 1)."""

    betas: tuple[Scalar, Scalar]

    @property
    def beta1(self) -> Scalar:
        return self.betas[0]

    @property
    def beta2(self) -> Scalar:
        return self.betas[1]

    def _check_betas(self) -> None:
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise HypergradientError(f"{type(self).__name__}(betas={self.betas}): give two rates, as (0.9, 0.999)")
        check_fields(self, at_least={"beta1": 0.0, "beta2": 0.0}, below={"beta1": 1.0, "beta2": 1.0})


def coupled(grad: Tensor, weight_decay: Scalar, param: Tensor) -> Tensor:
    """g + weight_decay * theta: the gradient of the loss with an L2 penalty, as torch's coupled decay has it."""
    return grad if is_zero(weight_decay) else grad + weight_decay * param


def decoupled(change: Tensor, lr: Scalar, weight_decay: Scalar, param: Tensor) -> Tensor:
    """``change`` with theta's own shrinking by lr * weight_decay * theta beside it (Loshchilov & Hutter 2019)."""
    return change if is_zero(weight_decay) else change - lr * weight_decay * param


def average(new: Tensor, old: Tensor, decay: Scalar) -> Tensor:
    """decay * old + (1 - decay) * new."""
    return decay * old + (1 - decay) * new


def averages(grad: Tensor, slots: Slots, beta1: Scalar, beta2: Scalar) -> Slots:
    """Adam's two moments after a gradient: m' = b1 m + (1-b1) g, s' = b2 s + (1-b2) g^2."""
    return {
        "exp_avg": average(grad, slots["exp_avg"], beta1),
        "exp_avg_sq": average(grad * grad, slots["exp_avg_sq"], beta2),
    }


def earlier_averages(grad: Tensor, slots: Slots, beta1: Scalar, beta2: Scalar) -> Slots:
    """The inverse of `averages`."""
    return {
        "exp_avg": undo(slots["exp_avg"], (1 - beta1) * grad, beta1),
        # rounding must not leave a negative average of squares
        "exp_avg_sq": undo(slots["exp_avg_sq"], (1 - beta2) * grad * grad, beta2).clamp_min(0.0),
    }


def root(x: Tensor) -> Tensor:
    """sqrt(x), with slope 0 in place of infinity at 0; x below 0 is rounding, and counts as 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def where_live(live: Tensor, x: Tensor) -> Tensor:
    """``x``, its derivative *defined* as 0 where not ``live``: in coordinates that never received a gradient."""
    return torch.where(live, x, x.detach())


def rms(x: Tensor) -> Tensor:
    """sqrt(mean(x^2)) of all entries, 0-d; slope 0 at x = 0."""
    length: Tensor = torch.linalg.vector_norm(x)
    return length / math.sqrt(x.numel())


@overload
def choose(condition: bool | Tensor, a: Tensor, b: Tensor) -> Tensor: ...
@overload
def choose(condition: bool | Tensor, a: Scalar, b: Scalar) -> Scalar: ...
def choose(condition: bool | Tensor, a: Scalar, b: Scalar) -> Scalar:
    """``a`` if the condition holds, else ``b``; without control flow if the condition is a tensor."""
    if isinstance(condition, Tensor):
        return torch.where(condition, a, b)
    return a if condition else b


def larger(a: Tensor, b: Scalar) -> Tensor:
    """max(a, b); on a tie all of the derivative goes to ``a`` (`torch.maximum` would give each side half)."""
    return torch.where(a >= b, a, b)


class UnlessCoupled:
    """Decorates a ``rewind`` that is there only without coupled weight decay: `hasattr` is False with it.

    Where the gradient enters the step directly, theta = theta' + k (g + weight_decay theta), and undoing that divides by
    1 - k weight_decay, which vanishes at some sizes of theta.
    """

    def __init__(self, method: Callable[..., tuple[Slots, Tensor]]) -> None:
        self.method = method

    def __get__(self, rule: Any, owner: type) -> Any:
        if rule is None:
            return self
        if not rule.decoupled_weight_decay and not is_zero(rule.weight_decay):
            raise AttributeError(
                f"{owner.__name__} with coupled weight_decay has no rewind: run keeps the state instead"
            )
        return self.method.__get__(rule, owner)


def is_zero(x: Scalar) -> bool:
    """Whether ``x`` is the number 0; a tensor is a hyperparameter, whatever its value."""
    return not isinstance(x, Tensor) and x == 0
