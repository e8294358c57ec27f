"""Where studies of the second-order product stand: at the end of a run, with the outer gradient as its vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from estimators import Problem, Tree, gradients, run
from estimators.products import BoundLoss


@dataclass(frozen=True, kw_only=True)
class Point:
    """(theta, lam, v) in float64, for products M^T v.

    Attributes:
        loss: of the run's last step.
        params: theta, at the run's end.
        hparams: lam.
        tangent: v = dM/dtheta there.
    """

    loss: BoundLoss
    params: Tree
    hparams: Tree
    tangent: Tree


def end_of(problem: Problem) -> Point:
    """The end of a problem's only stage.

    Raises:
        ValueError: the problem has several stages.
    """
    (stage,) = problem.stages
    record = run(stage, problem.start, problem.hparams, tail=0)
    params = record.end.params
    _, tangent, _ = gradients(problem.outer, params, problem.hparams, wrt_params=params)
    loss = stage.objective(record.end.step - 1)
    return Point(loss=loss, params=params, hparams=problem.hparams, tangent=tangent)


def rounded(a: Tree, dtype: torch.dtype) -> Tree:
    """``a`` as it is stored in ``dtype``."""
    return {k: x.to(dtype) for k, x in a.items()}
