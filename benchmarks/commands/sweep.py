"""``hypergradbench sweep``: a grid of cells from a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg

from .again import show_results

if TYPE_CHECKING:
    from ..cells import Cell
    from ..grid import Grid

Names = Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: the file's)")]
Numbers = Annotated[tuple[int, ...], arg(metavar="INT ...", help_behavior_hint="(default: the file's)")]
Texts = Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="(default: the file's)")]
Given = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: the file's)")]
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: the file's, or 1)")]
Switch = Annotated[bool, FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Measure a grid of cells, each in a fresh process: a cell that dies, hangs or runs out of memory is a row like any other.

    The same command goes on where it was interrupted. docs/sweeps.md says how to write the file; flags stand in its entries' place.
    """

    file: Annotated[Positional[Path | None], arg(metavar="FILE.toml", help_behavior_hint="(or flags alone)")] = None
    """The grid."""
    kind: Annotated[Literal["point", "meta"] | None, arg(help_behavior_hint="(default: the file's, or point)")] = None
    """"point" takes error and cost of one hypergradient, "meta" throughput and memory of a whole meta step."""
    estimators: Names = ()
    """Registered names, or all; see `hypergradbench list`."""
    problems: Names = ()
    """Names of problems, or of workloads for "meta"."""
    seeds: Numbers = ()
    """Seeds of every problem."""
    dtypes: Texts = ()
    """float64, float32; for "meta" also bfloat16-autocast."""
    sizes: Texts = ()
    """Values of the setting `size`."""
    unroll: Numbers = ()
    """Values of the setting `unroll`: steps before a meta step."""
    workers: Numbers = ()
    """Data-parallel processes ("meta" only)."""
    device: Given = None
    """cpu, cuda or cuda:1."""
    data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: generated data)")] = None
    """Folder of your own copy of a data set, for the problems that read one."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: results/NAME)")] = None
    """Folder of the results; several sweeps may share one, also at the same time."""
    executor: Annotated[
        Literal["local", "slurm", "ray"] | None, arg(help_behavior_hint="(default: the file's, or local)")
    ] = None
    """Where the processes run; see docs/sweeps.md."""
    jobs: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: 1; all with Slurm)")] = None
    """Cells at a time."""
    allow_disturbed_timing: Switch = False
    """Let several cells run at a time on one machine although they are timed; their rows say so."""
    shard: Annotated[str | None, arg(metavar="I/N", help_behavior_hint="(default: all)")] = None
    """The i-th of n parts, for machines that share nothing: copy their folders together afterwards."""
    limit_seconds: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: the file's, or 600)")] = (
        None
    )
    """Seconds after which a cell is given up."""
    limit_memory: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: the file's, or none)")] = None
    """Memory that a cell's process may take, such as 4GiB; of the device for cuda."""
    threads: Count = None
    """Threads of torch in every process."""
    per_process: Count = None
    """Cells a process: more than one saves torch's import for many small cells."""
    together: Switch = False
    """Time the estimators of one workload in turns in one process: the sharpest comparison ("meta" only)."""
    apart: Switch = False
    """The opposite, where the file says together."""
    plugins: Annotated[tuple[str, ...], arg(metavar="MODULE ...", help_behavior_hint="(default: the file's)")] = ()
    """Modules or .py files that register further estimators or problems."""
    force: Switch = False
    """Measure again what is there already."""
    retry_failed: Switch = False
    """Measure again what failed before."""
    figures: Annotated[bool, FlagConversionOff] = True
    """Draw the figures at the end: True or False."""
    predict: Switch = False
    """Measure nothing: print what every cell would need, and which cannot fit (into --limit-memory, or the machine)."""


OWN = (
    "file",
    "out",
    "jobs",
    "allow_disturbed_timing",
    "shard",
    "apart",
    "together",
    "force",
    "retry_failed",
    "figures",
    "predict",
)
"""Flags that stand for no entry of the file, or not by their name."""


def resolve(command: Sweep) -> tuple[Grid, list[Cell], Path]:
    """What a command line asks for.

    Returns:
        (the sweep, the cells of this shard, folder of the results).

    Raises:
        ValueError, ImportError: it is wrong; the message says where.
    """
    from ..grid import SweepError, read, shard

    if command.together and command.apart:
        raise SweepError("--together and --apart exclude each other")
    flags: dict[str, Any] = {k: v for k, v in asdict(command).items() if k not in OWN}
    flags["together"] = (True if command.together else None) if not command.apart else False
    grid = read(command.file, flags)
    if command.jobs is not None and command.jobs < 1:
        raise SweepError(f"--jobs {command.jobs}: at least 1")
    out = command.out or Path("results") / grid.name
    if out.exists() and not out.is_dir():
        raise SweepError(f"--out {out} is a file: name a folder")
    return grid, shard(grid.cells(), command.shard, grid.together), out


def sweep(command: Sweep, words: Sequence[str]) -> int:
    """`sweep`.

    Args:
        command: the flags.
        words: of the command line, to be saved with the configuration.
    """
    begin = time.perf_counter()
    from .. import locks, saved
    from ..cells import finished, forget_failed, unwritable
    from ..executors import choose
    from ..grid import SweepError
    from ..isolated import Orders
    from ..progress import Progress
    from ..sweep import sweep as run_cells

    try:
        grid, todo, out = resolve(command)
        if command.predict:
            from .prediction import show_predictions

            return show_predictions(todo, grid.memory)
        executor = choose(grid, out, jobs=command.jobs or 1, disturbed=command.allow_disturbed_timing)
        if wrong := unwritable(out):
            raise SweepError(f"--out: {wrong}")
    except (ValueError, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    jobs = command.jobs or (1 if executor.shares_machine else max(len(todo), 1))
    configuration = saved.save(out, grid, todo, command=words, shard=command.shard, jobs=jobs)
    if not locks.supported(out):
        print(
            f"hypergradbench: no file locks in {out}: let no two sweeps share it, or give each a --shard",
            file=sys.stderr,
        )
    if command.retry_failed:
        forget_failed(todo, out)
    orders = Orders(
        out=out, jobs=jobs, force=command.force, timeout=grid.seconds, memory=grid.memory, threads=grid.threads,
        per_process=grid.per_process, together=grid.together, plugins=grid.plugins, effort=grid.effort,
        executor=grid.executor, shares_machine=executor.shares_machine,
    )  # fmt: skip
    try:
        with Progress(len(todo)) as progress:
            counts = run_cells(todo, orders, progress.report, executor)
    except SweepError as error:  # its executor cannot begin
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - begin
    status = show_results(out, ids={c.id for c in todo}, draw=command.figures) if todo else 0
    print(
        f"\n{len(todo)} cells: " + (", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "none")
        + f". {seconds:.0f} s. Rows: {out / 'cells'}; configuration: {configuration}"
    )  # fmt: skip
    return 1 if any(finished(c, out) == "failed" for c in todo) else status
