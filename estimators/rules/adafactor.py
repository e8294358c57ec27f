"""Adafactor (Shazeer & Stern 2018). Arithmetic of `torch.optim.Adafactor`; of flax's on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import HypergradientError
from .base import Scalar, Slots, check_fields
from .parts import average, choose, decoupled, larger, rms, root, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class Adafactor:
    """theta' = theta - rho max(eps2, RMS(theta)) U / max(1, RMS(U) / d) - lr weight_decay theta, U = g / sqrt(v).

    A leaf of two dimensions or more keeps means of g^2 over its rows, R, and columns, C (its last two dimensions), and
    v = R C / mean(R); a vector keeps v itself. All are averages with weight t^beta2_decay for the newest. So every
    coordinate depends on its whole row, column and, by the two RMS, on its whole leaf.

    Torch and the paper differ on eps1, the step size and momentum. The defaults are torch's: v >= eps1^2,
    mean(R) >= eps1, rho = min(lr, 1/sqrt(t)). Flax's (which guided learning uses) are ``eps=(1e-30, 1e-3),
    eps_inside=True, relative_step=False, momentum=0.9``; flax shrinks theta by weight_decay itself, not by
    lr weight_decay, and factors only large leaves.

    Rows, columns and vector entries that never received a gradient have derivative 0, as in `Adam`; torch's formula
    would give them 1/eps1 ~ 1e16.

    Args:
        lr: learning rate; with ``relative_step`` the largest relative step.
        beta2_decay: exponent, at most 0.
        eps: (eps1, eps2): against a zero gradient and against zero parameters; eps1 None is the dtype's epsilon.
        d: RMS of U from which on it is clipped, at least 1.
        weight_decay: decoupled.
        eps_inside: g^2 + eps1 takes the place of g^2, and nothing is bounded below (the paper, flax).
        relative_step: rho = min(lr, 1/sqrt(t)) instead of lr.
        momentum: None, or b1 of m' = b1 m + (1 - b1) s, where s is the scaled and clipped step and m' replaces it.

    Raises:
        HypergradientError: a field is out of range.
    """

    lr: Scalar = 1e-2
    beta2_decay: Scalar = -0.8
    eps: tuple[Scalar | None, Scalar] = (None, 1e-3)
    d: Scalar = 1.0
    weight_decay: Scalar = 0.0
    eps_inside: bool = False
    relative_step: bool = True
    momentum: Scalar | None = None
    decoupled_weight_decay: ClassVar[bool] = True
    diagonal: ClassVar[bool] = False
    settles: ClassVar[int] = 1  # g / |g| for vectors

    def __post_init__(self) -> None:
        check_fields(self, at_least={"lr": 0.0, "eps2": 0.0, "d": 1.0, "weight_decay": 0.0})
        if self.eps[0] is not None:
            check_fields(self, at_least={"eps1": 0.0})
        if self.momentum is not None:
            check_fields(self, at_least={"momentum": 0.0}, below={"momentum": 1.0})
        if not isinstance(self.beta2_decay, Tensor) and not self.beta2_decay <= 0:
            raise HypergradientError(
                f"Adafactor(beta2_decay={self.beta2_decay}): must be at most 0, as the default -0.8"
            )

    @property
    def eps1(self) -> Scalar | None:
        return self.eps[0]

    @property
    def eps2(self) -> Scalar:
        return self.eps[1]

    def init(self, param: Tensor) -> Slots:
        if param.dim() > 1:
            rows, columns = (*param.shape[:-1], 1), (*param.shape[:-2], 1, param.shape[-1])
            slots = {"row_var": param.new_zeros(rows), "col_var": param.new_zeros(columns)}
        else:
            slots = {"variance": param.new_zeros(param.shape)}
        if self.momentum is not None:
            slots["exp_avg"] = param.new_zeros(param.shape)
        return slots

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        eps1 = torch.finfo(grad.dtype).eps if self.eps1 is None else self.eps1
        square = grad * grad + eps1 if self.eps_inside else grad * grad
        new = t**self.beta2_decay
        # what a second moment is where no gradient ever came, with room for the rounding of its averages
        never = eps1 * (1 + torch.finfo(grad.dtype).eps ** 0.5) if self.eps_inside else 0.0
        after: Slots = {}
        if grad.dim() > 1:
            rows = after["row_var"] = average(square.mean(-1, keepdim=True), slots["row_var"], 1 - new)
            columns = after["col_var"] = average(square.mean(-2, keepdim=True), slots["col_var"], 1 - new)
            live = (rows > never) & (columns > never)
            mean = rows.mean(-2, keepdim=True)
            variance = rows / (mean if self.eps_inside else larger(mean, eps1)) * columns
        else:
            variance = after["variance"] = average(square, slots["variance"], 1 - new)
            live = variance > never
        scale = root(variance) if self.eps_inside else larger(root(variance), eps1)
        step = where_live(live, grad / scale)
        step = step / larger(rms(step) / self.d, 1.0)
        rho = choose(self.lr <= t**-0.5, self.lr, t**-0.5) if self.relative_step else self.lr
        step = rho * larger(rms(param), self.eps2) * step
        if self.momentum is not None:
            step = after["exp_avg"] = average(step, slots["exp_avg"], self.momentum)
        return decoupled(-step, self.lr, self.weight_decay, param), after
