"""The baselines: what is exact about them, what their statistics promise, and what they see that others do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS
from estimators import (
    SGD,
    Adam,
    Direct,
    Evolution,
    FiniteDifference,
    HypergradientError,
    Lion,
    Momentum,
    NonFiniteError,
    NotApplicableError,
    Outcome,
    Plain,
    Problem,
    Random,
    Stage,
    Tree,
    Unroll,
    estimate,
    hypergradient,
    run,
    run_stages,
)
from estimators.tree import flatten

from .toy import toy

F64 = torch.float64


def relative(a: Tree, b: Tree) -> float:
    return float((flatten(a) - flatten(b)).norm() / flatten(b).norm())


# ---------------------------------------------------------------- finite differences


@pytest.mark.parametrize("rule", [SGD(lr=0.1), Momentum(lr=0.05), Adam(lr=0.05, betas=(0.7, 0.9))])
def test_finite_differences_agree_with_the_unroll(rule: Any) -> None:
    problem = toy(rule, steps=9)
    found = estimate(problem, FiniteDifference())
    # cube root of epsilon: truncation and rounding are both about 4e-11
    assert relative(found.hparams, estimate(problem, Unroll()).hparams) < 1e-8
    assert found.outcomes == (Outcome.APPROXIMATE,)
    assert found.cost.gradients == 2 * 12 * 9


def test_their_error_falls_with_the_square_of_the_step() -> None:
    problem = toy(Adam(lr=0.05, betas=(0.7, 0.9)), steps=9)
    true = estimate(problem, Unroll()).hparams
    errors = [relative(estimate(problem, FiniteDifference(step=h)).hparams, true) for h in (2e-3, 1e-3, 5e-4)]
    assert [a / b for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([4, 4], rel=0.05)


def test_linearising_the_outer_loss_costs_the_square_of_the_step() -> None:
    """Against the plain difference of the outer loss itself."""
    problem = toy(SGD(lr=0.1), steps=9)

    def gap(h: float) -> float:
        found = estimate(problem, FiniteDifference(step=h)).hparams["shift"]
        plain = []
        for i in range(2):
            values = []
            for sign in (1, -1):
                lam = {k: x.clone() for k, x in problem.hparams.items()}
                lam["shift"][i] += sign * h
                values.append(float(estimate(problem, Unroll(last=1), lam).value))
            plain.append((values[0] - values[1]) / (2 * h))
        return float((found - torch.tensor(plain, dtype=F64)).norm())

    assert gap(2e-2) / gap(1e-2) == pytest.approx(4, rel=0.05)


def test_they_see_hyperparameters_in_the_rule_and_what_is_detached() -> None:
    problem = PROBLEMS["one_step_rule"].make(steps=12)
    assert problem.exact_run is not None
    assert relative(estimate(problem, FiniteDifference()).hparams, problem.exact_run(problem.hparams)) < 1e-8

    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return (p["w"] - h["goal"]).square().sum() / 2

    hidden = Stage(lambda p, h, t: loss(p, {"goal": h["goal"].detach()}, t), SGD(lr=0.5), lambda t: t, 2)
    start, hparams = {"w": torch.zeros(3, dtype=F64)}, {"goal": torch.ones(3, dtype=F64)}
    found = estimate(
        Problem("hidden", [hidden], lambda p, h: p["w"].square().sum() / 2, start, hparams), FiniteDifference()
    )
    # w = 3/4 goal, M = w^2 / 2
    torch.testing.assert_close(found.hparams["goal"], torch.full((3,), 9 / 16, dtype=F64), rtol=1e-9, atol=0)


def test_they_see_the_learning_rate_of_a_sign_method() -> None:
    """Lion moves every coordinate by lr; where signs do not change, theta_T = theta_0 -+ T lr."""
    rise = torch.tensor([1.0, -2.0, 3.0], dtype=F64)
    stage = Stage(lambda p, h, t: (p["w"] * rise).sum(), lambda h: Lion(lr=h["lr"]), lambda t: t, 5)
    problem = Problem(
        "lion", [stage], lambda p, h: (p["w"] * torch.tensor([1.0, 10.0, 100.0], dtype=F64)).sum(),
        {"w": torch.zeros(3, dtype=F64)}, {"lr": torch.tensor(0.1, dtype=F64)},
    )  # fmt: skip
    found = estimate(problem, FiniteDifference()).hparams["lr"]
    assert float(found) == pytest.approx(-5 * (1 - 10 + 100), rel=1e-9)
    with pytest.raises(NotApplicableError):
        estimate(problem, Unroll())


def test_they_share_the_draws_of_the_run() -> None:
    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return ((p["w"] - h["goal"]) ** 2 * torch.rand(3, dtype=F64)).sum()

    stage = Stage(loss, SGD(lr=0.3), lambda t: t, 6, seed=3)
    start, hparams = {"w": torch.zeros(3, dtype=F64)}, {"goal": torch.ones(3, dtype=F64)}
    problem = Problem("draws", [stage], lambda p, h: p["w"].square().sum(), start, hparams)
    assert relative(estimate(problem, FiniteDifference()).hparams, estimate(problem, Unroll()).hparams) < 1e-9


def test_as_the_first_of_two_stages() -> None:
    problem = PROBLEMS["two_stage_quadratic"].make(steps=15, n_train=12)
    mixed, exact = (estimate(problem, [e, Unroll()]).hparams for e in (FiniteDifference(), Unroll()))
    assert relative(mixed, exact) < 1e-8
    with pytest.raises(HypergradientError, match="gives no cotangent for the start"):
        estimate(problem, [Unroll(), FiniteDifference()])


def test_they_go_on_from_a_recorded_state_in_the_middle() -> None:
    problem = toy(Momentum(lr=0.05), steps=4)
    (stage,) = problem.stages
    middle = run(stage, problem.start, problem.hparams).end
    later = Problem("later", [stage], problem.outer, middle, problem.hparams)
    assert relative(estimate(later, FiniteDifference()).hparams, estimate(later, Unroll()).hparams) < 1e-8


def test_refusals() -> None:
    with pytest.raises(NotApplicableError, match=r"12 hyperparameters.*max_hparams=5.*Unroll"):
        estimate(toy(), FiniteDifference(max_hparams=5))
    with pytest.raises(HypergradientError, match="step must be positive"):
        FiniteDifference(step=0.0)
    with pytest.raises(HypergradientError, match="max_hparams at least 1"):
        FiniteDifference(max_hparams=0)
    with pytest.raises(HypergradientError, match="pairs must be at least 1"):
        Evolution(pairs=0)
    with pytest.raises(HypergradientError, match="sigma positive"):
        Evolution(sigma=0.0)
    stage = Stage(lambda p, h, t: (p["w"] * 10 ** h["a"]).pow(4).sum(), SGD(lr=1.0), lambda t: t, 12)
    start, hparams = {"w": torch.ones(1, dtype=F64)}, {"a": torch.tensor(-0.4, dtype=F64)}
    steep = Problem("steep", [stage], lambda p, h: p["w"].sum(), start, hparams)
    estimate(steep, FiniteDifference())
    with pytest.raises(NonFiniteError, match="at step"):
        estimate(steep, FiniteDifference(step=0.5))


# ---------------------------------------------------------------- evolution strategies


def test_evolution_is_unbiased_for_a_quadratic() -> None:
    """end(lam) is affine in lam: the smoothed gradient is the exact one, and the error of the mean is known.

    Of one pair, E||g_hat - g||^2 = (n + 1) ||g||^2; the mean of 1000 pairs is held to 3 standard errors.
    """
    problem = PROBLEMS["biased_regression"].make(cond=5.0, dim=6, steps=4)
    exact = flatten(estimate(problem, Unroll()).hparams)
    n, pairs = len(exact), 1000
    found = flatten(estimate(problem, Evolution(pairs=pairs, sigma=0.3)).hparams)
    error = float((found - exact).norm() / exact.norm())
    expected = ((n + 1) / pairs) ** 0.5
    assert expected / 3 < error < 3 * expected


def test_its_spread_over_seeds_is_as_promised() -> None:
    problem = PROBLEMS["biased_regression"].make(cond=5.0, dim=6, steps=4)
    exact = flatten(estimate(problem, Unroll()).hparams)
    stages, records = problem.stages, run_stages(problem.stages, problem.start, problem.hparams, [Evolution()])
    answers = torch.stack(
        [
            flatten(hypergradient(problem.outer, stages, [Evolution(seed=s)], records, problem.hparams).hparams)
            for s in range(80)
        ]
    )
    squared = ((answers - exact).norm(dim=1) / exact.norm()).square()
    assert float(squared.mean()) == pytest.approx((6 + 1) / 16, rel=0.25)
    assert float((answers.mean(0) - exact).norm() / exact.norm()) < 3 * (7 / 16 / 80) ** 0.5


def test_pairs_cancel_what_is_even() -> None:
    """M(lam) = lam^2 at lam = 0 by a run whose end is even in lam: every pair gives exactly 0."""
    stage = Stage(lambda p, h, t: (p["w"] - h["a"] ** 2).square().sum() / 2, SGD(lr=1.0), lambda t: t, 1)
    problem = Problem(
        "even", [stage], lambda p, h: p["w"].sum(), {"w": torch.ones(1, dtype=F64)}, {"a": torch.zeros((), dtype=F64)}
    )
    assert float(estimate(problem, Evolution(pairs=3, sigma=0.5)).hparams["a"]) == 0


def test_a_hyperparameter_that_only_an_early_batch_reads_is_kept() -> None:
    def loss(p: Tree, h: Tree, t: int) -> Tensor:
        return (p["w"] - (h["early"] if t == 0 else h["late"])).square().sum() / 2

    hparams = {"early": torch.tensor(1.0, dtype=F64), "late": torch.tensor(2.0, dtype=F64)}
    problem = Problem(
        "early", [Stage(loss, SGD(lr=0.3), lambda t: t, 4)], lambda p, h: p["w"].sum(),
        {"w": torch.zeros(2, dtype=F64)}, hparams,
    )  # fmt: skip
    for estimator in (Evolution(), FiniteDifference(), Random(), Direct()):
        assert set(estimate(problem, estimator).pullbacks[0].hparams) == {"early", "late"}
    assert float(estimate(problem, Evolution()).hparams["early"]) != 0


# ---------------------------------------------------------------- controls


def test_direct_is_the_direct_term() -> None:
    problem = toy(SGD(lr=0.1))
    found, full = estimate(problem, Direct()), estimate(problem, Unroll())
    assert all(torch.equal(found.hparams[k], full.direct[k]) for k in problem.hparams)
    assert not any(x.any() for x in found.indirect.values())
    assert found.direct["shift"].any()


def test_a_random_direction_is_one() -> None:
    """Uncorrelated with the truth, isotropic, of the cotangent's size, another for another seed and another step."""
    problem = PROBLEMS["biased_regression"].make(cond=5.0, dim=6, steps=3)
    exact = flatten(estimate(problem, Unroll()).hparams)
    stages, records = problem.stages, run_stages(problem.stages, problem.start, problem.hparams, [Random()])
    end = {k: x.clone().requires_grad_() for k, x in records[0].end.params.items()}
    (c,) = torch.autograd.grad(problem.outer(end, problem.hparams), list(end.values()))
    answers = torch.stack(
        [
            flatten(hypergradient(problem.outer, stages, [Random(seed=s)], records, problem.hparams).hparams)
            for s in range(2000)
        ]
    )
    unit = answers / answers.norm(dim=1, keepdim=True)
    assert abs(float((unit @ exact).mean() / exact.norm())) < 3 / (6 * 2000) ** 0.5
    assert torch.allclose(unit.T @ unit / 2000, torch.eye(6, dtype=F64) / 6, atol=0.02)
    # <r, c> d: E||.||^2 = ||c||^2 n; its spread is wide (a product of two normals), hence the loose bound
    assert float(answers.square().sum(1).mean() / c.square().sum() / 6) == pytest.approx(1, rel=0.15)
    longer = PROBLEMS["biased_regression"].make(cond=5.0, dim=6, steps=4)
    a, b = (flatten(estimate(p, Random()).hparams) for p in (problem, longer))
    assert abs(float(a @ b / a.norm() / b.norm())) < 0.99


def test_plain_training_is_zero_even_where_the_outer_loss_reads_a_hyperparameter() -> None:
    problem = toy()
    direct, plain = (estimate(problem, e) for e in (Direct(), Plain()))
    assert flatten(direct.hparams).norm() > 0
    assert not flatten(plain.hparams).any()
    assert not flatten(plain.direct).any()
    assert float(plain.value) == float(direct.value)
