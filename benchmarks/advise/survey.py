"""A first look at the user's problem, in a process of its own: what it is, and which candidates cannot fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from estimators import Dense, Forward, Implicit, per_stage, registry, tree

from ..measure import synchronise
from ..measure.predict import peak_of
from ..own_problem import find
from ..plan import with_fields
from ..plugins import load
from . import place, reference
from .candidates import candidates, spare_of
from .place import PlainRun


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is known before anything is measured.

    Attributes:
        error: why there is nothing to measure; None if there is.
        dtype: of the problem.
        steps, params, hparams: how many.
        plain_seconds: of one run, the first.
        plain_bytes: its peak.
        closed_form: whether the problem says its hypergradient.
    """

    error: str | None = None
    dtype: str = ""
    steps: int = 0
    params: int = 0
    hparams: int = 0
    plain_seconds: float = 0.0
    plain_bytes: int = 0
    closed_form: bool = False


Found = tuple[Any, int | None, str]
"""(index of a candidate or kind of reference, bytes that it will take, "" or why they could not be predicted)."""


def look(
    told: Connection, name: str, settings: Mapping[str, Any], plugins: Sequence[str], *, dtype: str | None, device: str,
    names: Sequence[str], memory: int | None, machine: int,
) -> None:  # fmt: skip
    """Make the problem, run it once, and predict what may not fit: first a `Survey` is told, then a `Found` each, then None.

    Args:
        told: the parent's; it may end this process at any time.
        name, settings, plugins, dtype, device: of the problem.
        names: of estimators.
        memory: bytes that a candidate may take; None for what the machine has.
        machine: bytes that it has, and a reference may take.
    """
    load(plugins)
    try:
        wanted = None if dtype is None else getattr(torch, dtype)
        found = place.make(find(name), settings, seed=0, dtype=wanted, device=device)
        plain = found.plain_memory.peak
        timed, since = PlainRun(found), time.perf_counter()
        timed()
        synchronise(torch.device(device))
        spent = time.perf_counter() - since
    except Exception as error:  # the user's own code: told in a line, not a traceback of ours
        told.send(Survey(error=place.problem_error(error)))
        return
    problem, steps = found.workload.problem, found.workload.stage.steps
    survey = Survey(
        dtype=str(found.dtype).removeprefix("torch."), steps=steps, params=tree.size(found.state.params),
        hparams=tree.size(problem.hparams), plain_seconds=spent, plain_bytes=plain, closed_form=problem.exact is not None,
    )  # fmt: skip
    told.send(survey)
    double = 2 if found.dtype != torch.float64 else 1
    todo: list[tuple[Any, Any, int, int]] = [
        (kind, reference.estimator_of(kind, steps), double, machine) for kind in ("unroll", "cg")
    ]
    todo += [
        (i, per_stage(with_fields(registry[entry].estimator, fields), 1)[0], 1, memory or machine)
        for i, (entry, fields) in enumerate(candidates(names, steps, spare_of(memory, plain)))
        if registry[entry].claim.refuses(problem) is None
    ]
    for key, estimator, factor, allowed in sorted(todo, key=lambda entry: -most(entry[1], survey)):
        if factor * most(estimator, survey) > allowed:
            try:
                told.send((key, factor * peak_of(found.workload, estimator, warm=found.warm).peak, ""))
            except Exception as error:  # measured without a prediction
                told.send((key, None, f"{type(error).__name__}: {error}"))
    told.send(None)


def most(estimator: Any, survey: Survey) -> float:
    """Bytes that it cannot take, by a wide margin: where even these fit, nothing is predicted."""
    if getattr(estimator, "budget", None) is not None:
        return 0.0  # it keeps to its bytes by itself
    solver = estimator.solver if isinstance(estimator, Implicit) else None
    vectors = 20 + 2 * (survey.steps if estimator.tail is None else estimator.tail) + 2 * getattr(solver, "rank", 0)
    if isinstance(estimator, Forward):
        vectors += 4 * survey.hparams
    squares = 16 * survey.params**2 if isinstance(solver, Dense) else 0
    return float(survey.plain_bytes) * vectors + squares
