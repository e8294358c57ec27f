"""Implicit differentiation at the end of the run (Pedregosa 2016; Lorraine et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from . import tree
from .adaptation import adaptation, refuse_rule_hparams, young
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, Pullback
from .products import BoundLoss, Product, gradients, reverse_over_reverse
from .rules import Rule, leaf_rules
from .solvers import Matvec, Outcome, Preconditioner, Solver
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

    With ``adapt`` the solver is preconditioned by D = -(du/dg)^T of the last update u, the adaptation of SAMA: D cancels in
    an exact solve, and matters as long as the solve is not exact. `Identity` is then SAMA (with this product), `Neumann`
    the adapted series D sum_j (I - H D)^j c, which leads from SAMA to the exact implicit gradient, `CG` the adapted CG.
    Coordinates whose adaptation is zero (they never had a gradient) stay zero in x.

    Args:
        solver: of H x = c; called as ``solver(matvec, b)``, or ``solver(matvec, b, preconditioner)``.
        adapt: precondition with the rule's adaptation.
        product: form of the second-order product.
        batches: average H and M over this many of the stream's last batches (a minibatch Hessian is a noisy one).

    Raises:
        HypergradientError: ``batches`` is below 1.
    """

    solver: Solver
    product: Product = reverse_over_reverse
    batches: int = 1
    adapt: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.solver, type) or not callable(self.solver):
            raise HypergradientError(
                f"Implicit({self.solver!r}): give a solver such as CG(steps=20), not its name or class"
            )
        if self.batches < 1:
            raise HypergradientError(f"{self}: batches must be at least 1")
        if self.adapt and not hasattr(self.solver, "takes_preconditioner"):
            raise HypergradientError(
                f"{self}: {type(self.solver).__name__} takes no preconditioner: use Identity, Neumann, FixedPoint or CG "
                "(an exact solve has no use for one: D cancels)"
            )

    @property
    def tail(self) -> int:
        return 0

    def pullback(self, stage: Stage, record: Record, hparams: Tree, cotangent: Tree) -> Pullback:
        """See `Estimator`.

        Raises:
            NotApplicableError: hyperparameters sit in the rule; with ``adapt``, also as `adapt`, a leaf that had no gradient
                in the last step, or a solver that needs a symmetric D and a rule that mixes coordinates.
            HypergradientError: the loss reads no trained leaf; and as the solver.
        """
        refuse_rule_hparams(stage, record, hparams, "Implicit")
        params = record.end.params
        losses = last_objectives(stage, record, self.batches)
        names, cost = self._unknowns(stage, record, losses, hparams)
        rules = leaf_rules(stage.bind(hparams), names, max(record.end.step - 1, 0))
        decays = {k: d for k, r in rules.items() if _any_positive(d := getattr(r, "weight_decay", 0.0))}
        decoupled = {k for k in decays if getattr(rules[k], "decoupled_weight_decay", False)}
        coupled = {k: d for k, d in decays.items() if k not in decoupled}

        def matvec(v: Tree) -> Tree:
            hv, _ = mean_product(self.product, losses, params, hparams, v, wrt_params=v)
            hv = stage.reduce(tree.fill(hv, v))
            return {k: hv[k] + coupled[k] * v[k] if k in coupled else hv[k] for k in v}

        b = tree.select(cotangent, names)
        if self.adapt:
            d = self._preconditioner(stage, record, hparams, names)
            solver, extra = _with_step(self.solver, {}, lambda v: matvec(d.apply(v)), b)
            solution = cast(Any, solver)(matvec, b, d)
        else:
            varies = getattr(stage.rule, "varies", False)
            solver, extra = _with_step(self.solver, {} if varies else rules, matvec, b)
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
        if outcome in (Outcome.CONVERGED, Outcome.BUDGET, Outcome.APPROXIMATE):
            if decoupled:
                outcome = Outcome.NOT_STATIONARY
            elif self.adapt and young(stage, record, hparams):
                outcome = Outcome.YOUNG
        return Pullback(
            hparams=tree.scale(mixed, -1.0),
            start=start,
            outcome=outcome,
            cost=cost + Cost(matvecs=matvecs, products=(matvecs + 1) * len(losses)),
            residual=solution.residual,
            curvature=solution.curvature,
        )

    def _preconditioner(self, stage: Stage, record: Record, hparams: Tree, names: set[str]) -> Preconditioner:
        made = adaptation(stage, record, hparams)
        if missing := sorted(names - cast(Tree, record.grad).keys()):
            raise NotApplicableError(
                f"the leaves {missing} had no gradient in the last step, so that its adaptation says nothing of them: use "
                "adapt=False or batches=1"
            )
        if cast(Any, self.solver).takes_preconditioner == "symmetric" and not made.symmetric:
            raise NotApplicableError(
                f"{type(self.solver).__name__} needs a symmetric preconditioner, and the rule mixes coordinates: use "
                "Neumann, or adapt=False"
            )
        return made

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


def _any_positive(x: float | Tensor) -> bool:
    return bool(x.gt(0).any()) if isinstance(x, Tensor) else x > 0


def _with_step(solver: Solver, rules: dict[str, Rule], matvec: Matvec, b: Tree) -> tuple[Solver, int]:
    """Give a series solver without ``lr`` one: the gradient step that all rules share, else 1 / lambda_max.

    A rate of 0, and one that changes with the step (``rules`` is empty then), say nothing of where the run stopped.

    Returns:
        (solver, products spent on finding the step).
    """
    if not is_dataclass(solver) or getattr(solver, "lr", 0.0) is not None:
        return solver, 0
    steps = {None if (s := getattr(r, "gradient_step", None)) is None else float(s) for r in rules.values()}
    step = (steps.pop() if len(steps) == 1 else None) or None
    used = 0
    if step is None:
        v, top = b, tree.norm(b)
        for _ in range(POWER_ITERATIONS):
            length = tree.norm(v)
            v = tree.scale(v, torch.where(length > 0, 1 / length, 0.0).to(tree.dtype_of(b)))
            v = matvec(v)
            top = tree.norm(v)
            used += 1
        step = 1 / float(top) if tree.has_values(top) and float(top) > 0 else 1.0
    return cast(Solver, replace(cast(Any, solver), lr=step)), used
