"""The error to the true hypergradient, held under the bound that theory gives, over conditioning from 2 to 1e4.

Every bound is computed from the problem's own spectrum with numpy-like dense algebra; none is "small".
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS
from estimators import (
    CG,
    SGD,
    Dense,
    Implicit,
    Neumann,
    Problem,
    Stage,
    Unroll,
    estimate,
    registry,
)
from estimators.tree import flatten

CONDITIONS = [2.0, 10.0, 100.0, 1e3, 1e4]
ROUNDING = 1e-11  # of the true answer itself at condition 1e4, relative


@cache
def regression(cond: float, rule: str = "momentum", steps: int | None = None) -> Problem:
    return PROBLEMS["biased_regression"].make(seed=3, cond=cond, rule=rule, steps=steps)


class Exactly:
    """w*, v*, H, B and A = d2M/dw2 of a biased regression, from its losses alone (both are quadratic)."""

    def __init__(self, problem: Problem) -> None:
        (stage,) = problem.stages
        (self.name,), (self.lam_name,) = problem.start, problem.hparams
        self.n = flatten(problem.start).numel()  # type: ignore[arg-type]
        batch = stage.stream(0)
        self.problem, self.stage = problem, stage

        def inner(z: Tensor) -> Tensor:
            return stage.loss({self.name: z[: self.n]}, {self.lam_name: z[self.n :]}, batch)

        def outer(w: Tensor) -> Tensor:
            return problem.outer({self.name: w}, problem.hparams)

        zero = torch.zeros(2 * self.n, dtype=torch.float64)
        full = torch.autograd.functional.hessian(inner, zero)
        slope = torch.autograd.functional.jacobian(inner, zero)
        self.h, self.b = full[: self.n, : self.n], full[: self.n, self.n :]
        self.a = torch.autograd.functional.hessian(outer, zero[: self.n])
        self.v0 = torch.autograd.functional.jacobian(outer, zero[: self.n])
        self.lam = problem.hparams[self.lam_name]
        self.w = torch.linalg.solve(self.h, -slope[: self.n] - self.b @ self.lam)
        self.truth = -self.b.T @ torch.linalg.solve(self.h, self.v(self.w))
        eigenvalues = torch.linalg.eigvalsh(self.h)
        self.mu, self.top = float(eigenvalues[0]), float(eigenvalues[-1])
        self.kappa = self.top / self.mu

    def v(self, w: Tensor) -> Tensor:
        return self.v0 + self.a @ w

    def at_optimum(self) -> Problem:
        """The same problem, started at its inner optimum, no step taken."""
        stage = Stage(self.stage.loss, SGD(lr=1 / self.top), self.stage.stream, 0)
        return Problem("at optimum", [stage], self.problem.outer, {self.name: self.w}, self.problem.hparams)


def distance(problem: Problem, estimator: object, truth: Tensor) -> float:
    return float((flatten(estimate(problem, estimator).hparams) - truth).norm())  # type: ignore[arg-type]


@pytest.mark.parametrize("cond", CONDITIONS)
def test_the_problem_has_the_condition_and_the_truth_it_says(cond: float) -> None:
    problem = regression(cond)
    e = Exactly(problem)
    assert e.kappa == pytest.approx(cond, rel=1e-9)
    assert float((flatten(problem.exact(problem.hparams)) - e.truth).norm() / e.truth.norm()) < ROUNDING  # type: ignore[misc]


@pytest.mark.parametrize("cond", CONDITIONS[:4])
@pytest.mark.parametrize("name", [n for n in registry if registry[n].claim.exact and n != "composed"])
def test_exact_estimators_are_exact(name: str, cond: float) -> None:
    """The issue's figure: below 1e-8 up to condition 1e3, in float64, whatever the estimator is exact for."""
    problem = regression(cond)
    e = Exactly(problem)
    assert distance(problem, name, e.truth) / float(e.truth.norm()) < 1e-8


@pytest.mark.parametrize("cond", CONDITIONS)
@pytest.mark.parametrize("steps", [5, 20, 80])
def test_unrolled_gradient_descent(cond: float, steps: int) -> None:
    """g_T - g* = -B'H^-1 [ v_T - v* - (I - lr H)^T v_T ]: geometric with rho = (kappa-1)/(kappa+1) at lr = 2/(L+mu)."""
    problem = regression(cond, rule="sgd", steps=steps)
    e = Exactly(problem)
    rho = (e.kappa - 1) / (e.kappa + 1)
    away = rho**steps * float(e.w.norm())  # the start is w = 0
    v_end = float(e.v(e.w).norm()) + float(torch.linalg.matrix_norm(e.a, 2)) * away
    beta = float(torch.linalg.matrix_norm(e.b, 2))
    bound = beta / e.mu * (float(torch.linalg.matrix_norm(e.a, 2)) * away + rho**steps * v_end)
    error = distance(problem, Unroll(), e.truth)
    assert error <= bound * (1 + 1e-9) + ROUNDING * float(e.truth.norm())


@pytest.mark.parametrize("cond", CONDITIONS)
@pytest.mark.parametrize("steps", [5, 20, 80])
def test_implicit_away_from_the_optimum(cond: float, steps: int) -> None:
    """An exact solve at w_T: only v is off, by A (w_T - w*)."""
    problem = regression(cond, rule="sgd", steps=steps)
    e = Exactly(problem)
    rho = (e.kappa - 1) / (e.kappa + 1)
    beta, a = (float(torch.linalg.matrix_norm(x, 2)) for x in (e.b, e.a))
    bound = beta / e.mu * a * rho**steps * float(e.w.norm())
    assert distance(problem, Dense(), e.truth) <= bound * (1 + 1e-9) + ROUNDING * float(e.truth.norm())


@pytest.mark.parametrize("cond", CONDITIONS)
@pytest.mark.parametrize("steps", [0, 1, 10, 50])
def test_neumann(cond: float, steps: int) -> None:
    """(I - aH)^(K+1) is what is missing: geometric with 1 - a mu at a = 1/L."""
    e = Exactly(regression(cond))
    x = torch.linalg.solve(e.h, e.v(e.w))
    bound = float(torch.linalg.matrix_norm(e.b, 2)) * (1 - 1 / e.kappa) ** (steps + 1) * float(x.norm())
    error = distance(e.at_optimum(), Implicit(Neumann(steps=steps, lr=1 / e.top)), e.truth)
    assert error <= bound * (1 + 1e-9) + ROUNDING * float(e.truth.norm())


@pytest.mark.parametrize("cond", CONDITIONS)
@pytest.mark.parametrize("steps", [1, 3, 6, 9])
def test_cg(cond: float, steps: int) -> None:
    """Chebyshev: ||x_k - x||_H <= 2 ((sqrt(kappa)-1)/(sqrt(kappa)+1))^k ||x||_H, and ||.||_H >= sqrt(mu) ||.||."""
    e = Exactly(regression(cond))
    x = torch.linalg.solve(e.h, e.v(e.w))
    energy = float((x @ e.h @ x).sqrt())
    q = (e.kappa**0.5 - 1) / (e.kappa**0.5 + 1)
    bound = float(torch.linalg.matrix_norm(e.b, 2)) * 2 * q**steps * energy / e.mu**0.5
    error = distance(e.at_optimum(), CG(steps=steps), e.truth)
    assert error <= bound * (1 + 1e-9) + ROUNDING * float(e.truth.norm())


@pytest.mark.parametrize("cond", CONDITIONS)
def test_cg_ends_within_the_dimension(cond: float) -> None:
    """n distinct eigenvalues: n steps in exact arithmetic; conditioning costs digits, not convergence."""
    e = Exactly(regression(cond))
    assert distance(e.at_optimum(), CG(steps=3 * e.n), e.truth) / float(e.truth.norm()) < 1e-9


def test_identity_bias_is_visible_where_the_fixed_point_moves() -> None:
    """Biased regression cannot show it (B is a multiple of I): weighted ridge can."""
    problem = PROBLEMS["weighted_ridge"].make(seed=0)
    truth = flatten(problem.exact(problem.hparams))  # type: ignore[misc]
    for name, most in (("sama-na", 0.999), ("cg", None)):
        g = flatten(estimate(problem, name).hparams)
        cosine = float(g @ truth / g.norm() / truth.norm())
        assert cosine < most if most else cosine > 1 - 1e-12


@pytest.mark.parametrize("name", ["cg", "dense", "unroll", "sama-exact", "sama-na"])
def test_hundred_meta_steps_reach_the_optimum_at_the_expected_rate(name: str) -> None:
    """Meta gradient descent on a quadratic meta loss contracts by (k-1)/(k+1), k the condition number of its map.

    The exact gradient is P (lam - lam*) with P = 2A'A; SAMA's is Q (lam - lam*) with Q = s B'A_w H^-1 B, similar to a
    symmetric matrix here because B is a multiple of I and A_w is positive: real spectrum, so the same rate law.
    """
    base = regression(5.0)
    e = Exactly(base)
    moved = torch.linalg.solve(e.h, e.b)  # -dw*/dlam
    scale = 1.0
    if name == "sama-exact":
        scale = float(base.stages[0].rule.lr)  # type: ignore[arg-type, union-attr]
    sensitivity = scale * e.b.T if name.startswith("sama") else moved.T
    law = sensitivity @ e.a @ moved
    eigenvalues, vectors = torch.linalg.eig(law)
    assert float(eigenvalues.imag.abs().max()) < 1e-10 * float(eigenvalues.real.max())
    low, high = float(eigenvalues.real.min()), float(eigenvalues.real.max())
    step, rate = 2 / (low + high), (high - low) / (high + low)
    best = flatten(base.optimum)  # type: ignore[arg-type]
    lam = dict(base.hparams)
    first = float((flatten(lam) - best).norm())
    for _ in range(100):
        g = estimate(base, name, lam).hparams
        lam = {k: x - step * g[k] for k, x in lam.items()}
    # eigenvectors of a non-normal law are not orthogonal: their condition number is the constant in front
    constant = float(torch.linalg.cond(vectors))
    reached = float((flatten(lam) - best).norm())
    assert reached <= first * (constant * rate**100 + 1e-9)
    assert reached < 0.9 * first
