"""H and M^T of a stage's last losses, as a solver asks for them, with or without a solution ever being formed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from . import tree
from .estimator import Cost
from .products import BoundLoss, Product, linearize
from .solvers import Formed, Preconditioner, Solution, Solver
from .tree import Tree

Pull = Callable[..., tuple[Tree, Tree]]
"""(v, wrt_params=, wrt_hparams=) -> (H v, M^T v): a product at one loss and one point."""


def mean_pull(pulls: Sequence[Pull], v: Tree, **wrt: Any) -> tuple[Tree, Tree]:
    """The mean of some products, made one after the other."""
    rows: Tree = {}
    mixed: Tree = {}
    for pull in pulls:
        a, b = pull(v, **wrt)
        rows, mixed = tree.union_add(rows, a), tree.union_add(mixed, b)
    if len(pulls) == 1:
        return rows, mixed
    return tree.scale(rows, 1 / len(pulls)), tree.scale(mixed, 1 / len(pulls))


class LinearSystem:
    """H x = b of the mean of some losses, and the images F x and M^T x of its solution.

    F are the rows of the Hessian for leaves that are frozen: no unknowns, but they get a cotangent. Both images are linear,
    and a product gives them along with H v: a solver that combines its solution of vectors that it gave to a product gets
    the images summed instead, and the solution need not exist.

    Args:
        product: its form.
        losses: of (params, hparams).
        params, hparams: the point.
        unknowns: leaves of params that H is taken of.
        free: the frozen leaves.
        decay: coupled weight decay, added to H.
        reduce: as `Stage.reduce`.
        kept: linearise each loss once and keep its graph, instead of evaluating it again for each product.
        sums: sum the images product by product, instead of forming the solution.

    Attributes:
        cost: what was spent so far. The linearisation of a loss counts as a gradient, a pull of its graph as a product.
    """

    def __init__(
        self,
        product: Product,
        losses: Sequence[BoundLoss],
        params: Tree,
        hparams: Tree,
        *,
        unknowns: Collection[str],
        free: Collection[str],
        decay: dict[str, float | Tensor],
        reduce: Callable[[Tree], Tree],
        kept: bool,
        sums: bool,
    ) -> None:
        self.cost = Cost()
        self._product, self._losses, self._params, self._hparams = product, losses, params, hparams
        self._unknowns, self._free, self._decay, self._reduce = unknowns, free, decay, reduce
        self._kept, self._sums = kept, sums
        self._pulls: list[Pull] = []
        self._fresh: tuple[Tree, Tree, Tree] | None = None  # the vector of the last product, and its images

    def solve(
        self, solver: Solver, held: list[Tree], preconditioner: Preconditioner | None
    ) -> tuple[Solution, Tree, Tree]:
        """(solution, F x, M^T x); the right-hand side is taken out of ``held``, so that its leaves can be let go of."""
        given = () if preconditioner is None else (preconditioner,)
        if not getattr(solver, "combines", False):
            solution = cast(Any, solver)(self.hessian, held.pop(), *given)
            return solution, *self.images(solution.value)
        if not self._sums:
            x = Formed()
            solution = cast(Any, solver)(self.hessian, held.pop(), *given, into=x)
            return solution, *self.images(x.value(self._zero()))
        summed = _Images(self)
        solution = cast(Any, solver)(self, held.pop(), *given, into=summed)
        if not summed.terms:
            summed.add(1.0, self._zero())
        return solution, summed.rows, summed.mixed

    def hessian(self, v: Tree) -> Tree:
        """H v."""
        rows, _ = self._pull(v, wrt_params=v)
        return self._square(rows, v)

    def __call__(self, v: Tree) -> Tree:
        """H v; its images are remembered."""
        rows, mixed = self._pull(v, wrt_params=[*v, *self._free], wrt_hparams=self._hparams)
        self._fresh = (v, {k: rows.pop(k) for k in self._free if k in rows}, mixed)
        return self._square(rows, v)

    def images(self, x: Tree) -> tuple[Tree, Tree]:
        """(F x, M^T x), the last thing that is asked."""
        if self._free and not self._sums:
            self._pulls, self._kept = [], False  # a graph through the frozen leaves was never needed before
        return self._pull(x, wrt_params=self._free, wrt_hparams=self._hparams, **({"last": True} if self._kept else {}))

    def images_of(self, v: Tree) -> tuple[Tree, Tree]:
        """(F v, M^T v): from the last product, if it was one with v."""
        fresh, self._fresh = self._fresh, None
        if fresh is not None and fresh[0] is v:
            return fresh[1:]
        return self._pull(v, wrt_params=self._free, wrt_hparams=self._hparams)

    def _zero(self) -> Tree:
        return {k: torch.zeros_like(x) for k, x in self._params.items() if k in self._unknowns}

    def _square(self, rows: Tree, v: Tree) -> Tree:
        hv = self._reduce(tree.fill(rows, v))
        del rows
        return {k: tree.plus(hv[k], self._decay[k], v[k]) if k in self._decay else hv[k] for k in v}

    def _pull(self, v: Tree, **wrt: Any) -> tuple[Tree, Tree]:
        if not self._pulls:
            self._pulls = [self._made(loss) for loss in self._losses]
        self.cost += Cost(products=len(self._pulls))
        return mean_pull(self._pulls, v, **wrt)

    def _made(self, loss: BoundLoss) -> Pull:
        if not self._kept:
            return partial(self._product, loss, self._params, self._hparams)
        self.cost += Cost(gradients=1)
        rows = [*self._unknowns, *(self._free if self._sums else ())]
        columns = self._hparams if self._sums or not self._free else ()
        at = linearize(loss, self._params, self._hparams, tangents=self._unknowns, wrt_params=rows, wrt_hparams=columns)
        at.take()
        return at.pull


class _Images:
    """The images of x = sum_j a_j v_j, summed (a `Combination`)."""

    def __init__(self, system: LinearSystem) -> None:
        self._system = system
        self.terms = 0
        self.rows: Tree = {}
        self.mixed: Tree = {}

    def add(self, a: float | Tensor, v: Tree) -> None:
        self.terms += 1
        for total, term in zip((self.rows, self.mixed), self._system.images_of(v), strict=True):
            for k, x in term.items():
                if k in total:
                    tree.add_({k: total[k]}, a, term)
                else:
                    total[k] = tree.times(x, a)

    def scale(self, c: float | Tensor) -> None:
        for total in (self.rows, self.mixed):
            for x in total.values():
                x.mul_(c)
