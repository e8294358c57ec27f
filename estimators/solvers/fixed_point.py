"""Recurrent backpropagation (Almeida 1987; Pineda 1987; Liao et al. 2018; Grazzi et al. 2020, fixed-point AID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Combination, Matvec, Outcome, Preconditioner, Solution
from .series import series


@dataclass(frozen=True)
class FixedPoint:
    """Iterate q <- (I - lr H) q + lr b from q = 0, ``steps`` times: the adjoint of the gradient-descent map.

    After ``steps`` iterations q holds ``steps`` terms of the Neumann series, from ``steps - 1`` products. On a
    quadratic, with lr the inner learning rate, that is exactly the unroll of ``steps`` gradient steps (Grazzi et
    al. 2020, sec. 2).

    Args:
        steps: iterations, >= 0.
        lr: step of the map; None as in `Neumann`.
        rtol: end once an iteration moves q by less than rtol times the first; 0 runs all of them.

    Raises:
        HypergradientError: a field is out of range, or ``lr`` is None outside `Implicit`.
    """

    steps: int = 100
    lr: float | Tensor | None = None
    rtol: float = 0.0
    takes_preconditioner: ClassVar[str] = "any"
    combines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rtol < 0 or (self.lr is not None and not self.lr > 0):
            raise HypergradientError(f"{self}: steps and rtol must not be negative, lr must be positive")

    def __call__(
        self, matvec: Matvec, b: Tree, preconditioner: Preconditioner | None = None, *, into: Combination | None = None
    ) -> Solution:
        if self.steps == 0:
            return Solution(tree.zeros_like(b) if into is None else {}, Outcome.BUDGET, 0, 1.0)
        return series(matvec, b, self.lr, self.steps - 1, self.rtol, "FixedPoint", preconditioner, into)
