"""Many cells, one result file each: which are left, in what portions, and who runs them.

A result that is there already is not measured again. The parent never touches a tensor.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import cells
from .cells import Cell
from .executors import Executor, Local
from .isolated import Orders, Report

__all__ = ["Orders", "Report", "split", "sweep"]

POLL = 1.0
"""Seconds between two looks at a cell that another sweep is measuring."""


def sweep(todo: Sequence[Cell], orders: Orders, report: Report, executor: Executor | None = None) -> dict[str, int]:
    """Run what is not there yet: points and meta steps first, then paths, which are not timed, on every core.

    A cell that another sweep has claimed is left to it; at the end its row is there, or the claim is free and it is measured here.

    Args:
        todo: cells.
        orders: how to run them.
        report: told what happens.
        executor: where they run; child processes of this one by default.

    Returns:
        Number of cells by status, with those found finished under "kept".
    """
    executor = executor or Local()
    counts: dict[str, int] = {}
    elsewhere: list[Cell] = []
    lock = threading.Lock()

    def tell(event: str, cell: Cell, details: dict[str, Any]) -> None:
        with lock:
            if event == "elsewhere":
                elsewhere.append(cell)
                return
            if event in ("done", "kept"):
                status = details["status"] if event == "done" else "kept"
                counts[status] = counts.get(status, 0) + 1
            report(event, cell, details)

    pending = []
    for cell in todo:
        status = None if orders.force else cells.finished(cell, orders.out)
        if status is None:
            pending.append(cell)
        else:
            tell("kept", cell, {"status": status})
    while pending:
        timed = [c for c in pending if c.kind != "path"]
        paths = [c for c in pending if c.kind == "path"]
        for group, jobs in ((timed, orders.jobs), (paths, max(orders.jobs, os.cpu_count() or 1))):
            if group:
                own = replace(orders, jobs=jobs)
                executor.run(split(group, jobs, orders.per_process, orders.together), own, tell)
        pending, elsewhere = elsewhere, []
        if pending:
            time.sleep(POLL)
    return counts


def split(todo: Sequence[Cell], jobs: int, per_process: int | None = None, together: bool = False) -> list[list[Cell]]:
    """Portions for one process each.

    Cells of one instance stay neighbours, so that its run and truth are made once; paths share nothing.

    Args:
        todo: cells.
        jobs: number of portions, if ``per_process`` is None.
        per_process: cells a portion, but for those that stay together.
        together: cells of an instance that can be timed in turns are never separated.
    """
    groups: dict[Any, list[Cell]] = {}
    for i, cell in enumerate(todo):
        groups.setdefault(i if cell.kind == "path" else cell.instance, []).append(cell)
    if per_process is None:
        batches: list[list[Cell]] = [[] for _ in range(jobs)]
        for i, group in enumerate(groups.values()):
            batches[i % jobs].extend(group)
        return [b for b in batches if b]
    found: list[list[Cell]] = []
    for group in groups.values():
        whole = together and group[0].kind in cells.TOGETHER
        portions = [group] if whole else [[cell] for cell in group]
        for portion in portions:
            if found and len(found[-1]) + len(portion) <= per_process:
                found[-1].extend(portion)
            else:
                found.append(list(portion))
    return found
