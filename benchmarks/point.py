"""One problem instance with its run and its truth, and what is measured of an estimator there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from estimators import (
    Certificate,
    Claim,
    Estimator,
    Hypergradient,
    NoBound,
    NonFiniteError,
    Problem,
    Record,
    Stage,
    Tree,
    gradients,
    hypergradient,
    run,
    tree,
)
from estimators.stage import recorded_steps

from . import certified, theory
from .accuracy import compare
from .measure import paired_timing, peak_bytes, synchronise
from .problems.reference import truth


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long the clock may run.

    Attributes:
        width: of the confidence interval of the medians, relative to them: narrow enough.
        budget: seconds a cell, after warming up, in which to reach it.
        least, most: bounds on the number of samples.
    """

    width: float = 0.05
    budget: float = 0.08
    least: int = 3
    most: int = 15


Reference = Callable[[], tuple[Tree | None, str | None]]


class Instance:
    """A problem at one seed, run once: every estimator is judged at the same point of the same run.

    Args:
        problem: at that seed.
        reference: gives the hypergradient to be found, in float64, and how it is known; (None, None) if nothing is. By default
            the problem's closed form, or a float64 unroll where there is none.
    """

    def __init__(self, problem: Problem, reference: Reference | None = None) -> None:
        self.problem, self._reference = problem, reference
        self.hparams: Tree = {k: x.detach() for k, x in problem.hparams.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.hparams.values())).device

    @cached_property
    def records(self) -> list[Record]:
        """Every step of every stage: the longest tail that any estimator needs."""
        self.run_seconds = 0.0
        records: list[Record] = []
        start = self.problem.start
        for stage in self.problem.stages:
            synchronise(self.device)
            begin = time.perf_counter()
            records.append(run(stage, start, self.hparams, tail=None, every=1))
            synchronise(self.device)
            self.run_seconds += time.perf_counter() - begin
            start = records[-1].end.params
        return records

    @cached_property
    def truth(self) -> tuple[Tree | None, str | None]:
        """The hypergradient to be found, in float64, and how it is known."""
        if self._reference is not None:
            return self._reference()
        how = "closed form" if self.problem.exact is not None else "full unroll in float64"
        return truth(self.problem), how

    @cached_property
    def run_truth(self) -> Tree | None:
        """The hypergradient of the steps that were taken, where a closed form says it."""
        exact = self.problem.exact_run
        return None if exact is None else exact({k: x.double() for k, x in self.hparams.items()})

    @cached_property
    def certificate(self) -> Certificate | NoBound:
        """What bounds the error of every estimator here without the truth, or why nothing does."""
        return certified.certificate(self.problem, self.records, self.hparams)

    @cached_property
    def setting(self) -> theory.Setting | None:
        return theory.setting(self.problem, self.records[0], self.hparams)

    @cached_property
    def gradient_peak(self) -> int:
        """Its peak of memory, in bytes."""
        return peak_bytes(self.gradient)

    def gradient(self) -> object:
        """The unit of cost: one plain training gradient, of the first stage's loss at its start."""
        stage, state = self.problem.stages[0], self.problem.start
        params = state if isinstance(state, dict) else state.params
        return gradients(stage.objective(0), params, self.hparams, wrt_params=stage.trained(params))


def thin(record: Record, stage: Stage, estimator: Estimator, hparams: Tree) -> Record:
    """The same run as `run` would have recorded it for this estimator alone, so that kept bytes are its own."""
    every = getattr(estimator, "every", 1)
    steps = recorded_steps(stage, hparams, record.end.params, record.end.step, estimator.tail, every)
    return replace(record, states={t: s for t, s in record.states.items() if t in steps})


def measure(instance: Instance, estimators: Sequence[Estimator], claim: Claim, effort: Effort) -> dict[str, Any]:
    """Accuracy, cost and outcome of one estimator.

    Raises:
        Exception: whatever the estimator raises.
    """
    problem, hparams = instance.problem, instance.hparams
    records = [thin(r, s, e, hparams) for r, s, e in zip(instance.records, problem.stages, estimators, strict=True)]

    def pull() -> Hypergradient:
        return hypergradient(problem.outer, problem.stages, estimators, records, hparams, throw=False)

    unit = instance.gradient_peak
    answers: list[Hypergradient] = []
    peak = peak_bytes(lambda: answers.append(pull()))  # this pass also gives the answer, and warms the clock's
    answer = answers[0]
    if not tree.all_finite(answer.hparams):
        outcomes = ", ".join(o.value for o in answer.outcomes)
        raise NonFiniteError(f"the estimate is NaN or infinite ({outcomes})")
    timing = paired_timing(pull, instance.gradient, device=instance.device, **asdict(effort))
    true, known_by = instance.truth
    on_run = None if instance.run_truth is None else compare(answer.hparams, instance.run_truth)
    found = instance.setting
    kept = sum(r.kept_bytes for r in records)
    return {
        "claim": describe(claim),
        "truth": known_by,
        "accuracy": None if true is None else compare(answer.hparams, true),
        "accuracy_on_run": on_run,
        "condition": None if found is None else found.condition,
        "bound": None if found is None else theory.bound(found, estimators[0]),
        "error_bound": certified.bound(instance.certificate, answer, estimators[0]),
        "size": {"params": _count(records[0].end.params), "hparams": _count(hparams), "steps": [s.steps for s in problem.stages]},
        "cost": {
            "seconds": timing.seconds,
            "gradient_seconds": timing.reference_seconds,
            "time_ratio": timing.ratio,
            "time_ratio_low": timing.ratio_low,
            "time_ratio_high": timing.ratio_high,
            "time_ratio_width": timing.ratio_width,
            "reached": timing.reached,
            "samples": timing.samples,
            "clock": timing.clock,
            "clock_share": timing.overhead,
            "run_seconds": instance.run_seconds,
            "peak_bytes": peak,
            "gradient_peak_bytes": unit,
            "peak_ratio": peak / unit,
            "kept_bytes": kept,
            "kept_ratio": kept / unit,
            "gradients": answer.cost.gradients,
            "products": answer.cost.products,
            "matvecs": answer.cost.matvecs,
        },
        "pullbacks": told(answer),
        "value": float(answer.value),
    }  # fmt: skip


def describe(claim: Claim) -> dict[str, Any]:
    """What a table needs of a claim."""
    return {k: getattr(claim, k) for k in ("of", "citation", "target", "exact", "bias", "scale", "control")}


def told(answer: Hypergradient) -> list[dict[str, Any]]:
    """What the pullbacks of ``answer`` say of themselves, one a stage."""
    return [
        {
            "outcome": p.outcome.name,
            "text": p.outcome.value,
            "residual": p.residual,
            "curvature": p.curvature,
            "products": p.cost.products,
        }
        for p in answer.pullbacks
    ]


def _count(a: Tree) -> int:
    return sum(x.numel() for x in a.values())
