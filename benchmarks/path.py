"""Figure 5 of SAMA: follow one estimator with a meta optimizer, and compare it with the truth at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from estimators import Claim, Estimator, Tree, hypergradient, run_stages

from .accuracy import compare
from .point import Instance, describe
from .problems.reference import truth

ENTRIES = 8
"""Of the hyperparameters at most so many are recorded at every meta step, evenly spread over all of them."""

Observe = Callable[[Tree, Tree], Mapping[str, Any]]
"""(parameters at the end of a run, hparams that it was made with) -> JSON object."""


def follow(
    instance: Instance,
    estimators: Sequence[Estimator],
    claim: Claim,
    *,
    steps: int,
    lr: float,
    observe: Observe | None = None,
) -> dict[str, Any]:
    """``steps`` updates of lam by Adam along the estimator's own answers, each after a fresh run from the start.

    Args:
        instance: the problem; without a closed form the truth is a float64 unroll at every meta step.
        estimators: one a stage.
        claim: of the estimator.
        steps: of the meta optimizer.
        lr: its learning rate.
        observe: looks at the first run and at that after the last meta step.

    Returns:
        The row. Of its path, ``cosine``, ``angle`` (degrees) and ``value`` (of the outer loss) have ``steps`` numbers, taken before
        each update; ``distance`` (None where the optimum is not known) and the trajectory one more.

    Raises:
        Exception: whatever the estimator raises.
    """
    problem = instance.problem
    lam = {k: x.detach().clone() for k, x in problem.hparams.items()}
    optimizer = torch.optim.Adam(lam.values(), lr=lr)
    names, optimum = entries(lam), problem.optimum
    cosines, angles, values, distances = [], [], [], [_distance(lam, optimum)]
    walked, seen = [_picked(lam, names)], []
    for t in range(steps):
        here = {k: x.detach().clone() for k, x in lam.items()}
        drawn = [_redrawn(e, t) for e in estimators]
        records = run_stages(problem.stages, problem.start, here, drawn)
        if observe is not None and t == 0:
            seen.append(observe(records[-1].end.params, here))
        answer = hypergradient(problem.outer, problem.stages, drawn, records, here, throw=False, consume=True)
        errors = compare(answer.hparams, truth(problem, here))
        cosines.append(errors["cosine"])
        angles.append(errors["angle"])
        values.append(float(answer.value))
        for k, x in lam.items():
            x.grad = answer.hparams[k]
        optimizer.step()
        distances.append(_distance(lam, optimum))
        walked.append(_picked(lam, names))
    if observe is not None:
        here = {k: x.detach().clone() for k, x in lam.items()}
        seen.append(observe(run_stages(problem.stages, problem.start, here, list(estimators))[-1].end.params, here))
    return {
        "claim": describe(claim),
        "truth": "closed form" if problem.exact is not None else "full unroll in float64",
        "path": {
            "cosine": cosines, "angle": angles, "value": values, "distance": distances,
            "trajectory": {f"{k}[{i}]": [at[j] for at in walked] for j, (k, i) in enumerate(names)},
            "optimum": None if optimum is None else {f"{k}[{i}]": float(optimum[k].reshape(-1)[i]) for k, i in names},
            "observed": dict(zip(("first", "last"), seen, strict=True)) if len(seen) == 2 else None,
        },
    }  # fmt: skip


def entries(lam: Tree) -> list[tuple[str, int]]:
    """(leaf, index into it, flattened) of those that are recorded."""
    everything = [(k, i) for k, x in lam.items() for i in range(x.numel())]
    if len(everything) <= ENTRIES:
        return everything
    return [everything[round(j * (len(everything) - 1) / (ENTRIES - 1))] for j in range(ENTRIES)]


def _picked(lam: Tree, names: Sequence[tuple[str, int]]) -> list[float]:
    return [float(lam[k].detach().reshape(-1)[i]) for k, i in names]


def _redrawn(estimator: Estimator, t: int) -> Estimator:
    """``estimator`` with draws of its own for meta step ``t``, if it draws: the same directions at every step would keep
    evolution strategies in the span of a few."""
    seed = getattr(estimator, "seed", None)
    return cast(Estimator, replace(cast(Any, estimator), seed=seed + t)) if isinstance(seed, int) else estimator


def _distance(lam: dict[str, torch.Tensor], optimum: dict[str, torch.Tensor] | None) -> float | None:
    if optimum is None:
        return None
    return float(torch.stack([(x - optimum[k]).double().square().sum() for k, x in lam.items()]).sum().sqrt())
