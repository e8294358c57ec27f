"""This library's operating points, under the same rules as the peers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

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
from estimators.estimator import recording
from estimators.products import reverse_over_reverse
from estimators.rules import AnyRule
from estimators.stage import sizes_of

from ..measure import memory_of
from ..meta_step import MetaStep, preloaded, settled
from .base import Case, Library, Variant, Work

NAME = "hypergradbench"


def _implicit(case: Case, *, estimator: Callable[[Case], Estimator]) -> Work:
    chosen = estimator(case)

    def work() -> Hypergradient:
        return hypergradient(case.outer, [case.stage], [chosen], [case.record], case.hparams, throw=False)

    return work


def _solved(case: Case, *, solver: type[CG] | type[Neumann], **fields: Any) -> Implicit:
    return Implicit(CG(steps=case.steps) if solver is CG else Neumann(steps=case.steps, lr=case.lr), **fields)


def training(case: Case) -> Stage:
    """The case's steps as a stage."""
    rule: AnyRule = Adam(lr=case.lr) if case.method.endswith("adam") else SGD(lr=case.lr)
    return Stage(
        loss=lambda params, hparams, t: case.losses[t](params, hparams), rule=rule, stream=lambda t: t, steps=case.steps
    )


def _unroll(case: Case, *, estimator: Callable[[Case], Unroll]) -> Work:
    stage, chosen = training(case), estimator(case)

    def work() -> Hypergradient:
        record = run(stage, case.params, case.hparams, **recording(chosen))
        return hypergradient(case.outer, [stage], [chosen], [record], case.hparams, throw=False, consume=True)

    return work


def _budgeted(case: Case) -> Unroll:
    """With a fifth of the bytes of all states and graphs; of short runs with room for sqrt(T) states and two steps."""
    stage = training(case)
    sizes = sizes_of(stage, stage.initial(case.params, case.hparams), case.hparams)
    return Unroll(budget=max(case.steps * sizes.step // 5, math.isqrt(case.steps) * sizes.state + 2 * sizes.step))


def _run(case: Case) -> Work:
    stage = training(case)
    return lambda: (
        run(stage, {k: x.clone() for k, x in case.params.items()}, case.hparams, tail=0, donate=True).end.params
    )


def _meta(case: Case, *, estimator: Estimator) -> Work:
    assert case.workload is not None
    return MetaStep(preloaded(case.workload), estimator, settled(case.workload))


def _meta_peak(case: Case, *, estimator: Estimator) -> int:
    assert case.workload is not None
    step = MetaStep(preloaded(case.workload), estimator, settled(case.workload), onward=True)
    step()
    return memory_of(step).peak


UNROLLS: dict[str, Variant] = {
    "Unroll()": Variant(partial(_unroll, estimator=lambda case: Unroll()), "fast: every step's graph kept"),
    "Unroll(checkpoint=1)": Variant(
        partial(_unroll, estimator=lambda case: Unroll(checkpoint=1)), "every state recorded, one graph at a time"
    ),
    "Unroll(budget=...)": Variant(
        partial(_unroll, estimator=_budgeted),
        "light: a fifth of the bytes of all states and graphs, of short runs sqrt(T) states and two steps",
    ),
}

LIBRARY = Library(
    name=NAME,
    module="estimators",
    distribution="hypergradbench",
    variants={
        **{
            (method, f"Implicit({solver.__name__}{words})"): Variant(
                partial(_implicit, estimator=partial(_solved, solver=solver, **fields)), note
            )
            for method, solver in (("cg", CG), ("neumann", Neumann))
            for words, fields, note in (
                ("", {}, "graph kept, solution never formed"),
                (", sums=False", {"sums": False}, "graph kept, solution formed"),
                (", graph=rebuilt", {"graph": "rebuilt"}, "a forward and two backward passes a product"),
            )
        },
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
