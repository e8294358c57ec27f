"""A problem: stages, an outer loss, a point, and the exact answer where one is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .estimator import Outer
from .stage import Stage
from .state import State
from .tree import Tree

Exact = Callable[[Tree], Tree]


@dataclass(frozen=True, eq=False)
class Problem:
    """Something to estimate a hypergradient of.

    Args:
        name: short, for tables.
        stages: one or more `Stage`, run one after the other.
        outer: (params, hparams) -> scalar, at the end of the last stage.
        start: parameters or `State` before the first stage.
        hparams: where the hypergradient is wanted.
        exact: hparams -> true hypergradient with every stage before the last run to its optimum, and the last one
            too unless the problem's text says otherwise; None where there is no closed form.
        exact_run: hparams -> true hypergradient of the steps that are actually run; None where there is none.
        optimum: the best hyperparameters, where known.
        hessian: params -> dense inner Hessian over the flattened parameters, where known.
        about: one line: what it is and its source.
        settings: the numbers it was made from, for the records.
    """

    name: str
    stages: Sequence[Stage]
    outer: Outer
    start: Tree | State
    hparams: Tree
    exact: Exact | None = None
    exact_run: Exact | None = None
    optimum: Tree | None = None
    hessian: Callable[[Tree], Any] | None = None
    about: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
