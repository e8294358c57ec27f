"""What an executor is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..cells import Cell
from ..isolated import Orders, Report


class Executor(Protocol):
    """Runs batches of cells somewhere, each by `benchmarks.isolated.run_batch`, which isolates, limits and writes rows."""

    def run(self, batches: Sequence[Sequence[Cell]], orders: Orders, tell: Report) -> None:
        """Run ``orders.jobs`` batches at a time, and come back when all have ended.

        Every cell has then been told as "done", "kept" or "elsewhere", once. An interruption ends what is at work and is
        raised; a batch whose job is lost has rows that say so.
        """
        ...
