"""``hypergradbench run``: the main job."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, arg

from .again import show_results

DEFAULT_OUT = Path("results/demo")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Measure estimators on problems; write one JSON file a cell, a table and figures.

    Without arguments: every registered estimator on biased regression over a range of condition numbers, on a
    two-stage problem and on digits reweighting, and Figure 5 of SAMA. Results that are there already are kept.
    """

    estimators: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Registered names; see `hypergradbench list`."""
    problems: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: those of the main job)")
    ] = ()
    """Problem names; see `hypergradbench list`."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT ...")] = (0, 1, 2)
    """Seeds of every problem. Claim "A beats B" from 6 on only: with fewer no paired test can reach p = 0.05."""
    conds: Annotated[tuple[float, ...], arg(metavar="FLOAT ...")] = (2.0, 10.0, 100.0, 1000.0)
    """Condition numbers of biased_regression."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the estimators. The truth is computed in float64."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    meta_steps: int = 100
    """Length of the paths of Figure 5 (biased_regression only); 0 leaves them out."""
    out: Path = DEFAULT_OUT
    """Folder for cells/, table.txt and figures/."""
    jobs: int = 1
    """Processes that measure at a time. Above 1 timings disturb each other; the results say so."""
    force: bool = False
    """Measure again what is there already."""
    retry_failed: bool = False
    """Measure again what failed before."""
    timeout: float = 600.0
    """Seconds after which a cell is given up."""
    plugins: Annotated[tuple[str, ...], arg(metavar="MODULE ...", help_behavior_hint="(default: none)")] = ()
    """Modules or .py files that register further estimators or problems."""
    figures: Annotated[bool, FlagConversionOff] = True
    """Draw the figures at the end: True or False."""


def run(command: Run) -> int:
    """`run`."""
    begin = time.perf_counter()
    from estimators import registry

    from .. import plan
    from ..cells import finished, forget_failed, unwritable
    from ..plugins import load
    from ..progress import Progress
    from ..sweep import Orders, sweep

    try:
        _check(command)
        load(command.plugins)
        from ..problems import PROBLEMS

        todo = plan.cells(
            estimators=plan.known(command.estimators, registry, "estimator"),
            problems=plan.known(command.problems or plan.MAIN_JOB, PROBLEMS, "problem"),
            seeds=tuple(dict.fromkeys(command.seeds)),
            conds=tuple(dict.fromkeys(command.conds)),
            dtype=command.dtype,
            device=command.device,
            meta_steps=command.meta_steps,
        )
        if wrong := unwritable(command.out):
            raise plan.UnknownName(f"--out: {wrong}")
    except (plan.UnknownName, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    if command.retry_failed:
        forget_failed(todo, command.out)
    orders = Orders(
        out=command.out, jobs=command.jobs, force=command.force, timeout=command.timeout, plugins=command.plugins
    )
    with Progress(len(todo)) as progress:
        counts = sweep(todo, orders, progress.report)
    measured = time.perf_counter() - begin
    status = show_results(command.out, ids={c.id for c in todo}, draw=command.figures)
    total = time.perf_counter() - begin
    print(
        f"\n{len(todo)} cells: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        + f". {measured:.0f} s measuring, {total:.0f} s in all. Everything is in {command.out.resolve()}"
    )  # fmt: skip
    return 1 if any(finished(c, command.out) == "failed" for c in todo) else status


def _check(command: Run) -> None:
    from ..devices import absent, misnamed
    from ..plan import UnknownName

    if wrong := misnamed(command.device) or absent(command.device):
        raise UnknownName(f"--device: {wrong}")

    if command.jobs < 1 or command.timeout <= 0 or command.meta_steps < 0:
        raise UnknownName("--jobs must be at least 1, --timeout positive and --meta-steps not negative")
    if not command.seeds or not command.conds or any(not 1 <= c < math.inf for c in command.conds):
        raise UnknownName("--seeds and --conds must not be empty, and condition numbers are finite and at least 1")
    if command.out.exists() and not command.out.is_dir():
        raise UnknownName(f"--out {command.out} is a file: name a folder")
