"""How far an estimate is from the truth, without knowing it: an a posteriori bound (docs/error_bound.md derives it).

The truth is the derivative at the inner optimum theta*, and what is known of it is one solve with a residual. With
x = H^-1 c, r = c - H y, mu the smallest curvature and g(theta) = direct - M^T H^-1 c, for *any* estimate e

    ||e - g(theta*)|| <= ||e - g_y|| + ||M|| ||r|| / mu + slope ||dL/dtheta|| / mu,    g_y = direct - M^T y

where g_y is taken at a point polished by Newton's method, so that the last term is small. `certify` computes what does
not depend on the estimate; `Certificate.bound` then costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from . import tree
from .adaptation import names_of, rule_hparams
from .errors import HypergradientError, NonFiniteError
from .estimator import Hypergradient, Outer
from .implicit import Implicit, last_objectives
from .lanczos import Krylov, lanczos, random_start
from .products import BoundLoss, CentralDifference, Linearized, gradients, linearize
from .rules import declares, is_wrapper, leaf_rules
from .solvers import Outcome
from .stage import Record, Stage, check_reads
from .tree import Tree
from .unroll import Unroll

GRID = 20_000
"""Points of [mu, L] on which a residual polynomial is maximised."""

LEAST = 10
"""Steps with which a norm is bounded, if not known: `Krylov.top` is then within a factor 1.5 in 1e8 dimensions."""

NEWTON = 3
"""Most steps towards the optimum."""


@dataclass(frozen=True, kw_only=True)
class NoBound:
    """Why there is none; a number would be worth nothing."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """||estimate - truth|| <= ``total``, the truth being the hypergradient at the inner optimum.

    All norms are Euclidean, over all hyperparameters.

    Attributes:
        total: the bound; at most ``solve + gap``.
        solve: of the distance to the exact implicit gradient at the *end of the run*: the approximate inverse, truncation.
        gap: of what the end's distance from the optimum changes in that gradient.
        relative: of the error relative to the truth's norm; infinite if the truth may be zero.
        angle: degrees, of the angle to the truth; 180 if nothing can be said.
        own: of ``solve``, from what the estimate says of itself alone: the residual of its solver, or the rate of contraction
            of its unrolled steps. None if it says nothing. For unrolled steps to first order only: it takes H and M for
            constant along them.
        mu: the smallest curvature, less what Lanczos may be off by.
        doubt: bound on the probability that the true one is below ``mu / 2`` (which would double the part that stands on it).
            0: it is known.
        rigorous: nothing in ``total`` is an estimate: the spectrum and ||M|| are complete and the polished point is stationary,
            all to rounding.
    """

    total: float
    solve: float
    gap: float
    relative: float
    angle: float
    own: float | None
    mu: float
    doubt: float
    rigorous: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """What bounds the error of every estimate at one point.

    Attributes:
        end: implicit gradient at the end of the run, and ``end_slack``, what it may be off by.
        optimum: the same at the polished point, and ``slack``, what *it* may be off by the truth.
        mu, top: curvatures, as safe as they are.
        mixed: upper bound on ||M||.
        cotangent: ||c|| at the end.
        doubt, rigorous: see `ErrorBound`.
        batches: that the inner loss is the mean over.
        rounding: of an implicit gradient computed in this dtype.
        first_order: of the gap, from ||dL/dtheta|| at the end alone.
        arrives: ||c_k|| / ||c||, what is left of the cotangent where an unroll cuts the run; None if it cannot be told.
        products: second-order ones that all this took, those of the outer loss included.
    """

    end: Tree
    end_slack: float
    optimum: Tree
    slack: float
    mu: float
    top: float
    mixed: float
    cotangent: float
    doubt: float
    rigorous: bool
    batches: int
    rounding: float
    first_order: float
    arrives: Callable[[Unroll], float | None]
    products: int

    def bound(self, answer: Hypergradient, estimator: Any = None) -> ErrorBound:
        """The bound for one estimate.

        Args:
            answer: any estimator's, for the same stage and point.
            estimator: which one; it may tell more (``own``).
        """
        found = answer.hparams
        own = None if estimator is None else self._own(answer, estimator)
        solve = _apart(found, self.end) + self.end_slack
        if isinstance(estimator, Implicit) and own is not None:
            solve = min(solve, own)
        gap = _apart(self.end, self.optimum) + self.end_slack + self.slack
        if not self.rigorous:  # the solves may be worse than the run
            gap = min(gap, self.first_order)
        total = min(_apart(found, self.optimum) + self.slack, solve + gap)
        known = float(tree.norm(self.optimum))
        least = known - self.slack
        angle = _angle(found, self.optimum) + math.degrees(math.asin(self.slack / known)) if least > 0 else 180.0
        return ErrorBound(
            total=total, solve=solve, gap=gap, relative=total / least if least > 0 else math.inf, angle=min(angle, 180.0),
            own=own, mu=self.mu, doubt=self.doubt, rigorous=self.rigorous,
        )  # fmt: skip

    def _own(self, answer: Hypergradient, estimator: Any) -> float | None:
        """||M|| ||r|| / mu with the residual that the estimate knows of itself."""
        relative = None
        if isinstance(estimator, Implicit):
            if estimator.batches != self.batches:
                return None
            relative = _residual(answer, estimator, self.mu)
        elif isinstance(estimator, Unroll):
            relative = self.arrives(estimator)
        return None if relative is None else self.mixed * relative * self.cotangent / self.mu + self.rounding


def error_bound(
    outer: Outer,
    stage: Stage,
    record: Record,
    hparams: Tree,
    answer: Hypergradient,
    estimator: Any = None,
    **options: Any,
) -> ErrorBound | NoBound:
    """The bound for one estimate of a problem with one stage; for several at one point, call `certify` once.

    Args:
        outer, stage, record, hparams: as `hypergradient` had them.
        answer: what it returned.
        estimator: by which.
        options: of `certify`.
    """
    found = certify(outer, stage, record, hparams, **options)
    return found if isinstance(found, NoBound) else found.bound(answer, estimator)


def certify(
    outer: Outer, stage: Stage, record: Record, hparams: Tree, *, products: int = 30, batches: int = 1, seed: int = 0
) -> Certificate | NoBound:
    """Spend 7 ``products`` at most (a few more if there are under 20) on what bounds the error of every estimate there.

    Rigorous with ``products`` no smaller than the number of parameters, or of distinct curvatures; an estimate else. The memory
    is that of ``products`` vectors and of the kept graph of one gradient. Products are exact (double backward).

    Args:
        outer, stage, record, hparams: as `hypergradient` has them. Of the record only the end is read, and for ``own`` of an
            unroll through a nonlinear rule its states.
        products: of each Krylov space: one for the curvature, one for each solve.
        batches: the inner loss is the mean over this many of the stream's last batches, as in `Implicit`.
        seed: of Lanczos' starts.

    Raises:
        NonFiniteError: a product is NaN or infinite.
    """
    if inside := rule_hparams(stage, record.end, hparams):
        return NoBound(
            reason=f"the hyperparameters {inside} sit in the rule: the inner optimum does not depend on them"
        )
    hparams, end = tree.detach(hparams), record.end.params
    losses = last_objectives(stage, record, batches)
    here = _System(stage, losses, end, hparams, record.end.step)
    if here.decoupled:
        return NoBound(reason=f"{here.decoupled} decays outside the loss: its fixed point is no stationary point")
    spaces: list[Krylov] = []

    def solve(system: _System, b: Tensor) -> tuple[Tensor, float] | None:
        if not b.any():
            return b, 0.0
        spaces.append(lanczos(system.hessian, b, products))
        return spaces[-1].solve()

    at, systems = here, [here]
    for _ in range(NEWTON):
        newton = solve(at, at.gradient)
        if newton is None:
            return _indefinite(spaces[-1])
        moved = _System(stage, losses, at.moved(newton[0]), hparams, record.end.step)
        systems.append(moved)
        if not moved.slope < at.slope / 2:
            break
        at = moved
    curvature = lanczos(at.hessian, random_start(at.size, seed, at.gradient), products)
    mu = min([curvature.lowest, *(float(s.ritz[0][0]) for s in spaces)])
    if not mu > 0:
        return _indefinite(curvature)
    half = products if at.smaller <= products else max(products // 2, LEAST)
    norm = lanczos(at.gram, random_start(at.smaller, seed + 1, at.gradient), half)
    mixed = math.sqrt(max(norm.top, 0.0))
    solved = [_implicit(outer, stage, system, solve) for system in (here, at)]
    if None in solved:
        return _indefinite(spaces[-1])
    first, last = cast(list[_Solved], solved)
    bend = lanczos(last.outer_hessian, random_start(at.size, seed + 2, at.gradient), half)
    outer_curvature = max(abs(bend.highest), abs(bend.lowest))
    eps = torch.finfo(tree.dtype_of(end)).eps
    apart = float(torch.linalg.vector_norm(here.flat - at.flat))
    scale = float(torch.linalg.vector_norm(at.flat)) + apart
    stationary = at.slope <= 1e3 * eps * curvature.highest * scale
    if at is here and not stationary:
        return NoBound(
            reason=f"Newton's method finds no optimum: its step does not halve the gradient ({at.slope:.2g}). Train longer, or "
            "allow more products"
        )
    slope = mixed * outer_curvature / mu + (_apart(first.hparams, last.hparams) / apart if apart else 0.0)
    rounding = 16 * eps * curvature.highest / mu * (mixed * last.cotangent / mu + last.direct)
    return Certificate(
        end=first.hparams, end_slack=mixed * first.residual / mu + rounding,
        optimum=last.hparams, slack=mixed * last.residual / mu + slope * at.slope / mu + rounding,
        mu=mu, top=curvature.highest, mixed=mixed, cotangent=first.cotangent, doubt=curvature.doubt,
        rigorous=curvature.exhausted and norm.exhausted and stationary, batches=batches, rounding=rounding, first_order=slope * here.slope / mu + rounding,
        arrives=partial(  # no lambda, which would hold the graphs
            _arrives, stage=stage, record=record, hparams=hparams, cotangent=first.at_end, ends=(mu, curvature.highest)
        ),
        products=sum(s.products for s in systems) + len(bend.diagonal),
    )  # fmt: skip


def _arrives(
    unroll: Unroll, *, stage: Stage, record: Record, hparams: Tree, cotangent: Tree, ends: tuple[float, float]
) -> float | None:
    """||c_k|| / ||c|| where k steps end. H constant, the sum that was taken has just this residual, whatever the rule:
    a step adds x and takes H x off the cotangent.

    A linear rule's residual polynomial bounds it, q^k for gradient descent with q = max |1 - lr h|; for other rules
    the steps are swept again.
    """
    steps = stage.steps if unroll.last is None else min(unroll.last, stage.steps)
    rule = None if is_wrapper(stage.rule) or stage.rule_reads_hparams else stage.rule
    if rule is not None and linear_rule(rule):
        return residual_polynomial(rule, steps, spectrum(*ends))
    whole = replace(stage, steps=steps)
    try:
        start = replace(unroll, last=None).pullback(whole, record, hparams, dict(cotangent)).start
    except HypergradientError:  # the record does not reach that far, or the rule has no derivative
        return None
    left, size = tree.norm(cast(Tree, start)), tree.norm(cotangent)
    return float(left / size) if float(size) > 0 else 0.0


def residual_polynomial(rule: Any, steps: int, eigenvalues: Tensor) -> float:
    """max |p_T|, w_T - w* = p_T(H) (w_0 - w*): the rule itself, run on scalars.

    Args:
        rule: linear, without weight decay.
        steps: T.
        eigenvalues: of H, or a grid over them.
    """
    w = torch.ones_like(eigenvalues)
    slots = rule.init(w)
    for t in range(steps):
        change, slots = rule.update(eigenvalues * w, slots, t + 1, w)
        w = w + change
    return float(w.abs().max())


def spectrum(low: float, high: float) -> Tensor:
    """A grid over [low, high], float64."""
    return torch.linspace(math.log(low), math.log(max(high, low)), GRID, dtype=torch.float64).exp()


def linear_rule(rule: Any) -> bool:
    """Whether a residual polynomial describes the rule: linear in its gradients, and nothing else moves the leaf."""
    return declares(rule, "linear") and not any(float(getattr(rule, k, 0)) for k in ("weight_decay", "dampening"))


class _System:
    """H and M of the implicit function theorem at one point, in flat vectors over its unknowns.

    The same as `Implicit`'s: the mean over ``losses``, coupled weight decay included, of the leaves that the losses read.
    """

    def __init__(self, stage: Stage, losses: list[BoundLoss], params: Tree, hparams: Tree, step: int) -> None:
        trained = stage.trained(params)
        self.params, self.hparams, self.products = params, hparams, 0
        self._stage, self._losses, self._mixed = stage, losses, list[Linearized]()
        self._at = [
            linearize(f, params, hparams, tangents=trained, wrt_params=trained, wrt_hparams=hparams) for f in losses
        ]
        grads: Tree = {}
        for at in self._at:
            grads = tree.union_add(grads, at.take())
        check_reads(grads, trained)
        grads = stage.reduce(tree.scale(grads, 1 / len(losses)))
        rules = leaf_rules(stage.bind(hparams), grads, max(step - 1, 0))
        decays = {
            k: d for k, r in rules.items() if float(torch.as_tensor(d := getattr(r, "weight_decay", 0.0)).max()) > 0
        }
        decoupled = [k for k in decays if getattr(rules[k], "decoupled_weight_decay", False)]
        self.decoupled = names_of(stage.bind(hparams), decoupled, max(step - 1, 0))
        self._decays = decays
        self.unknowns = {k: params[k] for k in grads}
        self.flat = tree.flatten(self.unknowns)
        self.gradient = tree.flatten(self._decayed(grads, self.unknowns))
        self.slope = float(torch.linalg.vector_norm(self.gradient))
        self.size = self.flat.numel()
        self.smaller = min(self.size, tree.size(hparams))

    def moved(self, step: Tensor) -> Tree:
        """theta - step."""
        return {**self.params, **tree.unflatten(self.flat - step, self.unknowns)}

    def hessian(self, v: Tensor) -> Tensor:
        """H v."""
        tangent = tree.unflatten(v, self.unknowns)
        rows: Tree = {}
        for at in self._at:
            rows = tree.union_add(rows, at.pull(tangent, wrt_params=self.unknowns)[0])
        self.products += len(self._at)
        rows = self._stage.reduce(tree.fill(tree.scale(rows, 1 / len(self._at)), self.unknowns))
        return _finite(tree.flatten(self._decayed(rows, tangent)))

    def transposed(self, v: Tensor) -> Tensor:
        """M^T v."""
        tangent = tree.unflatten(v, self.unknowns)
        mixed: Tree = {}
        for at in self._at:
            mixed = tree.union_add(mixed, at.pull(tangent, wrt_hparams=self.hparams)[1])
        self.products += len(self._at)
        return _finite(tree.flatten(self._stage.reduce(tree.fill(tree.scale(mixed, 1 / len(self._at)), self.hparams))))

    def mixed(self, u: Tensor) -> Tensor:
        """M u: the same product with the roles of theta and lam exchanged."""
        if not self._mixed:
            self._mixed = [
                linearize(_swapped(f), self.hparams, self.params, tangents=self.hparams, wrt_hparams=self.unknowns)
                for f in self._losses
            ]
        tangent = tree.unflatten(u, self.hparams)
        rows: Tree = {}
        for at in self._mixed:
            rows = tree.union_add(rows, at.pull(tangent, wrt_hparams=self.unknowns)[1])
        self.products += len(self._mixed)
        return _finite(tree.flatten(self._stage.reduce(tree.fill(tree.scale(rows, 1 / len(self._at)), self.unknowns))))

    def gram(self, v: Tensor) -> Tensor:
        """M^T M or M M^T, whichever is smaller."""
        return (
            self.mixed(self.transposed(v)) if self.size <= tree.size(self.hparams) else self.transposed(self.mixed(v))
        )

    def _decayed(self, rows: Tree, at: Tree) -> Tree:
        return {k: rows[k] + self._decays[k] * at[k] if k in self._decays else rows[k] for k in self.unknowns}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Solved:
    """The implicit gradient at one point, and the norms that bound what it is off by."""

    hparams: Tree
    residual: float
    cotangent: float
    direct: float
    at_end: Tree
    outer_hessian: Callable[[Tensor], Tensor]


def _implicit(
    outer: Outer, stage: Stage, system: _System, solve: Callable[[_System, Tensor], tuple[Tensor, float] | None]
) -> _Solved | None:
    """Direct outer gradient - M^T y with H y = c as far as ``solve`` goes; None if H is indefinite."""
    params, hparams, unknowns = system.params, system.hparams, system.unknowns
    _, cotangent, direct = gradients(outer, params, hparams, wrt_params=unknowns, wrt_hparams=hparams)
    c = tree.flatten(stage.reduce(tree.fill(cotangent, unknowns)))
    direct = stage.reduce(tree.fill(direct, hparams))
    solved = solve(system, c)
    if solved is None:
        return None
    at = linearize(outer, params, hparams, tangents=unknowns, wrt_params=unknowns)

    def outer_hessian(v: Tensor) -> Tensor:
        rows, _ = at.pull(tree.unflatten(v, unknowns), wrt_params=unknowns)
        return _finite(tree.flatten(stage.reduce(tree.fill(rows, unknowns))))

    return _Solved(
        hparams=tree.sub(direct, tree.unflatten(system.transposed(solved[0]), hparams)), residual=solved[1],
        cotangent=float(torch.linalg.vector_norm(c)), direct=float(tree.norm(direct)), outer_hessian=outer_hessian,
        at_end=stage.reduce(tree.fill(cotangent, params)),
    )  # fmt: skip


def _residual(answer: Hypergradient, estimator: Implicit, mu: float) -> float | None:
    """||c - H y|| / ||c|| of the solver's y, for the undamped H; None where the solver's figure is another norm's or
    operator's, or none."""
    pulled = answer.pullbacks[-1]
    told = (Outcome.CONVERGED, Outcome.BUDGET, Outcome.APPROXIMATE, Outcome.MISSED)
    other = estimator.adapt or isinstance(estimator.product, CentralDifference)
    if pulled.residual is None or other or pulled.outcome not in told:
        return None
    damping, relative = float(getattr(estimator.solver, "damping", 0.0)), pulled.residual
    return relative + damping * (1 + relative) / (mu + damping)  # the damped system's, and damping ||y||


def _indefinite(space: Krylov) -> NoBound:
    least = float(space.ritz[0][0])
    if least > 0:
        return NoBound(
            reason=f"the smallest curvature is not known: {least:.2g} after {len(space.diagonal)} products, give or take as much. "
            "Allow more products, or add a penalty to the inner loss"
        )
    return NoBound(reason=f"the inner loss has curvature {least:.2g} at the end, so that it is at no strict minimum")


def _swapped(loss: BoundLoss) -> BoundLoss:
    return lambda hparams, params: loss(params, hparams)


def _apart(a: Tree, b: Tree) -> float:
    return float(tree.norm(tree.sub(a, b)))


def _angle(a: Tree, b: Tree) -> float:
    """Degrees."""
    u, v = (tree.flatten(x) for x in (a, b))
    sizes = torch.linalg.vector_norm(u), torch.linalg.vector_norm(v)
    if not bool(sizes[0] * sizes[1] > 0):
        return 180.0
    u, v = u / sizes[0], v / sizes[1]
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))  # accurate at both ends (Kahan)


def _finite(x: Tensor) -> Tensor:
    if not tree.holds(torch.isfinite(x).all()):
        raise NonFiniteError("a second-order product is NaN or infinite: look at the loss at the end of the run")
    return x
