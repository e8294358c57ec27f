"""The truncated series a sum_j (I - aH)^j b, which Neumann and recurrent backpropagation share."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .. import tree
from ..errors import HypergradientError
from ..tree import Tree
from .base import Combination, Formed, Matvec, Outcome, Preconditioner, Solution, taken


def series(
    matvec: Matvec, b: Tree, lr: float | Tensor | None, products: int, rtol: float, name: str,
    preconditioner: Preconditioner | None = None, into: Combination | None = None,
) -> Solution:  # fmt: skip
    """Sum ``products + 1`` terms; end earlier once a term is below ``rtol`` times the first.

    With t_j = (I - aH)^j b, the sum of the first j terms has the residual t_j. H is symmetric, so its norm can only
    fail to shrink if an eigenvalue of I - aH has modulus >= 1: that the series cannot converge is then certain.
    Norms are read back once, at the end, unless ``rtol`` is positive. Where there are no values (see `tree.has_values`) all
    ``products`` are made.

    With a preconditioner D, t_j = (I - a H D)^j b and the sum is a D sum_j t_j. For symmetric D > 0 all of the above
    holds for the norm t'D t and the curvature of D^1/2 H D^1/2; for another D (of a rule that mixes coordinates) the
    terms' plain norms are taken, which prove nothing: such a series is said to diverge if its last term is larger than its
    first and than the one before.
    """
    if lr is None:
        raise HypergradientError(
            f"{name}(lr=None) takes the inner rule's step inside Implicit; called on its own it needs lr=, a number "
            "below 2 / lambda_max"
        )
    unit = tree.power_of_two(b)
    formed = Formed()
    total = formed if into is None else into
    term = taken(b, 1 / unit, into)  # far down, terms would underflow before they are at rounding
    rate = lr.to(unit) if isinstance(lr, Tensor) else lr
    adapted = _adapted(preconditioner, term)
    norms, quotients = [_size(term, adapted, preconditioner)], []
    matvecs = 0
    for _ in range(products):
        if rtol > 0 and tree.has_values(unit) and bool(norms[-1] <= rtol * norms[0]):
            break
        h_term = matvec(adapted)
        matvecs += 1
        total.add(1.0, adapted)
        quotients.append(tree.dot(adapted, h_term) / norms[-1] / norms[-1])
        tree.add_(term, -rate, h_term)
        del h_term, adapted
        adapted = _adapted(preconditioner, term)
        norms.append(_size(term, adapted, preconditioner))
    total.add(1.0, adapted)
    total.scale(rate)
    total.scale(unit)
    value = formed.value(b) if into is None else {}
    if not tree.has_values(unit):
        return Solution(value, Outcome.UNREAD if rtol > 0 else Outcome.BUDGET, matvecs, None, None)
    sizes = torch.stack(norms).tolist()
    if any(math.isnan(x) for x in sizes) and tree.all_finite(term):  # the root of a negative t'D t
        return Solution(value, Outcome.NOT_POSITIVE, matvecs, None, None)
    if sizes[0] == 0:
        return Solution(value, Outcome.CONVERGED, matvecs, 0.0, None)
    curvatures = torch.stack(quotients).tolist() if quotients else []
    eps = torch.finfo(norms[0].dtype).eps
    residual = sizes[-1] / sizes[0]
    # A term down at rounding proves nothing and has no figures worth reporting.
    curvatures = [c for c, size in zip(curvatures, sizes, strict=False) if size > 4 * eps * sizes[0]]
    largest_lr = float(lr) if not isinstance(lr, Tensor) else float(lr.max())
    proves = preconditioner is None or preconditioner.symmetric
    if proves or not all(math.isfinite(x) for x in sizes):
        outcome = _diagnose(sizes[: len(curvatures) + 1], curvatures, largest_lr, eps)
    else:  # no proof, but a sum whose terms outgrow the first, and still grow, is no estimate
        outcome = Outcome.DIVERGED if residual > 1 and sizes[-1] > sizes[-2] else None
    if outcome is None:
        if residual <= max(rtol, 4 * eps):
            outcome = Outcome.CONVERGED
        else:
            outcome = Outcome.MISSED if rtol > 0 else Outcome.BUDGET
    return Solution(value, outcome, matvecs, residual, min(filter(math.isfinite, curvatures), default=None))


def _adapted(preconditioner: Preconditioner | None, term: Tree) -> Tree:
    return term if preconditioner is None else preconditioner.apply(term)


def _size(term: Tree, adapted: Tree, preconditioner: Preconditioner | None) -> Tensor:
    """||t||, or sqrt(t'D t) where that is a norm (NaN where it is not)."""
    if preconditioner is None or not preconditioner.symmetric:
        return tree.plain_norm(term)
    return tree.dot(term, adapted).sqrt()


def _diagnose(sizes: list[float], curvatures: list[float], lr: float, eps: float) -> Outcome | None:
    """What keeps the series from converging, if the norms of its terms or the curvatures met prove that something does.

    A term that grows while no curvature is negative needs lr * lambda_max > 2; one that stays as it is, = 2 or 0.
    """
    if not all(math.isfinite(x) for x in sizes):
        finite = [x for x in sizes if math.isfinite(x)]
        return Outcome.DIVERGED if finite and finite[-1] > finite[0] else Outcome.NONFINITE
    steps = [(after / before, c) for (before, after), c in zip(pairwise(sizes), curvatures, strict=True)]
    grows = [c for ratio, c in steps if ratio > 1 + 4 * eps]
    stalls = [c for ratio, c in steps if 1 - 4 * eps <= ratio <= 1 + 4 * eps]
    largest = max((abs(c) for _, c in steps), default=0.0)
    if any(c < -100 * eps * largest for _, c in steps):
        return Outcome.DIVERGED if grows and lr * grows[-1] >= 1 else Outcome.INDEFINITE
    if grows or any(lr * c >= 1 for c in stalls):
        return Outcome.DIVERGED
    return Outcome.SINGULAR if stalls else None
