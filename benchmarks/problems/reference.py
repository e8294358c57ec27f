"""The truth to hold an estimate against: the closed form, or a float64 full unroll where there is none."""

from __future__ import annotations

from math import isqrt

import torch

from estimators import Problem, State, Unroll, hypergradient, run_stages

from .common import Tree


def reference(problem: Problem, hparams: Tree | None = None) -> Tree:
    """The derivative of the steps that are run, by a checkpointed unroll of every stage in float64.

    Costs about three training runs for every stage: callers that ask twice should keep the answer.

    Args:
        problem: its losses must follow the dtype of params, as all losses here do.
        hparams: where; ``problem.hparams`` if None.

    Returns:
        The hypergradient in float64, on the problem's device.

    Raises:
        ValueError: the problem starts from a `State`, whose slots belong to a run in its own dtype.
        HypergradientError: as `run` and `hypergradient`.
    """
    if isinstance(problem.start, State):
        raise ValueError(f"{problem.name}: starts from a State; give the problem a start of plain parameters")
    lam = _double(problem.hparams if hparams is None else hparams)
    unrolls = [Unroll(checkpoint=max(isqrt(stage.steps), 1)) for stage in problem.stages]
    records = run_stages(problem.stages, _double(problem.start), lam, unrolls)
    return hypergradient(problem.outer, problem.stages, unrolls, records, lam).hparams


def truth(problem: Problem, hparams: Tree | None = None) -> Tree:
    """``problem.exact`` if there is a closed form, else `reference`; in float64.

    Args: as `reference`.
    """
    if problem.exact is None:
        return reference(problem, hparams)
    return problem.exact(_double(problem.hparams if hparams is None else hparams))


def _double(a: Tree) -> Tree:
    return {k: x.detach().to(torch.float64) for k, x in a.items()}
