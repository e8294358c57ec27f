"""Estimators on a problem of the user's own: it is checked, its references are computed, and its cells are made."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from estimators import Unroll

from . import own_problem, own_reference, plan
from .aside import AsideError, aside
from .cells import Cell, code_version, problem_version, write_json
from .check import Report, Survey, show
from .check.look import look
from .own_reference import Kind
from .plugins import LOADED

CHECK_SECONDS = 180.0
"""That a check may take, torch's import included."""

STARTUP = 60.0
"""Seconds that a process may take to import torch on a busy machine."""

UNROLL_COST = 12.0
"""A float64 unroll with checkpoints, in runs in float32: whether it is affordable."""


class Refused(RuntimeError):
    """The problem is not fit to be measured; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be measured.

    Attributes:
        estimators: registered names.
        seeds: of the problem; it is one point if it takes none.
        dtype: None for the problem's own.
        device: where.
        reference: kind, or None for the best that can be had.
        timeout: seconds that a reference may take.
        plugins: loaded beforehand.
        check: look for faults first.
    """

    estimators: tuple[str, ...]
    seeds: tuple[int, ...]
    dtype: str | None
    device: str
    reference: Kind | None
    timeout: float
    plugins: Sequence[str] = ()
    check: bool = True


def report_on(
    name: str, settings: dict[str, Any], *, dtype: str | None, device: str, full: bool, seconds: float
) -> Report:
    """What a check says of a problem, made in a process of its own.

    Raises:
        Refused: the process hung or died.
    """
    options = {"dtype": dtype, "device": device, "full": full, "plugins": tuple(LOADED)}
    try:
        return aside(look, name, settings, seconds=seconds, on=device, **options)
    except AsideError as error:
        raise Refused(f"{name} could not be looked at: {error}") from error


def cells(name: str, pairs: Sequence[str], wanted: Wanted, out: Path) -> list[Cell]:
    """The cells of a problem; what is found on the way is printed to standard error.

    Args:
        name: ``file.py:function``.
        pairs: settings, as `own_problem.settings` takes them.
        wanted: what to measure.
        out: folder of the results, where references are kept.

    Raises:
        UnknownName, ImportError: there is no such problem, or it takes no such settings.
        Refused: it has a fault.
    """
    found = own_problem.find(name)
    name, settings = found.name, own_problem.settings(found, pairs)
    survey = _surveyed(name, settings, wanted, out)
    seeds = wanted.seeds
    if not found.takes("seed"):
        seeds = (0,)
        if len(wanted.seeds) > 1:
            _say(f"{name} takes no seed: it is measured at one point")
    place = Cell(estimator="", problem=name, settings=settings, dtype=survey.dtype, device=wanted.device)
    points = [replace(place, seed=seed) for seed in seeds]
    chosen = _affordable(points, survey, wanted, out)
    meta = {"reference": chosen, "version": problem_version(found.function)}
    return plan.own_cells(wanted.estimators, [replace(point, meta=meta) for point in points])


def _surveyed(name: str, settings: dict[str, Any], wanted: Wanted, out: Path) -> Survey:
    """What the problem is, checked if that is wanted; kept, so that a resumed run need not look again.

    Raises:
        Refused: it has a fault.
    """
    found = own_problem.find(name)
    key = [name, settings, wanted.dtype, wanted.device, wanted.check, code_version(Unroll(), found.function, "point")]
    kept = out / "references" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.survey"
    if kept.is_file():
        return Survey(**json.loads(kept.read_text()))
    limit = max(wanted.timeout, CHECK_SECONDS)
    report = report_on(name, settings, dtype=wanted.dtype, device=wanted.device, full=wanted.check, seconds=limit)
    show(report, file=sys.stderr, quiet=True)
    if report.errors or report.survey is None:
        raise Refused(
            f"{name} is not measured: mend the errors above"
            + ", or measure it all the same with --no-check" * (wanted.check and report.survey is not None)
        )
    write_json(kept, asdict(report.survey))
    return report.survey


def _affordable(points: Sequence[Cell], survey: Survey, wanted: Wanted, out: Path) -> Kind:
    """The best kind of reference that can be had; it is computed and kept for all points."""
    found = own_problem.find(points[0].problem)
    for kind in survey.references if wanted.reference is None else (wanted.reference,):
        todo = [replace(point, meta={"reference": kind}) for point in points]
        if kind == "none" or all(own_reference.file_of(cell, found, kind, out).is_file() for cell in todo):
            return kind
        expected = UNROLL_COST * survey.run_seconds
        if kind == "unroll" and expected > wanted.timeout and wanted.reference is None:
            _say(
                f"no full unroll in float64 as reference: it would take about {expected:.0f} s a seed, and --timeout is "
                f"{wanted.timeout:.0f} s"
            )
            continue
        try:
            limit = wanted.timeout * len(todo) + STARTUP
            words = aside(own_reference.prepare, todo, out, tuple(LOADED), seconds=limit, on=wanted.device)
        except AsideError as error:
            _say(f"no reference by {kind}: {error}")
            continue
        _say(f"reference: {words}, at {len(todo)} point{'s' * (len(todo) > 1)}")
        return kind
    _say("no reference: errors stay unknown, time and memory are measured")
    return "none"


def _say(text: str) -> None:
    print(f"hypergradbench: {text}", file=sys.stderr, flush=True)
