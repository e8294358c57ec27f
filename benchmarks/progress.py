"""A live display of a sweep on a terminal; plain lines, one a finished cell, anywhere else."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=total)
        self._failed = 0

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
            self._bar.update(self._task, description=escape(cell.label))
            return
        self.count += 1
        self._bar.update(self._task, advance=1)
        status = "kept" if event == "kept" else details["status"]
        self._failed += status == "failed"
        if self._console.is_terminal:
            if status == "failed":
                self._bar.print(f"[red]failed[/] {escape(cell.label)}: {escape(str(details['reason']))}")
        elif event == "done":
            reason = f": {details['reason']}" if details["reason"] else ""
            seconds = "" if details["seconds"] is None else f" {details['seconds']:.2f} s"
            print(f"[{self.count}/{self.total}] {status}{seconds} {cell.label}{reason}", file=sys.stderr, flush=True)
