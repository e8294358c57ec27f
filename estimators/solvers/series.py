"""The truncated series a sum_j (I - aH)^j b, which Neumann and recurrent backpropagation share."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Matvec, Outcome, Solution


def series(matvec: Matvec, b: Tree, lr: float | Tensor | None, products: int, rtol: float, name: str) -> Solution:
    """Sum ``products + 1`` terms; end earlier once a term is below ``rtol`` times the first.

    With t_j = (I - aH)^j b, the sum of the first j terms has the residual t_j. H is symmetric, so its norm can only
    fail to shrink if an eigenvalue of I - aH has modulus >= 1: that the series cannot converge is then certain.
    Norms are read back once, at the end, unless ``rtol`` is positive.
    """
    if lr is None:
        raise HypergradientError(
            f"{name}(lr=None) takes the inner rule's step inside Implicit; called on its own it needs lr=, a number "
            "below 2 / lambda_max"
        )
    term, total = b, b
    norms, quotients = [tree.norm(b)], []
    matvecs = 0
    for _ in range(products):
        if rtol > 0 and bool(norms[-1] <= rtol * norms[0]):
            break
        h_term = matvec(term)
        matvecs += 1
        size = torch.where(norms[-1] > 0, norms[-1], torch.ones_like(norms[-1])).to(next(iter(b.values())).dtype)
        unit = tree.scale(term, 1 / size)
        quotients.append(tree.dot(unit, tree.scale(h_term, 1 / size)))
        term = {k: t - lr * h_term[k] for k, t in term.items()}
        total = tree.add(total, term)
        norms.append(tree.norm(term))
    value = tree.scale(total, lr)
    sizes = torch.stack(norms).tolist()
    if sizes[0] == 0:
        return Solution(value, Outcome.CONVERGED, matvecs, 0.0, None)
    curvatures = torch.stack(quotients).tolist() if quotients else []
    eps = torch.finfo(norms[0].dtype).eps
    residual = sizes[-1] / sizes[0]
    outcome = _diagnose(sizes, curvatures, float(lr) if not isinstance(lr, Tensor) else float(lr.max()), eps)
    if outcome is None:
        if residual <= max(rtol, 4 * eps):
            outcome = Outcome.CONVERGED
        else:
            outcome = Outcome.MISSED if rtol > 0 else Outcome.BUDGET
    return Solution(value, outcome, matvecs, residual, min(curvatures, default=None))


def _diagnose(sizes: list[float], curvatures: list[float], lr: float, eps: float) -> Outcome | None:
    """What keeps the series from converging, if the norms of its terms or the curvatures met prove that something does.

    A term that grows while no curvature is negative needs lr * lambda_max > 2; one that stays as it is, = 2 or 0.
    Terms down at rounding (after convergence) prove nothing.
    """
    if not all(math.isfinite(x) for x in sizes):
        return Outcome.DIVERGED
    steps = [
        (after / before, curvature)
        for (before, after), curvature in zip(pairwise(sizes), curvatures, strict=True)
        if before > 4 * eps * sizes[0]
    ]
    grows = [c for ratio, c in steps if ratio > 1 + 4 * eps]
    stalls = [c for ratio, c in steps if 1 - 4 * eps <= ratio <= 1 + 4 * eps]
    largest = max((abs(c) for _, c in steps), default=0.0)
    if any(c < -100 * eps * largest for _, c in steps):
        return Outcome.DIVERGED if grows and lr * grows[-1] >= 1 else Outcome.INDEFINITE
    if grows or any(lr * c >= 1 for c in stalls):
        return Outcome.DIVERGED
    return Outcome.SINGULAR if stalls else None
