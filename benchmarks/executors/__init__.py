"""Where a sweep's processes run. One a file; the rows are the same whichever it is."""

from __future__ import annotations

from pathlib import Path

from ..devices import absent
from ..grid import Grid, SweepError
from .base import Executor
from .local import Local

__all__ = ["Executor", "Local", "choose"]


def choose(grid: Grid, out: Path, *, jobs: int, disturbed: bool) -> Executor:
    """The executor of a sweep, after a look for what would make every cell fail.

    Args:
        grid: the sweep.
        out: folder of the results.
        jobs: cells at a time.
        disturbed: cells may disturb each other's timing.

    Raises:
        SweepError: cells would share a machine while they are timed, or the device is not there.
        ImportError: the executor's extra is not installed.
    """
    executor: Executor
    if grid.executor == "slurm":
        from .slurm import Slurm

        executor = Slurm(out / "slurm", grid.slurm)
    elif grid.executor == "ray":
        from .ray import Ray

        if any(":" in device for device in grid.devices):
            raise SweepError('device: Ray gives each cell a GPU of its own, which is "cuda" there: leave the index out')
        executor = Ray(grid.ray, cuda="cuda" in grid.devices)
    else:
        executor = Local()
    if jobs > 1 and executor.shares_machine and not disturbed:
        raise SweepError(
            f"--jobs {jobs}: cells that run at the same time disturb each other's timing, and all of this sweep's are timed; "
            "leave it out, or add --allow-disturbed-timing (the rows will say so), or give each machine a --shard"
        )
    if grid.executor == "local" or (grid.executor == "ray" and "address" not in grid.ray):
        devices_are_there(grid)
    return executor


def devices_are_there(grid: Grid) -> None:
    """Raise `SweepError` if a device of the sweep is not on this machine."""
    for device in grid.devices:
        if reason := absent(device):
            raise SweepError(reason)
