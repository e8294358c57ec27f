"""What a linear solver is, and how it says what happened."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .. import tree
from ..tree import Tree

Matvec = Callable[[Tree], Tree]


class Outcome(enum.Enum):
    """What became of an estimate: the value says it in words, with the next thing to try."""

    DONE = "complete: every step was differentiated"
    CONVERGED = "converged: the linear system is solved to the tolerance or to rounding"
    BUDGET = "stopped at its fixed budget of steps: see the residual; raise steps for a smaller one"
    APPROXIMATE = "approximate by definition: see what the estimator claims"
    TRUNCATED = "truncated: only the last steps were differentiated; raise last for less bias"
    MISSED = "missed its tolerance within its steps: raise steps, loosen rtol, or add damping"
    INDEFINITE = (
        "indefinite Hessian: met negative curvature, so this is no minimum; train longer, add damping of at least "
        "minus the reported curvature, or use Neumann with no more steps than were trained, or Unroll"
    )
    SINGULAR = "the system is singular: add damping, or a penalty to the inner loss"
    DIVERGED = "the series diverges, lr * lambda_max >= 2: lower lr (1 / lambda_max is safe), or use CG"
    UNREAD = "no values to stop by (fake or meta tensors): as many steps were taken as the solver allows"
    NONFINITE = "a product was NaN or infinite: look at the loss where the solver evaluated it"
    NOT_POSITIVE = (
        "the preconditioner (the rule's adaptation) is negative somewhere, as Adam's is in its first steps: train a few "
        "steps more, or use adapt=False"
    )
    YOUNG = (
        "the optimizer state is young: in its first steps after a reset the rule's derivative is mostly sign noise or "
        "nearly zero, and so is the adaptation; take more steps first (see the rule's ``settles``)"
    )
    NOT_STATIONARY = (
        "the rule decays the weights outside the loss (decoupled weight decay), so its fixed point is no stationary "
        "point of the loss and implicit differentiation is biased: put the decay into the loss"
    )


class Solution(NamedTuple):
    """An (approximate) solution x of H x = b.

    Attributes:
        value: x, keyed as b; empty if the solver was given a `Combination` to put x into.
        outcome: what happened.
        matvecs: products H v used.
        residual: ||b - H x|| / ||b|| (0 for b = 0); None if the solver does not know it. CG reports its recurrence's,
            or the rounding of Hx where that is larger; the series solvers that of their sum without its last term, an
            upper bound when they converge: the exact figure would cost one more product.
        curvature: smallest v'Hv / v'v met, None if none was looked at.
    """

    value: Tree
    outcome: Outcome
    matvecs: int
    residual: float | None
    curvature: float | None = None


@dataclass(frozen=True)
class Preconditioner:
    """D, an approximate inverse of H.

    Attributes:
        apply: c -> D c.
        symmetric: whether D is; CG needs that.
    """

    apply: Matvec
    symmetric: bool


class Combination(Protocol):
    """What becomes of x = c sum_j a_j v_j, term by term: x itself, or what somebody wants to know of it.

    M^T x is all that `Implicit` wants, and a product with v_j gives M^T v_j along with H v_j: x need never exist.
    """

    def add(self, a: float | Tensor, v: Tree) -> None:
        """Add a v. Cheap if v is what ``matvec`` was given last: nothing may have been written into it since."""
        ...

    def scale(self, c: float | Tensor) -> None:
        """Multiply by c what is there so far."""
        ...


class Formed:
    """x itself, in memory of its own."""

    def __init__(self) -> None:
        self._value: Tree = {}

    def add(self, a: float | Tensor, v: Tree) -> None:
        if self._value:
            tree.add_(self._value, a, v)
        else:
            self._value = {k: tree.times(x, a) for k, x in v.items()}

    def scale(self, c: float | Tensor) -> None:
        for x in self._value.values():
            x.mul_(c)

    def value(self, like: Tree) -> Tree:
        """x, zero if nothing was added."""
        return self._value or tree.zeros_like(like)


def taken(b: Tree, c: float | Tensor, into: Combination | None) -> Tree:
    """c b in memory of its own; where x goes ``into`` something b was handed over, and its leaves are let go of."""
    source = dict(b) if into is None else b
    return {k: source.pop(k) * c for k in list(source)}


@runtime_checkable
class Solver(Protocol):
    """Frozen, keyword-built; H is symmetric and known only through ``matvec``.

    Optional: a third argument ``preconditioner: Preconditioner | None``, and a ClassVar ``takes_preconditioner``, "any"
    or "symmetric", that says which ones it takes. And a keyword argument ``into: Combination | None``, with a ClassVar
    ``combines = True``: the solver then gives x to it term by term instead of returning it, and may empty the dict b.
    """

    def __call__(self, matvec: Matvec, b: Tree) -> Solution: ...
