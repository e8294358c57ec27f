"""Child processes of this process: the default."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..cells import Cell
from ..isolated import Children, Orders, Report, run_batch


class Local:
    """A thread a job, each following one child process at a time."""

    shares_machine = True

    def run(self, batches: Sequence[Sequence[Cell]], orders: Orders, tell: Report) -> None:
        """See `Executor`."""
        children = Children()
        with ThreadPoolExecutor(max_workers=max(orders.jobs, 1)) as pool:
            futures = [pool.submit(run_batch, batch, orders, tell, children) for batch in batches]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C above all
                children.stop()
                for future in futures:
                    future.cancel()
                raise
