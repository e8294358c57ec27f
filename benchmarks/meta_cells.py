"""The rows of "meta" cells: what one meta step costs, alone or in turn with the other estimators of its instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from estimators import NotApplicableError, per_stage, registry

from . import ranks
from .cells import AUTOCAST, Cell
from .plan import with_fields
from .point import describe
from .throughput import Bench, Effort
from .workloads import WORKLOADS, Workload, with_autocast


class Desk(Protocol):
    """Where cells are begun and closed: `benchmarks.worker.Desk`."""

    def start(self, cell: Cell) -> None: ...
    def at(self, cell: Cell) -> None: ...
    def done(self, cell: Cell, content: dict[str, Any]) -> None: ...
    def fail(self, cell: Cell, error: Exception) -> None: ...
    def attempt(self, cell: Cell) -> AbstractContextManager[None]: ...
    def limited(self, cell: Cell) -> AbstractContextManager[None]: ...


def measure(group: Sequence[Cell], desk: Desk, effort: Mapping[str, Any]) -> None:
    """Measure meta cells of one instance. Each enters on its own; those that did are then timed in turn.

    Data-parallel cells are processes of their own, and timed alone.

    Args:
        group: cells that agree in `Cell.instance`.
        desk: gets a row of each.
        effort: fields of `benchmarks.throughput.Effort`.
    """
    if group[0].workers > 1:
        for cell in group:
            desk.start(cell)
            with desk.attempt(cell):
                desk.done(cell, ranks.measured(cell, effort))
        return
    bench: Bench | None = None
    entered: dict[str, Cell] = {}
    for cell in group:
        desk.start(cell)
        with desk.attempt(cell):
            bench = bench or bench_of(cell, workload_of(cell), effort)
            enter(bench, cell)
            entered[cell.id] = cell
    if bench is None or not entered:
        return
    try:
        with desk.limited(group[0]):
            bench.time(lambda name: desk.at(entered[name]))
    except Exception as error:  # plain training's: without it there is no ratio
        for cell in entered.values():
            desk.fail(cell, error)
        return
    for cell in entered.values():
        desk.at(cell)
        with desk.attempt(cell):
            desk.done(cell, content(bench, cell))


def workload_of(cell: Cell) -> Workload:
    """What a cell trains, on its device, in its dtype.

    Raises:
        Exception: whatever making it raises.
    """
    autocast = cell.dtype == AUTOCAST
    dtype = torch.float32 if autocast else getattr(torch, cell.dtype)
    made = WORKLOADS[cell.problem].make(seed=cell.seed, dtype=dtype, device=cell.device, **cell.settings)
    return with_autocast(made) if autocast else made


def bench_of(cell: Cell, workload: Workload, effort: Mapping[str, Any]) -> Bench:
    """The bench for a cell, or for any other of its instance."""
    return Bench(workload, kernel=cell.meta.get("kernel", "best"), effort=Effort(**effort), world=cell.workers)


def enter(bench: Bench, cell: Cell) -> None:
    """Let the cell's estimator enter, under the cell's id.

    Raises:
        NotApplicableError: it claims nothing of such a problem.
        Exception: as `Bench.enter`.
    """
    entry = registry[cell.estimator]
    refused = entry.claim.refuses(bench.workload.problem)
    if refused:
        raise NotApplicableError(refused)
    (estimator,) = per_stage(with_fields(entry.estimator, cell.fields), 1)
    bench.enter(cell.id, estimator)


def content(bench: Bench, cell: Cell) -> dict[str, Any]:
    """What the row of a cell says that was entered and timed."""
    return {"claim": describe(registry[cell.estimator].claim), **bench.content(cell.id)}
