"""Muon (Jordan et al. 2024): momentum with singular values set near 1. Arithmetic of `torch.optim.Muon`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import HypergradientError
from .base import Scalar, Slots, check_fields, undo
from .parts import average, decoupled, larger, where_live


@dataclass(frozen=True, kw_only=True, eq=False)
class Muon:
    """B' = mu B + (1-mu) g;  theta' = theta - c lr NS(B') - lr weight_decay theta  (Nesterov: NS(mu B' + (1-mu) g)).

    NS divides by the Frobenius norm and takes ``ns_steps`` times x <- a x + (b A + c A^2) x with A = x x^T, which
    drives all singular values towards 1. c is sqrt(max(1, rows/columns)), or 0.2 sqrt(max(rows, columns)) to match
    the size of AdamW's steps. It is for matrices only.

    **Departure:** torch computes NS in bfloat16 whatever the leaf. Here it is computed in the leaf's own dtype, so that the
    derivative is the derivative of what is computed; ``bfloat16=True`` walks torch's own trajectory, to the bit, and has
    a derivative with bfloat16's rounding in it (off by 2 to 17 %, measured on small matrices). A gradient and momentum that are zero throughout
    have derivative 0, where the formula gives 1/eps.

    Args:
        lr: learning rate.
        weight_decay: decoupled.
        momentum: mu, in [0, 1).
        nesterov: look ahead by one step.
        ns_coefficients: (a, b, c), numbers.
        eps: lower bound of the norm that is divided by.
        ns_steps: number of iterations, 0 to 99.
        adjust_lr_fn: "original" (or None) or "match_rms_adamw": see c.
        bfloat16: compute NS in bfloat16, as torch does.

    Raises:
        HypergradientError: a field is out of range; from ``init``: a leaf is no matrix.
    """

    lr: Scalar = 1e-3
    weight_decay: Scalar = 0.1
    momentum: Scalar = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: Scalar = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
    bfloat16: bool = False
    decoupled_weight_decay: ClassVar[bool] = True
    diagonal: ClassVar[bool] = False
    settles: ClassVar[int] = 0  # at t = 1 the momentum is (1-mu) g: a direction as good as any

    def __post_init__(self) -> None:
        check_fields(
            self,
            at_least={"lr": 0.0, "weight_decay": 0.0, "momentum": 0.0, "eps": 0.0, "ns_steps": 0},
            below={"momentum": 1.0, "ns_steps": 100},
        )
        if self.adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise HypergradientError(
                f"Muon(adjust_lr_fn={self.adjust_lr_fn!r}): choose 'original' (None is the same) or 'match_rms_adamw'"
            )
        if len(self.ns_coefficients) != 3 or any(isinstance(x, Tensor) for x in self.ns_coefficients):
            raise HypergradientError("Muon(ns_coefficients=...): give three numbers (a, b, c)")

    def init(self, param: Tensor) -> Slots:
        if param.dim() != 2:
            raise HypergradientError(
                f"Muon is for matrices, and a leaf has shape {tuple(param.shape)}: give the leaves that are no matrices "
                "another rule, such as AdamW"
            )
        return {"momentum_buffer": param.new_zeros(param.shape)}

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        a, b, c = self.ns_coefficients
        x = matrix.bfloat16() if self.bfloat16 else matrix
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        length = torch.linalg.vector_norm(x)
        x = where_live(length > 0, x / larger(length, self.eps))
        for _ in range(self.ns_steps):
            gram = x @ x.T
            gram = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # fused, as in torch: bfloat16 rounds once
            x = torch.addmm(x, gram, x, beta=a)
        return (x.T if tall else x).to(matrix.dtype)

    def update(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Tensor, Slots]:
        buffer = average(grad, slots["momentum_buffer"], self.momentum)
        change = decoupled(self._step(grad, buffer), self.lr, self.weight_decay, param)
        return change, {"momentum_buffer": buffer}

    def _step(self, grad: Tensor, buffer: Tensor) -> Tensor:
        """The change without decay, from the buffer after the step."""
        direction = self._orthogonal(average(grad, buffer, self.momentum) if self.nesterov else buffer)
        rows, columns = grad.shape
        if self.adjust_lr_fn == "match_rms_adamw":
            size = 0.2 * math.sqrt(max(rows, columns))
        else:
            size = math.sqrt(max(1.0, rows / columns))
        return -self.lr * size * direction

    def rewind(self, grad: Tensor, slots: Slots, t: int, param: Tensor) -> tuple[Slots, Tensor]:
        buffer = slots["momentum_buffer"]
        before = {"momentum_buffer": undo(buffer, (1 - self.momentum) * grad, self.momentum)}
        return before, (param - self._step(grad, buffer)) / (1 - self.lr * self.weight_decay)
