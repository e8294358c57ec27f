"""Truncated Neumann series (Lorraine et al. 2020, *Optimizing Millions of Hyperparameters by Implicit
Differentiation*, Algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import HypergradientError
from ..tree import Tree
from .base import Combination, Matvec, Preconditioner, Solution
from .series import series


@dataclass(frozen=True)
class Neumann:
    """x = lr sum_{j=0..steps} (I - lr H)^j b = (I - (I - lr H)^(steps+1)) H^-1 b;  with D:  lr D sum (I - lr H D)^j b.

    ``steps`` counts products with H, so there are ``steps + 1`` terms (``steps=0`` is lr b, the T1-T2 vector). On a
    quadratic this is backpropagation truncated to the last ``steps + 1`` gradient steps of size lr. It converges
    exactly when 0 < lr < 2 / lambda_max and H is positive definite. A growing term proves that lr is too large
    (`Outcome.DIVERGED`) or, with negative curvature, that H is indefinite (`Outcome.INDEFINITE`; few terms are a
    usable regularisation even then).

    With a preconditioner D it is the same series of the adapted descent theta <- theta - lr D grad: D b for ``steps=0``,
    H^-1 b in the limit. It converges exactly when the eigenvalues of lr H D lie within (0, 2).

    Args:
        steps: number of products, >= 0.
        lr: step of the series. None: inside `Implicit`, the inner rule's ``gradient_step``, or, for an adaptive
            rule, which has none, 1 / lambda_max from a few power iterations (their products are counted); with a
            preconditioner always the latter, lambda_max being that of H D.

    Raises:
        HypergradientError: a field is out of range, or ``lr`` is None outside `Implicit`.
    """

    steps: int = 20
    lr: float | Tensor | None = None
    takes_preconditioner: ClassVar[str] = "any"
    combines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 0 or (self.lr is not None and not self.lr > 0):
            raise HypergradientError(f"{self}: steps must not be negative, lr must be positive")

    def __call__(
        self, matvec: Matvec, b: Tree, preconditioner: Preconditioner | None = None, *, into: Combination | None = None
    ) -> Solution:
        return series(matvec, b, self.lr, self.steps, 0.0, "Neumann", preconditioner, into)
