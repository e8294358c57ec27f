"""Implicit differentiation at the end of the run (Pedregosa 2016; Lorraine et al. 2020)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from . import tree
from .adaptation import adaptation, refuse_rule_hparams, young
from .errors import HypergradientError, NotApplicableError
from .estimator import Cost, Pullback
from .linear_system import LinearSystem, mean_pull
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
        graph: "kept" linearises the loss once and pulls the graph of its gradient back for each product, which saves a forward and
            a backward pass each time and holds as many graphs as there are ``batches``; "rebuilt" goes through the loss again
            for each product, and frees the graph as it is used. None: kept for one batch with `reverse_over_reverse`, else
            rebuilt. The other products keep no graph.
        sums: True sums the M^T v (and the rows of frozen leaves) that come with each product, so that x is never formed: a vector
            as large as the parameters less. False forms x and makes a mixed product at the end, which costs less where M^T v is
            dear. None: True for a solver that can (CG, Neumann, FixedPoint) if hyperparameters and frozen leaves hold no more
            than half the bytes of the unknowns.

    Raises:
        HypergradientError: ``batches`` is below 1, ``graph`` is none of those or there is none to keep, or ``sums`` is True and the
            solver returns its x.
    """

    solver: Solver
    product: Product = reverse_over_reverse
    batches: int = 1
    adapt: bool = False
    graph: str | None = None
    sums: bool | None = None

    def __post_init__(self) -> None:
        if self.graph not in (None, "kept", "rebuilt"):
            raise HypergradientError(f"Implicit(graph={self.graph!r}): 'kept', 'rebuilt', or None for the default")
        if self.graph == "kept" and self.product is not reverse_over_reverse:
            raise HypergradientError(
                f"Implicit(graph='kept'): only reverse_over_reverse has a graph to keep, and the product is {self.product!r}: "
                "leave graph out"
            )
        if isinstance(self.solver, type) or not callable(self.solver):
            raise HypergradientError(
                f"Implicit({self.solver!r}): give a solver such as CG(steps=20), not its name or class"
            )
        if self.sums and not getattr(self.solver, "combines", False):
            raise HypergradientError(
                f"Implicit(sums=True): {type(self.solver).__name__} returns x and cannot hand it over term by term: leave sums "
                "out, or use CG, Neumann or FixedPoint"
            )
        if self.batches < 1:
            raise HypergradientError(f"{self}: batches must be at least 1")
        if self.adapt and not hasattr(self.solver, "takes_preconditioner"):
            raise HypergradientError(
                f"{self}: {type(self.solver).__name__} takes no preconditioner: use Identity, Neumann, FixedPoint or CG "
                "(an exact solve has no use for one: D cancels)"
            )

    @property
    def keeps_graph(self) -> bool:
        """Whether the losses are linearised once."""
        if self.graph is None:
            return self.batches == 1 and self.product is reverse_over_reverse
        return self.graph == "kept"

    def _sums(self, params: Tree, hparams: Tree, unknowns: Collection[str], free: Collection[str]) -> bool:
        if self.sums is not None:
            return self.sums
        if not getattr(self.solver, "combines", False):
            return False
        images = tree.nbytes(hparams) + tree.nbytes(tree.select(params, free))
        return 2 * images <= tree.nbytes(tree.select(params, unknowns))

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

        free = [k for k in params if k in stage.frozen]
        d = self._preconditioner(stage, record, hparams, names) if self.adapt else None
        system = LinearSystem(
            self.product, losses, params, hparams, unknowns=names, free=free, decay=coupled, reduce=stage.reduce,
            kept=self.keeps_graph, sums=self._sums(params, hparams, names, free),
        )  # fmt: skip
        b = tree.select(cotangent, names)
        rest = {k: c for k, c in cotangent.items() if k not in names}
        del cotangent
        if d is None:
            varies = getattr(stage.rule, "varies", False)
            solver, extra = _with_step(self.solver, {} if varies else rules, system.hessian, b)
        else:
            solver, extra = _with_step(self.solver, {}, lambda v: system.hessian(d.apply(v)), b)
        held = [b]
        del b
        solution, rows, mixed = system.solve(solver, held, d)
        mixed = stage.reduce(mixed)
        forgets = not free and len(names) == len(params)
        start = None
        if not forgets:
            start = {k: rest[k] if k in rest else torch.zeros_like(x) for k, x in params.items()}
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
            cost=cost + system.cost + Cost(matvecs=matvecs),
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
    return mean_pull([partial(product, loss, params, hparams) for loss in losses], v, **wrt)


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
