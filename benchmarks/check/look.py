"""All checks of one problem, the ones that others build upon first. Whatever the user's code raises becomes a finding."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from estimators import Problem, Tree, run, tree
from estimators.stage import Record

from .. import own_reference
from ..own_problem import COMMON, Found, find, problem_of
from ..plan import UnknownName
from ..plugins import load
from . import Finding, Report, Survey, derivatives, influence, purity
from .case import Case, Stop
from .explain import explained

SHORT = 4
"""Steps of every stage that are looked at where the whole run would take too long."""

RUN_SECONDS = 20.0
"""A run that takes longer is not run as a whole."""

UNROLL_SECONDS = 8.0
"""Unrolls that take longer are those of a short run."""


def look(
    name: str, settings: dict[str, Any], *, dtype: str | None, device: str, full: bool, plugins: Sequence[str] = ()
) -> Report:
    """What there is to be said of a problem.

    Args:
        name: as `benchmarks.own_problem.find` takes it.
        settings: of its function.
        dtype: None for its own.
        device: where.
        full: look for faults; otherwise only what it is.
        plugins: loaded first.
    """
    load(plugins)
    with warnings.catch_warnings():
        # torch compiles its own jvp decompositions with torch.jit on first use of forward mode
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        # its advice, to detach, is not ours: see `influence`
        warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning)
        return _looked(name, settings, dtype, device, full)


def _looked(name: str, settings: dict[str, Any], dtype: str | None, device: str, full: bool) -> Report:
    found, findings = find(name), list[Finding]()
    case: Case | None = None
    survey: Survey | None = None
    try:
        case = _case(found, settings, dtype, device, findings)
        steps: list[Callable[[Case], None]] = [purity.make, purity.losses, derivatives.first] if full else []
        for step in steps:
            step(case)
        survey = _survey(case)
        if full:
            for step in (derivatives.second, influence.influence, purity.remarks):
                step(case)
    except Stop:
        pass
    except Exception as error:  # the user's own code, or what it gave to ours
        findings.append(explained(error, found.function))
    return Report(name, findings, survey)


def _case(found: Found, settings: dict[str, Any], dtype: str | None, device: str, findings: list[Finding]) -> Case:
    wanted = None if dtype is None else getattr(torch, dtype)

    def make() -> Problem:
        return problem_of(found.make(seed=0, dtype=wanted, device=device, **settings))

    missing = [
        p.name for p in inspect.signature(found.function).parameters.values() if _needed(p) and p.name not in settings
    ]
    if missing:
        findings.append(
            Finding(
                "error", f"{found.name} needs {', '.join(missing)}",
                f"give {'it a default' if len(missing) == 1 else 'them defaults'}, or a value: {missing[0]}=...",
            )
        )  # fmt: skip
        raise Stop
    try:
        problem = make()
    except UnknownName as error:
        findings.append(Finding("error", str(error)))
        raise Stop from error
    if not problem.stages:
        findings.append(
            Finding("error", "the problem has no stage", "stages=[Stage(loss=..., rule=..., stream=..., steps=...)]")
        )
        raise Stop
    return Case(found=found, make=make, problem=problem, findings=findings, short=shortened(problem, SHORT))


def _needed(p: inspect.Parameter) -> bool:
    """Whether a function cannot be called without it."""
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in COMMON


def shortened(problem: Problem, steps: int) -> Problem:
    """The same with no more than ``steps`` steps a stage."""
    return replace(problem, stages=[replace(s, steps=min(s.steps, steps)) for s in problem.stages], exact=None)


def _survey(case: Case) -> Survey:
    """What the problem is; it is run, as a whole if that does not take too long."""
    problem, short = case.problem, case.short
    lam = tree.detach(problem.hparams)
    _run(short, lam)  # the first steps also pay for what torch does once
    begin = time.perf_counter()
    records = _run(short, lam)
    spent = time.perf_counter() - begin
    share = max(sum(s.steps for s in problem.stages) / max(sum(s.steps for s in short.stages), 1), 1.0)
    seconds = spent * share
    if seconds <= RUN_SECONDS:
        begin = time.perf_counter()
        records = _run(problem, lam)
        seconds = time.perf_counter() - begin
        case.whole = True
    case.records = records
    case.unrolled = problem if case.whole and own_cost(seconds) < UNROLL_SECONDS else short
    params = problem.start if isinstance(problem.start, dict) else problem.start.params
    return Survey(
        dtype=str(next(iter(lam.values())).dtype).removeprefix("torch."),
        steps=tuple(s.steps for s in problem.stages),
        params=tree.size(params),
        hparams={k: x.numel() for k, x in lam.items()},
        run_seconds=seconds,
        references=own_reference.order(problem),
    )


def own_cost(seconds: float) -> float:
    """Of one unroll with its float64 twin, and of the differences that it is compared with, in seconds."""
    return 15 * seconds


def _run(problem: Problem, hparams: Tree) -> list[Record]:
    start, records = problem.start, []
    for stage in problem.stages:
        records.append(run(stage, start, hparams, tail=0))
        start = records[-1].end.params
    return records
