"""H^-1 replaced by the identity (Choe et al. 2023, SAMA, sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from ..tree import Tree
from .base import Matvec, Outcome, Solution


@dataclass(frozen=True)
class Identity:
    """x = b: no product at all, and no residual known."""

    def __call__(self, matvec: Matvec, b: Tree) -> Solution:
        return Solution(dict(b), Outcome.APPROXIMATE, 0, None)
