"""`Stage.first_order`: a faster form of the loss for the steps of a run, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cells import built_as
from estimators import CG, SAMA, T1T2, Adam, Implicit, Tree, Unroll, estimate, run

from .toy import toy


class NoSecondDerivative(torch.autograd.Function):
    """The identity, as a compiled loss answers: its gradient is that of ``torch.compile(loss)``, its second derivative an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, c: Tensor) -> Tensor:
        return c


@pytest.mark.parametrize(
    "estimator", [Implicit(CG(steps=8)), T1T2(), SAMA(), Unroll(), Unroll(checkpoint=2)], ids=built_as
)
def test_steps_take_it_and_products_do_not(estimator: Any) -> None:
    problem = toy(rule=Adam(lr=0.05))
    stage = problem.stages[0]
    asked: list[int] = []

    def fast(params: Tree, hparams: Tree, batch: Any) -> Tensor:
        asked.append(1)
        return stage.loss({k: NoSecondDerivative.apply(x) for k, x in params.items()}, hparams, batch)

    want = estimate(problem, estimator, throw=False)
    found = estimate(replace(problem, stages=[replace(stage, first_order=fast)]), estimator, throw=False)
    for k, x in want.hparams.items():
        torch.testing.assert_close(found.hparams[k], x, rtol=1e-12, atol=1e-14)
    assert bool(asked) == (estimator != Unroll()), "every step of Unroll() keeps its graph"


def test_a_compiled_loss_steps_as_the_loss_itself() -> None:
    problem = toy(rule=Adam(lr=0.05))
    stage = problem.stages[0]
    compiled = replace(stage, first_order=torch.compile(stage.loss, backend="aot_eager"))
    start = problem.start
    ends = [run(s, start, problem.hparams, tail=0).end.params for s in (stage, compiled)]
    for k, x in ends[0].items():
        torch.testing.assert_close(ends[1][k], x, rtol=1e-12, atol=1e-14)
