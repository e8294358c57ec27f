"""Implicit pre-training composed with unrolled fine-tuning (Raghu et al. 2021, Algorithm 1)."""

from __future__ import annotations

import pytest
import torch

from benchmarks.problems import PROBLEMS
from estimators import (
    CG,
    SAMA,
    SGD,
    T1T2,
    Dense,
    Forward,
    HypergradientError,
    Implicit,
    Problem,
    Stage,
    Unroll,
    estimate,
)
from estimators.tree import flatten

from .toy import toy

TWO_STAGES = ["two_stage_quadratic", "two_stage_head_only"]


def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float((flatten(a) - flatten(b)).norm() / flatten(b).norm())


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("name", TWO_STAGES)
def test_equals_unrolling_both_stages_and_the_closed_form(name: str, k: int) -> None:
    problem = PROBLEMS[name].make(seed=2, k=k)
    composed = estimate(problem, "composed").hparams
    assert gap(composed, estimate(problem, Unroll()).hparams) < 1e-8
    assert gap(composed, problem.exact(problem.hparams)) < 1e-8  # type: ignore[misc]


def test_three_stages_cost_nothing_more() -> None:
    """A list of three estimators; the reference is one graph through all of them."""
    from .oracle import long_graph

    base = toy(SGD(lr=0.05), steps=6)
    (stage,) = base.stages
    second = Stage(stage.loss, SGD(lr=0.02), lambda t: stage.stream(t + 3), 4)
    third = Stage(stage.loss, SGD(lr=0.03), lambda t: stage.stream(2 * t), 5)
    problem = Problem("three", [stage, second, third], base.outer, base.start, base.hparams)
    mixed = estimate(problem, [Unroll(), Unroll(checkpoint=2), Unroll(last=99)])
    assert gap(mixed.hparams, long_graph(problem, problem.hparams)) < 1e-12
    assert len(mixed.pullbacks) == 3


def test_a_stage_without_steps_passes_the_cotangent_on() -> None:
    base = toy(SGD(lr=0.05), steps=6)
    (stage,) = base.stages
    empty = Stage(stage.loss, SGD(lr=0.05), stage.stream, 0)
    problem = Problem("empty", [stage, empty], base.outer, base.start, base.hparams)
    assert gap(estimate(problem, Unroll()).hparams, estimate(base, Unroll()).hparams) < 1e-15


@pytest.mark.parametrize("later", [Implicit(CG()), Forward(), T1T2(), SAMA(), Unroll(last=2)])
def test_a_lost_start_is_an_error_not_a_zero(later: object) -> None:
    base = toy(SGD(lr=0.05), steps=6)
    problem = Problem("two", [*base.stages, *base.stages], base.outer, base.start, base.hparams)
    with pytest.raises(HypergradientError, match=r"no cotangent for the start of stage 1.*use Unroll\(\)"):
        estimate(problem, [Unroll(), later])  # type: ignore[list-item]


def test_implicit_fine_tuning_of_a_head_reaches_the_frozen_body() -> None:
    """IFT inside IFT: the head is a function of the body, which is a function of lam."""
    g = torch.Generator().manual_seed(0)
    f, y, target, val = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((6, 3), (6,), (3,), (3,)))
    lam = torch.randn(3, generator=g, dtype=torch.float64)

    def pretrain(p: dict[str, torch.Tensor], h: dict[str, torch.Tensor], _: None) -> torch.Tensor:
        return (p["body"] - target).square().sum() + (h["lam"].exp() * p["body"].square()).sum()

    def finetune(p: dict[str, torch.Tensor], h: dict[str, torch.Tensor], _: None) -> torch.Tensor:
        return (f * p["body"] @ p["head"] - y).square().sum() + 0.1 * p["head"].square().sum()

    def outer(p: dict[str, torch.Tensor], h: dict[str, torch.Tensor]) -> torch.Tensor:
        return (p["head"] * p["body"] - val).square().sum()

    start = {"body": torch.zeros(3, dtype=torch.float64), "head": torch.zeros(3, dtype=torch.float64)}
    stages = [
        Stage(pretrain, SGD(lr=0.05), lambda t: None, 600),
        Stage(finetune, SGD(lr=0.02), lambda t: None, 4000, frozen=frozenset({"body"})),
    ]
    problem = Problem("ift-ift", stages, outer, start, {"lam": lam})
    got = estimate(problem, [Implicit(Dense()), Implicit(Dense())]).hparams["lam"]

    def closed(at: torch.Tensor) -> torch.Tensor:
        body = target / (1 + at.exp())
        a = f * body
        head = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(3, dtype=torch.float64), a.T @ y)
        return outer({"head": head, "body": body}, {})

    want = torch.autograd.functional.jacobian(closed, lam)
    assert float((got - want).norm() / want.norm()) < 1e-8
