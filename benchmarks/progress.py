"""A live display of a sweep on a terminal; plain lines, one a finished cell, anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from .cells import Cell


class Progress:
    """Counts cells; failures and refusals are said as they happen.

    Args:
        total: number of cells.
        console: where to; standard error by default, so that tables alone go to standard output.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.total, self.count = total, 0
        self._lock = threading.Lock()
        self._console = console or Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=total, left="")
        self._failed = 0
        self._measured, self._begin = 0, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, event: str, cell: Cell, details: dict[str, Any]) -> None:
        """See `benchmarks.sweep.Report`."""
        with self._lock:
            self._count(event, cell, details)

    def _count(self, event: str, cell: Cell, details: dict[str, Any]) -> None:
        if event == "start":
            self._bar.update(self._task, description=escape(shortened(cell.label, self._console.width - REST)))
            return
        self.count += 1
        self._measured += event == "done"
        left = time_left(time.monotonic() - self._begin, self._measured, self.total - self.count)
        self._bar.update(self._task, advance=1, left=left)
        status = "kept" if event == "kept" else details["status"]
        self._failed += status == "failed"
        if self._console.is_terminal:
            if status == "failed":
                self._bar.print(f"[red]failed[/] {escape(cell.label)}: {escape(str(details['reason']))}")
        elif event == "done":
            reason = f": {details['reason']}" if details["reason"] else ""
            seconds = "" if details["seconds"] is None else f" {details['seconds']:.2f} s"
            left = f" ({left})" if left else ""
            print(
                f"[{self.count}/{self.total}] {status}{seconds} {cell.label}{reason}{left}", file=sys.stderr, flush=True
            )


REST = 54
"""Columns of a terminal that the bar, the counts and the times take: what is left is for the cell's label."""


def shortened(text: str, width: int) -> str:
    """``text`` in ``width`` columns, but at least 12."""
    width = max(width, 12)
    return text if len(text) <= width else text[: width - 1] + "…"


def time_left(elapsed: float, measured: int, remaining: int) -> str:
    """An estimate in words; "" where there is none, or nothing to wait for.

    Args:
        elapsed: seconds since the sweep began.
        measured: cells that this time went into: not those that were there already.
        remaining: cells to come.
    """
    if not measured or not remaining:
        return ""
    seconds = elapsed / measured * remaining
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit} left"
    return f"about {seconds:.0f} s left"
