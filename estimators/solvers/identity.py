"""H^-1 replaced by the identity (Choe et al. 2023, SAMA, sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..tree import Tree
from .base import Matvec, Outcome, Preconditioner, Solution


@dataclass(frozen=True)
class Identity:
    """x = b, or D b: no product at all, and no residual known."""

    takes_preconditioner: ClassVar[str] = "any"

    def __call__(self, matvec: Matvec, b: Tree, preconditioner: Preconditioner | None = None) -> Solution:
        x = dict(b) if preconditioner is None else preconditioner.apply(b)
        return Solution(x, Outcome.APPROXIMATE, 0, None)
