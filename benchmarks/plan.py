"""Which cells a sweep consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from estimators import registry

from .cells import Cell, built_as, code_version

MAIN_JOB = ("biased_regression", "two_stage_quadratic", "digits_mwn", "digits_wide", "noisy_quadratic", "digits_tasks")
"""Problems of the main job."""

SMALL: dict[str, dict[str, Any]] = {
    "digits_mwn": {"hidden": 10, "steps": 30, "weight_hidden": 30, "l2": 2e-2},
    "digits_wide": {"hidden": 10, "steps": 30, "l2": 2e-2},
    "digits_tasks": {"hidden": 4, "steps": 12},
}
"""Sizes at which the costly references, the whole Hessian and forward mode, take part on a laptop; and enough decay for
the Meta-Weight-Net to show its nearly rank-one face. With less decay the Hessian's negative curvature decides, and the
signs of the implicit estimators are a matter of luck: see `problems.digits_reweighting`."""

PATH = {"cond": 10.0, "tolerance": 1e-3}
"""Biased regression of Figure 5: the identity's direction is visibly off, and a run short enough to be made 100 times
an estimator. The tolerance bounds what stopping the run early costs: invisible in a cosine."""

META_LR = 0.1
"""Adam's learning rate along a path, as in Figure 5 of SAMA."""


class UnknownName(ValueError):
    """A name that nothing is registered under."""


def known(names: Iterable[str], among: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """``names``, or every known one if there are none.

    Raises:
        UnknownName: one of them is not known; the message lists those that are.
    """
    names = tuple(names) or tuple(among)
    for name in names:
        if name not in among:
            raise UnknownName(f"no {what} is called {name!r}; there are: {', '.join(among)}")
    return tuple(dict.fromkeys(names))


def cells(
    *,
    estimators: Sequence[str],
    problems: Sequence[str],
    seeds: Sequence[int],
    conds: Sequence[float],
    dtype: str,
    meta_steps: int,
) -> list[Cell]:
    """Points: problems x settings x seeds x estimators, in the order in which runs are shared. Then the paths."""
    from .problems import PROBLEMS

    @cache
    def made(estimator: str, problem: str) -> dict[str, Any]:
        thing = registry[estimator].estimator
        return {"built": built_as(thing), "code": code_version(thing, PROBLEMS[problem].make)}

    found = [
        Cell(estimator=e, problem=p, settings=settings, seed=seed, dtype=dtype, **made(e, p))
        for p in problems
        for settings in settings_of(p, conds)
        for seed in seeds
        for e in estimators
    ]
    if meta_steps and "biased_regression" in problems:
        found += [
            Cell(
                estimator=e, problem="biased_regression", settings=dict(PATH), seed=seeds[0], dtype=dtype,
                kind="path", meta={"steps": meta_steps, "lr": META_LR}, **made(e, "biased_regression"),
            )
            for e in estimators
        ]  # fmt: skip
    return found


def settings_of(problem: str, conds: Sequence[float]) -> list[dict[str, Any]]:
    """What a problem is swept over."""
    if problem == "biased_regression":
        return [{"cond": float(c)} for c in conds]
    return [dict(SMALL.get(problem, {}))]
