"""What an executor is, and what those that run elsewhere share: a job, and what to do when one is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .. import cells, locks
from ..cells import Cell
from ..failures import Verdict
from ..isolated import ROOT, Death, Orders, Report, run_batch, write_failure

Told = list[tuple[str, str, dict[str, Any]]]
"""(event, cell id, details), in order; see `Report`."""

SKEW = 2.0
"""Seconds by which a file server's clock may be behind."""


class Executor(Protocol):
    """Runs batches of cells somewhere, each by `benchmarks.isolated.run_batch`, which isolates, limits and writes rows.

    Attributes:
        shares_machine: cells that run at the same time may share a machine and disturb each other's timing.
    """

    shares_machine: bool

    def run(self, batches: Sequence[Sequence[Cell]], orders: Orders, tell: Report) -> None:
        """Run ``orders.jobs`` batches at a time, and come back when all have ended.

        Every cell has then been told as "done", "kept" or "elsewhere", once. An interruption ends what is at work and is
        raised; a batch whose job is lost has rows that say so.
        """
        ...


def job(batch: Sequence[Cell], orders: Orders) -> Told:
    """What a job on another machine does: the same as here, with its reports kept for later."""
    told: Told = []
    run_batch(batch, orders, lambda event, cell, details: told.append((event, cell.id, details)))
    return told


def relay(batch: Sequence[Cell], told: Told, tell: Report) -> None:
    """Report what a job reported."""
    by_id = {cell.id: cell for cell in batch}
    for event, cell_id, details in told:
        tell(event, by_id[cell_id], details)


def lost(batch: Sequence[Cell], reason: str, orders: Orders, tell: Report) -> list[Cell]:
    """Settle a batch whose job ended without an answer: its node failed, or something killed it.

    The first cell without a row is the one that it was at, and gets a row that says so.

    Returns:
        The rest, to be run again.
    """
    left = []
    for i, cell in enumerate(batch):
        status = None if _of_before(cell, orders) else cells.finished(cell, orders.out)
        if status is not None:
            tell("done", cell, {"status": status, "reason": None, "failure": None, "seconds": None})
        elif not locks.claim(orders.out, cell.id):
            tell("elsewhere", cell, {})
        else:
            verdict = Verdict("crash", f"the job was lost: {reason}")
            write_failure(cell, orders, Death(verdict))
            locks.release(orders.out, cell.id)
            tell("done", cell, verdict._asdict() | {"status": "failed", "seconds": None})
            left = list(batch[i + 1 :])
            break
    return left


def _of_before(cell: Cell, orders: Orders) -> bool:
    """Whether the row that is there was to be measured again, and is the old one still."""
    try:
        return orders.force and cell.file(orders.out).stat().st_mtime < orders.began - SKEW
    except OSError:
        return False


@contextlib.contextmanager
def importable() -> Iterator[str]:
    """Within, processes that are started can import this project, installed or not; gives their PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *filter(None, [before])])
    os.environ["PYTHONPATH"] = path
    try:
        yield path
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
