"""Figure 5 of SAMA: follow one estimator with a meta optimizer, and compare it with the truth at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from estimators import Claim, Estimator, estimate

from .accuracy import compare
from .point import Instance, describe


def follow(
    instance: Instance, estimators: Sequence[Estimator], claim: Claim, *, steps: int, lr: float
) -> dict[str, Any]:
    """``steps`` updates of lam by Adam along the estimator's own answers, each after a fresh run from the start.

    Raises:
        ValueError: the problem knows no closed form to compare with.
        Exception: whatever the estimator raises.
    """
    problem = instance.problem
    if problem.exact is None:
        raise ValueError(f"{problem.name} has no closed form: a path needs the truth at every meta step")
    lam = {k: x.detach().clone() for k, x in problem.hparams.items()}
    optimizer = torch.optim.Adam(lam.values(), lr=lr)
    cosines, angles, values, distances = [], [], [], [_distance(lam, problem.optimum)]
    for t in range(steps):
        here = {k: x.detach().clone() for k, x in lam.items()}
        answer = estimate(problem, [_redrawn(e, t) for e in estimators], here, throw=False)
        errors = compare(answer.hparams, problem.exact(here))
        cosines.append(errors["cosine"])
        angles.append(errors["angle"])
        values.append(float(answer.value))
        for k, x in lam.items():
            x.grad = answer.hparams[k]
        optimizer.step()
        distances.append(_distance(lam, problem.optimum))
    return {
        "claim": describe(claim),
        "truth": "closed form",
        "path": {"cosine": cosines, "angle": angles, "value": values, "distance": distances},
    }


def _redrawn(estimator: Estimator, t: int) -> Estimator:
    """``estimator`` with draws of its own for meta step ``t``, if it draws: the same directions at every step would keep
    evolution strategies in the span of a few."""
    seed = getattr(estimator, "seed", None)
    return cast(Estimator, replace(cast(Any, estimator), seed=seed + t)) if isinstance(seed, int) else estimator


def _distance(lam: dict[str, torch.Tensor], optimum: dict[str, torch.Tensor] | None) -> float | None:
    if optimum is None:
        return None
    return float(torch.stack([(x - optimum[k]).double().square().sum() for k, x in lam.items()]).sum().sqrt())
