"""Error bounds that theory gives, evaluated for one problem instance and one estimator.

They hold where the inner loss is quadratic with a fixed Hessian H and the mixed derivative is a multiple of the
identity, M = b I (biased regression). Then every estimate is -b q with q an approximation of x* = H^-1 c*, c* the
outer gradient at the inner optimum w*, and the relative error of the hypergradient is that of q. With w_T the end of
T steps and c_T the outer gradient there,

    E = ||H^-1 (c_T - c*)|| / ||x*||  <=  ||A|| P_T ||w_0 - w*|| / (lambda_min ||x*||)

is what stopping the run early costs (A: outer Hessian, P_T: largest modulus of the T-step residual polynomial of the
rule on [lambda_min, lambda_max]), and an inverse with relative error S leaves at most E + S (1 + E):

    exact solve             S = 0
    CG, K products          S = 2 sqrt(kappa) ((sqrt(kappa)-1)/(sqrt(kappa)+1))^K   (the energy-norm bound, in the
                            2-norm: ||e||_2 <= ||e||_H / sqrt(lambda_min), ||x||_H <= sqrt(lambda_max) ||x||_2);
                            or kappa rtol, if the tolerance stops it first
    Neumann, K products     S = max |1 - a lambda|^(K+1)
    fixed point, K terms    S = max |1 - a lambda|^K
    unroll of K steps       S = P_K
    identity                the angle between c and H^-1 c is at most arccos(2 sqrt(kappa)/(1 + kappa))  (Wielandt)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators import (
    CG,
    SAMA,
    T1T2,
    Dense,
    FixedPoint,
    Forward,
    Implicit,
    Neumann,
    Problem,
    Record,
    Tree,
    Unroll,
)
from estimators.error_bound import linear_rule, residual_polynomial
from estimators.rules import is_wrapper

GRID = 20_000
"""Points of [lambda_min, lambda_max] on which a residual polynomial is maximised, beside the eigenvalues."""


@dataclass(frozen=True)
class Setting:
    """What the bounds need to know of a problem instance and its run."""

    eigenvalues: Tensor
    early: float
    rule: Any
    steps: int
    eps: float

    @property
    def condition(self) -> float:
        return float(self.eigenvalues[-1] / self.eigenvalues[0])


def setting(problem: Problem, record: Record, hparams: Tree) -> Setting | None:
    """The bounds' inputs, or None where their assumptions do not hold (each is checked, none is believed)."""
    stage = problem.stages[0]
    rule = None if stage.rule_reads_hparams or is_wrapper(stage.rule) else stage.bind(hparams)
    if len(problem.stages) > 1 or not linear_rule(rule) or not isinstance(problem.start, dict) or stage.frozen:
        return None
    if sum(x.numel() for x in problem.start.values()) > 256 or len(hparams) != 1 or len(problem.start) != 1:
        return None
    (key, w0), (name, lam) = next(iter(problem.start.items())), next(iter(hparams.items()))
    dtype = w0.dtype
    w0, end, lam = w0.double(), record.end.params[key].double(), lam.double()
    if w0.shape != lam.shape or w0.dim() != 1:
        return None

    def inner(w: Tensor, h: Tensor, step: int) -> Tensor:
        return stage.objective(step)({key: w.to(dtype)}, {name: h.to(dtype)}).double()

    def outer(w: Tensor) -> Tensor:
        return problem.outer({key: w.to(dtype)}, hparams).double()

    probes = [torch.autograd.functional.hessian(lambda w, t=t: inner(w, lam, t), p) for p, t in ((w0, 0), (end + 1, max(stage.steps - 1, 0)))]  # fmt: skip
    hessian = 0.5 * (probes[0] + probes[0].T)
    leave = w0.clone().requires_grad_()
    vary = lam.clone().requires_grad_()
    (slope,) = torch.autograd.grad(inner(leave, vary, 0), leave, create_graph=True)
    mixed = torch.stack([torch.autograd.grad(g, vary, retain_graph=True)[0] for g in slope])
    tight = 1e3 * torch.finfo(dtype).eps
    scale = float(mixed.diagonal().mean()) * torch.eye(len(lam), dtype=torch.float64)
    if not torch.allclose(probes[0], probes[1], rtol=tight, atol=tight * float(hessian.abs().max())):
        return None
    if not torch.allclose(mixed, scale, atol=tight * float(scale.abs().max()), rtol=0):
        return None
    eigenvalues = torch.linalg.eigvalsh(hessian)
    if not float(eigenvalues[0]) > 0:
        return None
    best = w0 - torch.linalg.solve(hessian, slope.detach())  # one Newton step: the loss is quadratic
    (pull,) = torch.autograd.grad(outer(at := best.clone().requires_grad_()), at)
    exact = torch.linalg.solve(hessian, pull)
    outer_size = float(torch.linalg.matrix_norm(torch.autograd.functional.hessian(outer, best), 2))
    apart = float(torch.linalg.vector_norm(w0 - best)) * residual(rule, stage.steps, eigenvalues)
    early = outer_size * apart / (float(eigenvalues[0]) * float(torch.linalg.vector_norm(exact)))
    return Setting(eigenvalues, early, rule, stage.steps, torch.finfo(dtype).eps)


def residual(rule: Any, steps: int, eigenvalues: Tensor) -> float:
    """max |p_T| over the spectrum's interval, w_T - w* = p_T(H) (w_0 - w*): the rule itself, run on scalars."""
    low, high = math.log(float(eigenvalues[0])), math.log(float(eigenvalues[-1]))
    grid = torch.cat([torch.linspace(low, high, GRID, dtype=torch.float64).exp(), eigenvalues])
    return residual_polynomial(rule, steps, grid)


def bound(s: Setting, estimator: Any) -> dict[str, Any] | None:
    """Upper bounds on relative error and angle (degrees) to the truth, and where they come from; None without one."""
    slack = 100 * s.eps * s.condition  # rounding
    if isinstance(estimator, (T1T2, SAMA)):
        kappa = s.condition
        wielandt = math.acos(min(1.0, 2 * math.sqrt(kappa) / (1 + kappa)))
        angle = wielandt + math.asin(min(1.0, s.early)) + math.sqrt(s.eps)  # a central difference rounds more
        return _named(s, None, angle, "identity for the inverse: Wielandt's inequality")
    inverse = _inverse_error(s, estimator)
    if inverse is None:
        return None
    error, by = inverse
    relative = s.early + error * (1 + s.early) + slack
    return _named(s, relative, math.asin(relative) if relative < 1 else None, by)


def _inverse_error(s: Setting, estimator: Any) -> tuple[float, str] | None:
    solver = estimator.solver if isinstance(estimator, Implicit) else None
    root = math.sqrt(s.condition)
    step = getattr(solver, "lr", None) or getattr(s.rule, "gradient_step", None)
    shrink = None if step is None else float((1 - float(step) * s.eigenvalues).abs().max())
    match estimator, solver:
        case (_, Dense()):
            return 0.0, "exact solve"
        case (_, CG(damping=0.0) as cg):
            chebyshev = 2 * root * ((root - 1) / (root + 1)) ** cg.steps
            return max(chebyshev, s.condition * max(cg.rtol, s.eps)), "CG: Chebyshev"
        case (Implicit(adapt=True), Neumann() | FixedPoint()):
            return None  # its step is another one
        case (_, Neumann() as series) if shrink is not None:
            return shrink ** (series.steps + 1), "Neumann: geometric"
        case (_, FixedPoint(rtol=0.0) as series) if shrink is not None:
            return shrink**series.steps, "fixed point: geometric"
        case (Unroll() | Forward(), _):
            last = getattr(estimator, "last", None)
            taken = s.steps if last is None else min(last, s.steps)
            return residual(s.rule, taken, s.eigenvalues), "unrolled steps: residual polynomial"
    return None


def _named(s: Setting, relative: float | None, angle: float | None, by: str) -> dict[str, Any]:
    degrees = None if angle is None or angle >= math.pi else math.degrees(angle)
    return {"relative_error": relative, "angle": degrees, "by": by}
