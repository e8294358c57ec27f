"""``hypergradbench run``: the main job, or estimators on problems of the user's own."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg

from .again import show_results

if TYPE_CHECKING:
    from ..cells import Cell

DEFAULT_OUT = Path("results/demo")
OWN_OUT = Path("results/own")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Measure estimators on problems; write one JSON file a cell, a table and figures.

    With my_problem.py:make, a function of yours that returns a Problem: on that, after a check of it (docs/own_problem.md). Without
    arguments: every registered estimator on biased regression over a range of condition numbers, on a
    two-stage problem and on digits reweighting, and Figure 5 of SAMA. Results that are there already are kept.
    """

    problem: Annotated[
        Positional[tuple[str, ...]], arg(metavar="PROBLEM ...", help_behavior_hint="(default: none)")
    ] = ()
    """my_problem.py:make, or registered names."""
    estimators: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Registered names, or all; see `hypergradbench list`."""
    problems: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: those of the main job)")
    ] = ()
    """The same as PROBLEM; see `hypergradbench list`."""
    settings: Annotated[
        tuple[str, ...], arg(name="set", metavar="NAME=VALUE ...", help_behavior_hint="(default: none)")
    ] = ()
    """What the function of my_problem.py is called with."""
    seeds: Annotated[tuple[int, ...], arg(metavar="INT ...")] = (0, 1, 2)
    """Seeds of every problem. Claim "A beats B" from 6 on only: with fewer no paired test can reach p = 0.05."""
    conds: Annotated[tuple[float, ...], arg(metavar="FLOAT ...")] = (2.0, 10.0, 100.0, 1000.0)
    """Condition numbers of biased_regression."""
    dtype: Annotated[
        Literal["float64", "float32"] | None, arg(help_behavior_hint="(default: float64; your own problem's)")
    ] = None
    """Precision of the estimators. The truth is computed in float64."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    reference: Annotated[
        Literal["exact", "unroll", "cg", "none"] | None,
        arg(help_behavior_hint="(default: the best that can be had)"),
    ] = None
    """What a problem of your own is compared with: its closed form, a float64 unroll, a solved linear system, nothing."""
    no_check: Annotated[bool, FlagCreatePairsOff] = False
    """Measure a problem of your own without checking it."""
    meta_steps: int = 100
    """Length of the paths of Figure 5; 0 leaves them out."""
    paths: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ("biased_regression",)
    """On which of the problems there are paths. Without a closed form a meta step also takes a float64 unroll."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: results/demo; results/own)")] = None
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
    from ..cells import finished, forget_failed
    from ..own_run import Refused
    from ..plan import UnknownName
    from ..progress import Progress
    from ..sweep import Orders, sweep

    try:
        todo, out = _todo(command)
    except (UnknownName, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    except Refused as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 1
    if command.retry_failed:
        forget_failed(todo, out)
    orders = Orders(out=out, jobs=command.jobs, force=command.force, timeout=command.timeout, plugins=command.plugins)
    with Progress(len(todo)) as progress:
        counts = sweep(todo, orders, progress.report)
    measured = time.perf_counter() - begin
    status = show_results(out, ids={c.id for c in todo}, draw=command.figures)
    total = time.perf_counter() - begin
    print(
        f"\n{len(todo)} cells: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        + f". {measured:.0f} s measuring, {total:.0f} s in all. Everything is in {out.resolve()}"
    )  # fmt: skip
    return 1 if any(finished(c, out) == "failed" for c in todo) else status


def _todo(command: Run) -> tuple[list[Cell], Path]:
    """The cells, and the folder of their results; problems of the user's own are checked on the way.

    Raises:
        UnknownName, ImportError: the command line is wrong.
        Refused: a problem of the user's own is.
    """
    from estimators import registry

    from .. import own_problem, own_run, plan
    from ..cells import unwritable
    from ..plugins import load

    _check(command)
    load(command.plugins)
    from ..problems import PROBLEMS

    names = tuple(dict.fromkeys((*command.problem, *command.problems)))
    own = [name for name in names if own_problem.is_own(name)]
    others = [name for name in names if name not in own]
    estimators = plan.known(() if command.estimators == ("all",) else command.estimators, registry, "estimator")
    if command.settings and not own:
        raise plan.UnknownName("--set is for a problem of your own: name it, such as my_problem.py:make")
    for name in command.paths:
        if name in own or (names and name in PROBLEMS and name not in names and command.paths != Run.paths):
            why = "paths are of registered problems" if name in own else f"give --problems {name}, too"
            raise plan.UnknownName(f"--paths {name}: {why}")
    todo = [] if own and not others else plan.cells(
        estimators=estimators,
        problems=plan.known(others or plan.MAIN_JOB, PROBLEMS, "problem"),
        seeds=tuple(dict.fromkeys(command.seeds)),
        conds=tuple(dict.fromkeys(command.conds)),
        dtype=command.dtype or "float64",
        device=command.device,
        meta_steps=command.meta_steps,
        paths=plan.known(command.paths, PROBLEMS, "problem") if command.paths else (),
    )  # fmt: skip
    out = command.out or (OWN_OUT if own else DEFAULT_OUT)
    if out.exists() and not out.is_dir():
        raise plan.UnknownName(f"--out {out} is a file: name a folder")
    if wrong := unwritable(out):
        raise plan.UnknownName(f"--out: {wrong}")
    wanted = own_run.Wanted(
        estimators=estimators, seeds=tuple(dict.fromkeys(command.seeds)), dtype=command.dtype, device=command.device,
        reference=command.reference, timeout=command.timeout, plugins=command.plugins, check=not command.no_check,
    )  # fmt: skip
    for name in own:
        todo += own_run.cells(name, command.settings, wanted, out)
    return todo, out


def _check(command: Run) -> None:
    from ..devices import absent, misnamed
    from ..plan import UnknownName

    if wrong := misnamed(command.device) or absent(command.device):
        raise UnknownName(f"--device: {wrong}")

    if command.jobs < 1 or command.timeout <= 0 or command.meta_steps < 0:
        raise UnknownName("--jobs must be at least 1, --timeout positive and --meta-steps not negative")
    if not command.seeds or not command.conds or any(not 1 <= c < math.inf for c in command.conds):
        raise UnknownName("--seeds and --conds must not be empty, and condition numbers are finite and at least 1")
