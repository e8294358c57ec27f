"""Lanczos with full reorthogonalisation: extreme curvatures, and solves whose residual is what it says.

For symmetric H and a start q_1, k products give H Q = Q T + beta q_{k+1} e_k^T with orthonormal Q (n, k) and tridiagonal T
(Lanczos 1950; Paige 1972). Every eigenvalue theta of T, with eigenvector s, has an eigenvalue of H within beta |s_k| of it.
That it is the *smallest* of H for the smallest theta follows from no finite number of products but n; from a random q_1
it follows with a probability (Kuczynski & Wozniakowski 1992, theorem 4.2): for eps > 0,

    P[ theta_min - lambda_min > eps (lambda_max - lambda_min) ] <= 1.648 sqrt(n) exp(-sqrt(eps) (2 k - 1)).

If the space is exhausted (beta = 0 to rounding) the eigenvalues of T are all of H's, with probability one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CONSTANT = 1.648
SURE = 0.01
"""The probability with which `Krylov.top` may be too small."""


@dataclass(frozen=True, eq=False)
class Krylov:
    """What k products with H say of it.

    Attributes:
        basis: (k, n) Q^T, orthonormal rows.
        diagonal: (k,) of T.
        beside: (k,) of T, the last one being beta, what leads out of the space.
        length: norm of the start.
        exhausted: nothing leads out of the space, up to rounding.
    """

    basis: Tensor
    diagonal: tuple[float, ...]
    beside: tuple[float, ...]
    length: float
    exhausted: bool

    @cached_property
    def ritz(self) -> tuple[Tensor, Tensor]:
        """(k,) eigenvalues of T, ascending, and (k, k) its eigenvectors as columns; float64 on the CPU."""
        t = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        off = torch.tensor(self.beside[:-1], dtype=torch.float64)
        eigenvalues, vectors = torch.linalg.eigh(t + torch.diag(off, 1) + torch.diag(off, -1))
        return eigenvalues, vectors

    @property
    def lowest(self) -> float:
        """The smallest eigenvalue of H less what it may be off by: safe if the smallest Ritz value belongs to it."""
        return float(self.ritz[0][0] - self._off(0))

    @property
    def highest(self) -> float:
        """The largest one, likewise."""
        return float(self.ritz[0][-1] + self._off(-1))

    def _off(self, i: int) -> Tensor:
        values, vectors = self.ritz
        rounding = 8 * torch.finfo(self.basis.dtype).eps * len(values) * values.abs().max()
        return self.beside[-1] * vectors[-1, i].abs() + rounding

    @property
    def doubt(self) -> float:
        """Bound on the probability, over the random start, that the smallest eigenvalue is below ``lowest`` / 2.

        1: nothing can be said. Both ends of the spectrum must be found, so that their distance is known; hence the 2.
        """
        if self.exhausted:
            return 0.0
        k, n = self.basis.shape
        values, _ = self.ritz
        room = float(values[0]) - self.lowest / 2
        spread = float(values[-1] - values[0])
        eps = room / (spread + 2 * room) if room > 0 else 0.0  # spread / (1 - 2 eps) bounds the true one
        return min(1.0, 2 * CONSTANT * math.sqrt(n) * math.exp(-math.sqrt(eps) * (2 * k - 1)))

    @property
    def top(self) -> float:
        """Upper bound on the largest eigenvalue of an H >= 0, but for a probability of `SURE`; infinity if k says too little."""
        if self.exhausted:
            return self.highest
        k, n = self.basis.shape
        eps = (math.log(CONSTANT * math.sqrt(n) / SURE) / (2 * k - 1)) ** 2
        return float(self.ritz[0][-1]) / (1 - eps) if eps < 1 else math.inf

    def solve(self) -> tuple[Tensor, float] | None:
        """(x, ||start - H x||) of the Galerkin solution in the space, the iterate of CG; None if T is not positive.

        The residual is beta |y_k| with T y = ||start|| e_1, and the rounding of H x.
        """
        values, vectors = self.ritz
        if not float(values[0]) > 0:
            return None
        y = vectors @ (vectors[0] / values) * self.length
        rounding = 8 * torch.finfo(self.basis.dtype).eps * values[-1] * torch.linalg.vector_norm(y)
        return y.to(self.basis) @ self.basis, float(self.beside[-1] * y[-1].abs() + rounding)


def lanczos(matvec: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Krylov:
    """At most ``steps`` products.

    Args:
        matvec: (n,) -> (n,), symmetric.
        start: (n,), not zero.
        steps: >= 1. Memory: ``steps`` vectors.
    """
    n, length = start.numel(), float(torch.linalg.vector_norm(start))
    basis = start.new_empty(min(steps, n), n)
    q, diagonal, beside = start / length, list[float](), list[float]()
    tiny = 100 * torch.finfo(start.dtype).eps
    exhausted = False
    for j in range(len(basis)):
        basis[j] = q
        w = matvec(q)
        diagonal.append(float(q @ w))
        for _ in range(2):  # twice is enough (Kahan; Parlett 1980, sec. 6.9)
            w = w - basis[: j + 1].T @ (basis[: j + 1] @ w)
        beside.append(float(torch.linalg.vector_norm(w)))
        exhausted = j + 1 == n or beside[-1] <= tiny * max(map(abs, [*diagonal, *beside]))
        if exhausted:
            break
        q = w / beside[-1]
    k = len(diagonal)
    return Krylov(basis[:k], tuple(diagonal), tuple(beside), length, exhausted)


def random_start(n: int, seed: int, like: Tensor) -> Tensor:
    """(n,) normal draws, so that its direction is uniform on the sphere; the same on every device."""
    draws = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws.to(like)
