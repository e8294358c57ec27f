"""Slurm by submitit; its "local" and "debug" clusters run the same jobs without Slurm."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..cells import Cell
from ..grid import SweepError
from ..isolated import STARTUP, Orders, Report
from .base import importable, job, lost, relay

POLL = {"slurm": 5.0, "local": 0.1, "debug": 0.0}
"""cluster -> seconds between two looks at its jobs."""


class Slurm:
    """A job a batch. The folder of the results must be on a file system that the nodes share.

    Args:
        folder: of submitit's own files: scripts and logs.
        settings: ``cluster``: "slurm", "local" or "debug"; the rest is what submitit takes: ``slurm_partition``,
            ``gpus_per_node``, ``mem_gb``, ``timeout_min``, ...

    Raises:
        ImportError: submitit is not installed.
        SweepError: a setting is unknown, or there is no Slurm here.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ImportError("the executor slurm needs submitit: pip install -e '.[slurm]'") from error
        self._own = dict(settings)
        self.cluster: str = self._own.pop("cluster", "slurm")
        if self.cluster not in POLL:
            raise SweepError(f"[slurm] cluster: {self.cluster!r} is none of: {', '.join(POLL)}")
        self.shares_machine = self.cluster != "slurm"
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            self._executor.update_parameters(**self._own)
        except RuntimeError as error:  # no sbatch on this machine
            raise SweepError(f'[slurm]: {error}; cluster = "local" runs the same jobs without it') from error
        except (NameError, TypeError, ValueError) as error:
            raise SweepError(f"[slurm]: submitit refuses: {error}") from error

    def run(self, batches: Sequence[Sequence[Cell]], orders: Orders, tell: Report) -> None:
        """See `Executor`."""
        waiting, running = [list(b) for b in batches], dict[Any, list[Cell]]()
        try:
            while waiting or running:
                fresh, waiting = waiting[: orders.jobs - len(running)], waiting[orders.jobs - len(running) :]
                running |= self._submit(fresh, orders, tell)
                ended = [j for j in running if self.cluster == "debug" or j.done()]
                for j in ended:
                    batch = running.pop(j)
                    error = j.exception()
                    if error is None:
                        relay(batch, j.result(), tell)
                    elif rest := lost(batch, _short(error), orders, tell):
                        waiting.append(rest)
                if running and not ended:
                    time.sleep(POLL[self.cluster])
        except BaseException:
            for j in running:
                j.cancel()
            raise

    def _submit(self, batches: Sequence[list[Cell]], orders: Orders, tell: Report) -> dict[Any, list[Cell]]:
        if not batches:
            return {}
        if "timeout_min" not in self._own:  # submitit's default is 5
            longest = max(map(len, batches)) * orders.timeout + STARTUP
            self._executor.update_parameters(timeout_min=math.ceil(longest / 60) + 1)
        array = self._executor.batch() if self.cluster == "slurm" and len(batches) > 1 else nullcontext()
        with importable(), array:
            jobs = [self._executor.submit(job, batch, orders) for batch in batches]
        for batch in batches:
            tell("start", batch[0], {})
        return dict(zip(jobs, batches, strict=True))


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
