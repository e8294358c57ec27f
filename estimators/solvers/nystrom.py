"""Nystrom approximation of the inverse (Hataya & Yamada 2023, *Nystrom Method for Accurate and Scalable Implicit
Differentiation*)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Matvec, Outcome, Solution


@dataclass(frozen=True)
class Nystrom:
    """x = (C' W^+ C + rho I)^-1 b with C = ``rank`` random rows of H and W their own block.

    The paper applies Woodbury's formula (eq. 6), which cancels badly for small rho. Here C' = QR gives
    C'W^+C = Q T Q', T is diagonalised, and x = Q (T + rho)^-1 Q'b + (b - QQ'b) / rho. Outside the sketched
    space x = b / rho, whatever H is there: with a full-rank H only a full-rank sketch is accurate.

    Args:
        rank: columns, >= 1 (a rank above the dimension takes them all). Memory: rank * n scalars.
        rho: regularisation, > 0.
        seed: of the choice of columns.

    One product more than ``rank`` is spent on the residual ||b - Hx||.

    Raises:
        HypergradientError: a field is out of range.
    """

    rank: int = 10
    rho: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.rho > 0:
            raise HypergradientError(f"{self}: rank must be at least 1 and rho positive")

    def __call__(self, matvec: Matvec, b: Tree) -> Solution:
        length = tree.norm(b)
        if not tree.holds(length != 0):
            return Solution(tree.zeros_like(b), Outcome.APPROXIMATE, 0, 0.0, None)
        flat = tree.flatten(b)
        n = flat.numel()
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.rank]
        # without values any columns will do: all take the same
        picked = chosen.tolist() if tree.has_values(chosen) else range(len(chosen))
        columns = torch.stack([tree.flatten(matvec(_unit(i, flat, b))) for i in picked], dim=1)
        if not tree.holds(torch.isfinite(columns).all()):
            return Solution(tree.scale(b, torch.nan), Outcome.NONFINITE, len(chosen), None)
        block = columns[chosen.to(flat.device)]
        block = (block + block.T) / 2
        q, r = torch.linalg.qr(columns)
        t = r @ torch.linalg.pinv(block, hermitian=True) @ r.T
        eigenvalues, vectors = torch.linalg.eigh((t + t.T) / 2)
        basis = q @ vectors
        inside = basis.T @ flat
        outside = flat - basis @ inside
        outside = outside - basis @ (basis.T @ outside)  # once is not enough when rho is tiny
        x = basis @ (inside / (eigenvalues + self.rho)) + outside / self.rho
        value = tree.unflatten(x, b)
        left, smallest = tree.norm(tree.sub(b, matvec(value))) / length, torch.linalg.eigvalsh(block).min()
        if not tree.has_values(left):
            return Solution(value, Outcome.APPROXIMATE, len(chosen) + 1, None)
        residual, lowest = float(left), float(smallest)
        negative = lowest < -torch.finfo(flat.dtype).eps * n * float(block.abs().max())
        outcome = Outcome.INDEFINITE if negative else Outcome.APPROXIMATE
        return Solution(value, outcome, len(chosen) + 1, residual, lowest)


def _unit(i: int, flat: torch.Tensor, like: Tree) -> Tree:
    e = torch.zeros_like(flat)
    e[i] = 1
    return tree.unflatten(e, like)
