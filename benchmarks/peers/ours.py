"""This library's operating points, under the same rules as the peers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from estimators import (
    CG,
    SAMA,
    SGD,
    Adam,
    Estimator,
    Hypergradient,
    Implicit,
    Neumann,
    Stage,
    Unroll,
    hypergradient,
    run,
)
from estimators.products import reverse_over_reverse
from estimators.rules import AnyRule

from ..measure import memory_of
from ..meta_step import MetaStep, preloaded, settled
from .base import Case, Library, Variant, Work

NAME = "hypergradbench"


def _implicit(case: Case, *, estimator: Callable[[Case], Estimator]) -> Work:
    chosen = estimator(case)

    def work() -> Hypergradient:
        return hypergradient(case.outer, [case.stage], [chosen], [case.record], case.hparams, throw=False)

    return work


def training(case: Case) -> Stage:
    """The case's steps as a stage."""
    rule: AnyRule = Adam(lr=case.lr) if case.method.endswith("adam") else SGD(lr=case.lr)
    return Stage(
        loss=lambda params, hparams, t: case.losses[t](params, hparams), rule=rule, stream=lambda t: t, steps=case.steps
    )


def _unroll(case: Case, *, estimator: Callable[[Case], Unroll]) -> Work:
    stage, chosen = training(case), estimator(case)

    def work() -> Hypergradient:
        record = run(stage, case.params, case.hparams, tail=chosen.tail, every=chosen.every)
        return hypergradient(case.outer, [stage], [chosen], [record], case.hparams, throw=False)

    return work


def _run(case: Case) -> Work:
    stage = training(case)
    return lambda: run(stage, case.params, case.hparams, tail=0).end.params


def _meta(case: Case, *, estimator: Estimator) -> Work:
    assert case.workload is not None
    return MetaStep(preloaded(case.workload), estimator, settled(case.workload))


def _meta_peak(case: Case, *, estimator: Estimator) -> int:
    assert case.workload is not None
    step = MetaStep(preloaded(case.workload), estimator, settled(case.workload), onward=True)
    step()
    return memory_of(step).peak


def _every(case: Case) -> int:
    return max(1, math.isqrt(case.steps))


UNROLLS: dict[str, Variant] = {
    "Unroll()": Variant(partial(_unroll, estimator=lambda case: Unroll()), "every state recorded"),
    "Unroll(checkpoint=sqrt(T))": Variant(
        partial(_unroll, estimator=lambda case: Unroll(checkpoint=_every(case))),
        "sqrt(T) states recorded, the others replayed",
    ),
}

LIBRARY = Library(
    name=NAME,
    module="estimators",
    distribution="hypergradbench",
    variants={
        ("cg", "Implicit(CG)"): Variant(partial(_implicit, estimator=lambda case: Implicit(CG(steps=case.steps)))),
        ("neumann", "Implicit(Neumann)"): Variant(
            partial(_implicit, estimator=lambda case: Implicit(Neumann(steps=case.steps, lr=case.lr)))
        ),
        **{(method, name): how for method in ("unroll", "unroll-adam") for name, how in UNROLLS.items()},
        **{
            ("sama", name): Variant(partial(_meta, estimator=e), note, partial(_meta_peak, estimator=e))
            for name, e, note in (
                ("SAMA()", SAMA(), "central difference, the paper's step"),
                ("SAMA, exact", SAMA(product=reverse_over_reverse), "double backward"),
            )
        },
        ("run", "run"): Variant(_run),
        ("run-adam", "run"): Variant(_run),
    },
)
