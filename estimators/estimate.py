"""The one-liner: run a problem and estimate its hypergradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from . import tree
from .errors import HypergradientError
from .estimator import Estimator, Hypergradient, hypergradient, run_stages
from .implicit import Implicit
from .problem import Problem
from .products import PRODUCTS, CentralDifference
from .registry import registry
from .solvers import Solver
from .tree import Tree

Choice = Estimator | Solver | str


def per_stage(choice: Choice | Sequence[Choice], stages: int) -> tuple[Estimator, ...]:
    """One estimator a stage from what a user may write.

    Args:
        choice: an estimator, a solver (short for `Implicit` with it), a registered name, or a sequence of them, one
            a stage. A single one serves every stage.
        stages: how many there are.

    Raises:
        HypergradientError: a sequence of another length, or something that is no estimator.
        KeyError: an unknown name; the message lists the known ones.
    """
    if isinstance(choice, type):
        raise HypergradientError(f"{choice.__name__} is a class: pass an estimator, {choice.__name__}(...)")
    if isinstance(choice, str):
        choice = registry[choice].estimator
    if isinstance(choice, (list, tuple)):
        if len(choice) != stages:
            raise HypergradientError(f"{len(choice)} estimators for {stages} stages: give one, or one a stage")
        return tuple(per_stage(c, 1)[0] for c in choice)
    if isinstance(choice, CentralDifference) or any(form is choice for form in cast(dict[str, Any], PRODUCTS).values()):
        raise HypergradientError(f"{choice!r} is a product: pass it to an estimator, as in Unroll(product=...)")
    if isinstance(choice, Estimator):
        return (choice,) * stages
    if callable(choice):
        return (Implicit(choice),) * stages
    raise HypergradientError(f"{choice!r} is no estimator, no solver and no registered name")


def estimate(
    problem: Problem, estimator: Choice | Sequence[Choice], hparams: Tree | None = None, *, throw: bool = True
) -> Hypergradient:
    """Run the problem's stages and estimate its hypergradient.

    Args:
        problem: what to estimate.
        estimator: see `per_stage`; ``estimate(problem, CG(steps=20))`` is implicit differentiation by CG.
        hparams: where; ``problem.hparams`` if None.
        throw: as in `hypergradient`.

    Raises:
        HypergradientError: as `run` and `hypergradient`, or hparams unlike the problem's.
    """
    if hparams is None:
        hparams = problem.hparams
    else:
        tree.check(hparams, "hparams", problem.hparams)
    estimators = per_stage(estimator, len(problem.stages))
    records = run_stages(problem.stages, problem.start, hparams, estimators)
    return hypergradient(problem.outer, problem.stages, estimators, records, hparams, throw=throw, consume=True)
