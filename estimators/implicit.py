"""Implicit differentiation at the end of the run (Pedregosa 2016; Lorraine et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

import torch

from . import tree
from .adaptation import refuse_rule_hparams
from .errors import HypergradientError
from .estimator import Cost, Pullback
from .products import BoundLoss, Product, gradients, reverse_over_reverse
from .rules import Rule
from .solvers import Matvec, Outcome, Solver
from .stage import Record, Stage, check_reads
from .tree import Tree

POWER_ITERATIONS = 10


@dataclass(frozen=True)
class Implicit:
    """-M^T x with H x = c, both at the end: dtheta*/dlam = -H^-1 M where dL/dtheta(theta*, lam) = 0.

    Exact for an exact solver at an inner optimum; the end is then independent of the start, so no cotangent is
    given for it. Leaves that the loss does not read and ``Stage.frozen`` leaves are no unknowns of the system;
    frozen ones get the cotangent c - H_frozen,trained x. Coupled (L2) weight decay of the rule is part of the
    system; decoupled decay is not a stationary point of anything and is reported.

    Args:
        solver: of H x = c; called as ``solver(matvec, b)``.
        product: form of the second-order product.
        batches: average H and M over this many of the stream's last batches (a minibatch Hessian is a noisy one).

    Raises:
        HypergradientError: ``batches`` is below 1.
    """

    solver: Solver
    product: Product = reverse_over_reverse
    batches: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise HypergradientError(f"{self}: batches must be at least 1")

    @property
    def tail(self) -> int:
        return 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: hyperparameters sit in the rule.
            HypergradientError: the loss reads no trained leaf; and as the solver.
        """
        refuse_rule_hparams(stage, record, hparams, "Implicit")
        rule, params = stage.bind(hparams), record.end.params
        losses = last_objectives(stage, record, self.batches)
        names, cost = self._unknowns(stage, record, losses, hparams)
        decay = getattr(rule, "weight_decay", 0.0)
        decoupled = getattr(rule, "decoupled_weight_decay", False)
        decays = bool(torch.as_tensor(decay).gt(0).any())

        def matvec(v: Tree) -> Tree:
            hv, _ = mean_product(self.product, losses, params, hparams, v, wrt_params=v)
            hv = stage.reduce(tree.fill(hv, v))
            return tree.axpy(decay, v, hv) if decays and not decoupled else hv

        b = tree.select(cotangent, names)
        solver, extra = _with_step(self.solver, rule, matvec, b)
        solution = solver(matvec, b)
        free = [k for k in params if k in stage.frozen]
        rows, mixed = mean_product(
            self.product, losses, params, hparams, solution.value, wrt_params=free, wrt_hparams=hparams
        )
        mixed = stage.reduce(mixed)
        forgets = not free and len(names) == len(params)
        start = None
        if not forgets:
            start = {k: torch.zeros_like(c) if k in names else c for k, c in cotangent.items()}
            start = tree.union_add(start, tree.scale(stage.reduce(rows), -1.0))
        matvecs = solution.matvecs + extra
        outcome = solution.outcome
        if decays and decoupled and outcome in (Outcome.CONVERGED, Outcome.BUDGET, Outcome.APPROXIMATE):
            outcome = Outcome.NOT_STATIONARY
        return Pullback(
            hparams=tree.scale(mixed, -1.0),
            start=start,
            outcome=outcome,
            cost=cost + Cost(matvecs=matvecs, products=(matvecs + 1) * len(losses)),
            residual=solution.residual,
            curvature=solution.curvature,
        )

    def _unknowns(self, stage: Stage, record: Record, losses: list[BoundLoss], hparams: Tree) -> tuple[set[str], Cost]:
        """The trained leaves that the losses read, and what it took to find out."""
        if record.grad is not None and len(losses) == 1:
            return set(record.grad), Cost()
        trained, found = stage.trained(record.end.params), set[str]()
        for loss in losses:
            _, grad, _ = gradients(loss, record.end.params, hparams, wrt_params=trained)
            check_reads(grad, trained)
            found |= grad.keys()
        return found, Cost(gradients=len(losses))


def mean_product(
    product: Product, losses: list[BoundLoss], params: Tree, hparams: Tree, v: Tree, **wrt: Any
) -> tuple[Tree, Tree]:
    """The product of the mean of ``losses``, one after the other, so that memory does not grow with their number."""
    rows: Tree = {}
    mixed: Tree = {}
    for loss in losses:
        a, b = product(loss, params, hparams, v, **wrt)
        rows, mixed = tree.union_add(rows, a), tree.union_add(mixed, b)
    if len(losses) == 1:
        return rows, mixed
    return tree.scale(rows, 1 / len(losses)), tree.scale(mixed, 1 / len(losses))


def last_objectives(stage: Stage, record: Record, batches: int) -> list[BoundLoss]:
    """The losses of the last ``batches`` steps; for shorter runs, and without steps, of the stream's first ones."""
    first = max(record.end.step - batches, 0) if stage.steps else 0
    return [stage.objective(t) for t in range(first, first + batches)]


def _with_step(solver: Solver, rule: Rule, matvec: Matvec, b: Tree) -> tuple[Solver, int]:
    """Give a series solver without ``lr`` one: the rule's gradient step, else 1 / lambda_max.

    Returns:
        (solver, products spent on finding the step).
    """
    if not is_dataclass(solver) or getattr(solver, "lr", 0.0) is not None:
        return solver, 0
    step = getattr(rule, "gradient_step", None)
    used = 0
    if step is None:
        v, top = b, tree.norm(b)
        for _ in range(POWER_ITERATIONS):
            length = tree.norm(v)
            v = tree.scale(v, torch.where(length > 0, 1 / length, 0.0).to(tree.dtype_of(b)))
            v = matvec(v)
            top = tree.norm(v)
            used += 1
        step = 1 / float(top) if float(top) > 0 else 1.0
    return cast(Solver, replace(cast(Any, solver), lr=step)), used
