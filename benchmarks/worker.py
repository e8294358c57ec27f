"""The child process of a sweep: measures cells one after the other and writes each one's file.

``python -m benchmarks.worker`` reads its orders, one line of JSON, from standard input and reports on standard output, one
line an event (see `Desk`). It is started by `benchmarks.isolated`; a cell that kills it takes nothing else along.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from estimators import NotApplicableError, per_stage, registry

from . import cells, failures, limits, meta_cells, own_problem, own_reference, peer_cells
from .advise import measure as advised
from .cells import AUTOCAST, TOGETHER, Cell
from .lifeline import die_at_end_of, die_with_parent
from .measure import busy, environment, load_average
from .path import Observe, follow
from .plan import with_fields
from .plugins import load
from .point import Effort, Instance, describe, measure

Say = Callable[[str, Cell, dict[str, Any]], None]
"""(event, cell, details)."""


class Desk:
    """Where cells are begun and closed: reports to the parent, keeps their time, writes their files.

    Events: "start" when a cell is begun, "at" when work goes back to one that was begun before (cells that are timed together
    take turns), "done" when its file is there. The parent blames the cell of the last event for whatever happens next, and
    its time runs.

    Args:
        out: folder of the results.
        say: to the parent.
        memory: bytes that a cell may take, see `limits.memory`.
        marks: what every row's ``environment`` says beside the machine: jobs and the like.
    """

    def __init__(self, out: Path, say: Say, *, memory: int | None = None, marks: dict[str, Any] | None = None) -> None:
        self.out, self.say, self.memory, self.marks = out, say, memory, marks or {}
        self._seconds: dict[str, float] = {}
        self._at: tuple[str, float] | None = None
        self._closed = 0

    def start(self, cell: Cell) -> None:
        """``cell`` is begun: a row of before goes, and the parent is told where, should it have to write the new one."""
        where = self._where(cell)
        cell.file(self.out).unlink(missing_ok=True)
        self._turn(cell)
        self.say("start", cell, {"environment": where, "said": _said()})

    def _where(self, cell: Cell) -> dict[str, Any]:
        load = load_average()
        now = {"load_average": load, "busy": None if load is None else busy(load[0])}
        return _environment(cell.device, cell.dtype) | self.marks | now

    def at(self, cell: Cell) -> None:
        """Work goes on with ``cell``, begun before."""
        self._turn(cell)
        self.say("at", cell, {"said": _said()})

    def done(self, cell: Cell, content: dict[str, Any]) -> None:
        """``cell`` is measured."""
        self._close(cell, cells.row(cell, "ok", None, **content))

    def refuse(self, cell: Cell, reason: str, **content: Any) -> None:
        """The estimator does not apply to the problem."""
        self._close(cell, cells.row(cell, "refused", reason, **content))

    def fail(self, cell: Cell, error: Exception) -> None:
        """``cell`` raised."""
        if isinstance(error, NotApplicableError):
            self.refuse(cell, str(error))
        else:
            verdict = failures.content(failures.of_error(error))
            self._close(cell, cells.row(cell, "failed", **verdict, traceback=failures.frames(error)))

    @contextmanager
    def attempt(self, cell: Cell) -> Iterator[None]:
        """Within, ``cell``'s memory is limited, and what it raises becomes its row."""
        try:
            with self.limited(cell):
                yield
        except Exception as error:  # a row of its own; the rest go on
            self.fail(cell, error)

    def limited(self, cell: Cell) -> AbstractContextManager[None]:
        """Within, the memory of ``cell``, and of those that take turns with it, is limited."""
        return limits.memory(self.memory, cell.device)

    def _turn(self, cell: Cell | None) -> None:
        now = time.perf_counter()
        if self._at is not None:
            before, since = self._at
            self._seconds[before] = self._seconds.get(before, 0.0) + now - since
        self._at = None if cell is None else (cell.id, now)

    def _close(self, cell: Cell, row: dict[str, Any]) -> None:
        self._turn(None)
        seconds = self._seconds.get(cell.id, 0.0)
        row |= {
            "environment": self._where(cell),
            "process": {"peak_rss_bytes": limits.peak_rss(), "cells_before": self._closed, "memory_limit": self.memory},
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        cells.write(cell.file(self.out), row)
        self._closed += 1
        self.say("done", cell, {k: row[k] for k in ("status", "reason", "failure", "seconds")})


def work(todo: Sequence[Cell], desk: Desk, effort: dict[str, Any], *, together: bool = False) -> None:
    """Measure ``todo`` in order. Cells of one instance should be neighbours: its run and its truth are shared.

    Args:
        todo: cells.
        desk: where they are begun and closed.
        effort: fields of `Effort`.
        together: neighbouring cells of one instance are timed in turns if their kind can be, for a comparison that drift does
            not spoil.
    """
    shared = _Shared(desk.out)
    for group in groups(todo, together):
        if group[0].kind in TOGETHER:
            (meta_cells if group[0].kind == "meta" else peer_cells).measure(group, desk, effort)
            continue
        for cell in group:
            desk.start(cell)
            with desk.attempt(cell):
                if cell.kind == "advice":
                    desk.done(cell, advised.content(cell, desk.out, effort))
                else:
                    _single(cell, desk, shared, Effort(**effort))


def groups(todo: Sequence[Cell], together: bool) -> list[list[Cell]]:
    """``todo`` in order, with neighbours that are to be timed together in one list."""
    found: list[list[Cell]] = []
    for cell in todo:
        joins = together and cell.kind in TOGETHER and found and found[-1][0].instance == cell.instance
        if joins:
            found[-1].append(cell)
        else:
            found.append([cell])
    return found


class _Shared:
    """The instance that neighbouring cells share; ``out``: folder of the results."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._key: tuple[str, ...] | None = None
        self._instance: Instance | None = None

    def of(self, cell: Cell) -> Instance:
        if self._instance is None or self._key != cell.instance:
            self._instance = None  # the previous instance's memory goes first
            made = own_problem.find(cell.problem).make(
                seed=cell.seed, dtype=dtype_of(cell), device=cell.device, **cell.settings
            )
            problem = own_problem.problem_of(made)
            own = own_problem.is_own(cell.problem)
            reference = functools.partial(own_reference.of, cell, problem, self._out) if own else None
            self._instance, self._key = Instance(problem, reference), cell.instance
            gc.collect()
            gc.freeze()  # the collections around every measurement need not walk through torch, nor what it imported
        return self._instance


def _single(cell: Cell, desk: Desk, shared: _Shared, effort: Effort) -> None:
    """Measure a point or a path."""
    entry = registry[cell.estimator]
    instance = shared.of(cell)
    refused = entry.claim.refuses(instance.problem)
    if refused:
        desk.refuse(cell, refused, claim=describe(entry.claim))
        return
    chosen = per_stage(with_fields(entry.estimator, cell.fields), len(instance.problem.stages))
    if cell.kind == "path":
        content = follow(instance, chosen, entry.claim, observe=_watcher(cell, instance), **cell.meta)
    else:
        content = measure(instance, chosen, entry.claim, effort)
    desk.done(cell, content)


def _watcher(cell: Cell, instance: Instance) -> Observe | None:
    """What the cell's problem is watched for along a path."""
    from .problems import PROBLEMS

    registered = PROBLEMS[cell.problem].observe
    return None if registered is None else registered(instance.problem)


def dtype_of(cell: Cell) -> torch.dtype:
    """Of the parameters."""
    return torch.float32 if cell.dtype == AUTOCAST else getattr(torch, cell.dtype)


@functools.cache
def _environment(device: str, dtype: str) -> dict[str, Any]:
    return environment(device=device, dtype=getattr(torch, dtype, torch.float32)) | {"dtype": dtype}


def _said() -> int:
    """Bytes on standard error until now: what comes after them is the next cell's."""
    return os.fstat(2).st_size


def main() -> None:
    """Read orders, measure, report."""
    line = sys.stdin.readline()
    if not line:  # whoever gave the orders is gone
        return
    orders = json.loads(line)
    if not die_with_parent(orders["parent"]):
        die_at_end_of(sys.stdin)
    report = _own_stdout()
    torch.set_num_threads(orders["threads"])
    load(orders["plugins"])

    def say(event: str, cell: Cell, details: dict[str, Any]) -> None:
        print(json.dumps({"event": event, "id": cell.id, **details}), file=report, flush=True)

    desk = Desk(Path(orders["out"]), say, memory=orders["memory"], marks=orders["marks"])
    work([Cell(**config) for config in orders["cells"]], desk, orders["effort"], together=orders["together"])


def _own_stdout() -> TextIO:
    """Keep standard output for reports: whatever an estimator prints goes to standard error."""
    sys.stdout.flush()
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return report


if __name__ == "__main__":
    main()
