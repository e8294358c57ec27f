"""What bounds the error of every estimator at a point, for the rows: see docs/error_bound.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from estimators import Certificate, Hypergradient, NoBound, Problem, Record, Tree, certify, tree

from .double import doubled, in_float64

PRODUCTS = 30
"""Of each Krylov space: a point costs 7 times as many at most, whatever the number of estimators."""

MOST_PARAMS = 4096
"""Beyond it rows carry no bound: 30 products would leave most curvatures unseen."""


def certificate(problem: Problem, records: Sequence[Record], hparams: Tree) -> Certificate | NoBound:
    """In float64, whatever the run's dtype, so that the rounding of the estimate is in the bound."""
    if problem.exact is None:
        return NoBound(reason="the truth is the derivative of the run, and the bound is to that of the inner optimum")
    if len(problem.stages) > 1:
        return NoBound(reason="several stages")
    (stage,), (record,) = problem.stages, records
    if (size := tree.size(record.end.params)) > MOST_PARAMS:
        return NoBound(reason=f"{size} parameters: more than {MOST_PARAMS}")
    if tree.dtype_of(record.end.params) != torch.float64:
        end = record.end._replace(params=doubled(record.end.params))
        record, hparams, problem = replace(record, end=end, states={}), doubled(hparams), in_float64(problem)
        (stage,) = problem.stages
    return certify(problem.outer, stage, record, hparams, products=PRODUCTS)


def bound(found: Certificate | NoBound, answer: Hypergradient, estimator: Any) -> dict[str, Any]:
    """The row's ``error_bound``: the fields of `ErrorBound`, or the reason why there is none."""
    if isinstance(found, NoBound):
        return {"reason": found.reason}
    content = asdict(found.bound(answer, estimator))
    known = content["relative"] < math.inf  # JSON has no infinity
    return content | {"relative": content["relative"] if known else None, "products": found.products}
