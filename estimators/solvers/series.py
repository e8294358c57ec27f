"""The truncated series a sum_j (I - aH)^j b, which Neumann and recurrent backpropagation share."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Matvec, Outcome, Solution


def series(matvec: Matvec, b: Tree, lr: float | Tensor | None, products: int, rtol: float, name: str) -> Solution:
    """Sum ``products + 1`` terms; end earlier once a term is below ``rtol`` times the first.

    With t_j = (I - aH)^j b, the sum of the first j terms has the residual t_j. H is symmetric, so its norm can only
    fail to shrink if an eigenvalue of I - aH has modulus >= 1: then the series diverges, and that is certain.
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
    curvature = min(torch.stack(quotients).tolist()) if quotients else None
    if sizes[0] == 0:
        return Solution(value, Outcome.CONVERGED, matvecs, 0.0, None)
    eps = torch.finfo(norms[0].dtype).eps
    grows = any(
        not after < before * (1 - 4 * eps)
        for before, after in zip(sizes, sizes[1:], strict=False)
        if before > 4 * eps * sizes[0] or not after < torch.inf
    )
    residual = sizes[-1] / sizes[0]
    if curvature is not None and curvature < 0:
        outcome = Outcome.DIVERGED
    elif grows:
        outcome = Outcome.DIVERGED
    elif residual <= max(rtol, 4 * eps):
        outcome = Outcome.CONVERGED
    else:
        outcome = Outcome.MISSED if rtol > 0 else Outcome.BUDGET
    return Solution(value, outcome, matvecs, residual, curvature)
