"""The whole matrix: for small problems, and as the oracle of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Matvec, Outcome, Solution


@dataclass(frozen=True)
class Dense:
    """Build H + damping I column by column and solve.

    An indefinite H is solved all the same and reported with its smallest eigenvalue; a singular one gives
    the solution of least norm and is reported too.

    Args:
        damping: added to H, >= 0.
        limit: largest dimension; n^2 scalars are stored.

    Raises:
        HypergradientError: a field is out of range, or b has more than ``limit`` entries.
    """

    damping: float = 0.0
    limit: int = 4096

    def __post_init__(self) -> None:
        if self.damping < 0 or self.limit < 1:
            raise HypergradientError(f"{self}: damping must not be negative, limit at least 1")

    def __call__(self, matvec: Matvec, b: Tree) -> Solution:
        flat = tree.flatten(b)
        n = flat.numel()
        if n > self.limit:
            raise HypergradientError(
                f"Dense: {n} parameters exceed limit={self.limit} ({8 * n * n / 2**30:.1f} GiB in float64). Use CG, or "
                "raise limit if you mean it"
            )
        identity = torch.eye(n, dtype=flat.dtype, device=flat.device)
        h = torch.stack([tree.flatten(matvec(tree.unflatten(e, b))) for e in identity], dim=1)
        h = (h + h.T) / 2 + self.damping * identity
        if not bool(torch.isfinite(h).all()):
            return Solution(tree.scale(b, torch.nan), Outcome.NONFINITE, n, None)
        eigenvalues = torch.linalg.eigvalsh(h)
        lowest, rounding = float(eigenvalues[0]), n * torch.finfo(flat.dtype).eps * float(eigenvalues.abs().max())
        singular = float(eigenvalues.abs().min()) <= rounding
        x = torch.linalg.pinv(h, hermitian=True) @ flat if singular else torch.linalg.solve(h, flat)
        length = float(tree.norm(b))
        residual = float(tree.norm({"r": flat - h @ x})) / length if length else 0.0
        if lowest < -rounding:
            outcome = Outcome.INDEFINITE
        else:
            outcome = Outcome.SINGULAR if singular else Outcome.CONVERGED
        return Solution(tree.unflatten(x, b), outcome, n, residual, lowest)
