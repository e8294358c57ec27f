"""What is measured of one candidate at one point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from estimators import Hypergradient, NonFiniteError, NotApplicableError, per_stage, registry, tree
from estimators.error_bound import NoBound

from ..accuracy import compare
from ..cells import Cell
from ..measure import interleaved, memory_of
from ..meta_step import MetaStep, copied
from ..plan import with_fields
from ..point import describe, told
from . import place, reference
from .candidates import call
from .place import Place, PlainRun

PLAIN = "plain run"


def content(cell: Cell, out: Path, effort: dict[str, Any]) -> dict[str, Any]:
    """What the row of a cell of kind "advice" says.

    Args:
        cell: a candidate, or a reference.
        out: folder of the results.
        effort: ``budget``, seconds for the clock, and ``bounds``, whether the error is bounded, too.

    Raises:
        NotApplicableError: the estimator does not apply to the problem.
        NonFiniteError: the hypergradient is NaN or infinite.
        Exception: whatever the problem or the estimator raises.
    """
    if cell.estimator == reference.NAME:
        return reference.content(cell, out)
    entry, found = registry[cell.estimator], place.of(cell)
    refused = entry.claim.refuses(found.workload.problem)
    if refused:
        raise NotApplicableError(refused)
    (estimator,) = per_stage(with_fields(entry.estimator, cell.fields), 1)
    answer = MetaStep(found.workload, estimator, copied(found.state), onward=True)()
    if not tree.all_finite(answer.hparams):
        outcomes = ", ".join(o.value for o in answer.outcomes)
        raise NonFiniteError(f"the estimate is NaN or infinite ({outcomes})")
    true = cell.meta["reference"]
    row = {
        "claim": describe(entry.claim),
        "code": call(cell.estimator, cell.fields, estimator),
        "accuracy": None if true is None else compare(answer.hparams, reference.load(true, out)),
        "pullbacks": told(answer),
        "value": float(answer.value),
        "cost": {k: v for k, v in asdict(answer.cost).items() if k != "kept_bytes"},
    }
    if effort["bounds"]:
        row["error_bound"] = _bound(found, answer, estimator)
    del answer
    return row | (_costs(found, estimator, effort["budget"]) if cell.meta["costs"] else {})


def _bound(found: Place, answer: Hypergradient, estimator: Any) -> dict[str, Any]:
    certificate = found.certificate
    if isinstance(certificate, NoBound):
        return asdict(certificate)
    bound = certificate.bound(answer, estimator)
    return {"relative": bound.relative, "angle": bound.angle, "doubt": bound.doubt, "rigorous": bound.rigorous}


def _costs(found: Place, estimator: Any, budget: float) -> dict[str, Any]:
    memory = memory_of(MetaStep(found.workload, estimator, copied(found.state), onward=True))
    plain = found.plain_memory
    works: dict[str, Callable[[], object]] = {
        "work": MetaStep(found.workload, estimator, found.state),
        PLAIN: PlainRun(found),
    }
    device = found.state.params[next(iter(found.state.params))].device
    timing = interleaved(works, PLAIN, budget=budget, patience=2 * budget, least=3, warm=0, device=device)["work"]
    if isinstance(timing, Exception):
        raise timing
    return {
        "memory": {
            "peak_bytes": memory.peak,
            "plain_peak_bytes": plain.peak,
            "ratio": memory.peak / plain.peak,
            "split": memory.split,
            "plain_split": plain.split,
        },
        "time": {
            "seconds": timing.seconds,
            "plain_seconds": timing.reference_seconds,
            "ratio": timing.ratio,
            "ratio_low": timing.ratio_low,
            "ratio_high": timing.ratio_high,
            "samples": timing.samples,
        },
    }
