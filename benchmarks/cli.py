"""The command line: ``hypergradbench run | study | claims | list | table | figures``, or ``python -m benchmarks``.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg, subcommand

DEFAULT_OUT = Path("results/demo")
STUDIES_OUT = Path("results/studies")


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


@dataclass(frozen=True, kw_only=True)
class Study:
    """Regenerate claims of the papers, or of ours: run studies, print what they show, save results and figures."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...", help_behavior_hint="(or --all)")] = ()
    """Studies; see `hypergradbench list`."""
    every: Annotated[bool, arg(name="all"), FlagCreatePairsOff] = False
    """All of them."""
    out: Path = STUDIES_OUT
    """Folder for one JSON file a study and figures/."""
    quick: Annotated[bool, FlagCreatePairsOff] = False
    """A few seconds each, to see that they run: thresholds are not meant for this."""
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE ...")] = ()
    """Settings of the study, in place of its defaults; an unknown one shows all. Tuples as `seeds=0,1`."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Write what studies found to the docs: claims.md, rules.md, and the figures under images/."""

    folder: Positional[Path] = STUDIES_OUT
    """Folder that `study` wrote (its --out)."""
    docs: Path = Path("docs")
    """Folder of the docs."""
    partial: Annotated[bool, FlagCreatePairsOff] = False
    """Write pages of the studies that have results, and of those alone."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Show estimators, problems, rules, solvers and studies, one line and the citation of each."""

    plugins: Annotated[tuple[str, ...], arg(metavar="MODULE ...", help_behavior_hint="(default: none)")] = ()
    """Modules or .py files that register further estimators or problems."""


@dataclass(frozen=True)
class Table:
    """Print the table of a results folder again."""

    folder: Positional[Path]
    """Folder that `run` wrote (its --out)."""


@dataclass(frozen=True)
class Figures:
    """Draw the figures of a results folder again."""

    folder: Positional[Path]
    """Folder that `run` wrote (its --out)."""


Command = (
    Annotated[Run, subcommand("run")]
    | Annotated[Study, subcommand("study")]
    | Annotated[Claims, subcommand("claims")]
    | Annotated[List, subcommand("list")]
    | Annotated[Table, subcommand("table")]
    | Annotated[Figures, subcommand("figures")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of the console script.

    Returns:
        Exit status: 0; 1 if a cell or a claim failed or there is nothing to show; 2 for a wrong command line; 130 interrupted.
    """
    args = sys.argv[1:] if args is None else list(args)
    command = tyro.cli(
        Command,
        prog="hypergradbench",
        description="A harness for hypergradient estimators.",
        args=args or ["--help"],
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    try:
        if isinstance(command, Run):
            return run(command)
        if isinstance(command, Study):
            return study(command)
        if isinstance(command, Claims):
            return claims(command)
        if isinstance(command, List):
            return show_list(command)
        return again(command)
    except KeyboardInterrupt:
        print("hypergradbench: interrupted; what is finished is kept, run again to go on", file=sys.stderr)
        return 130


def run(command: Run) -> int:
    """`run`."""
    begin = time.perf_counter()
    from estimators import registry

    from . import plan
    from .cells import finished
    from .plugins import load
    from .progress import Progress
    from .sweep import Orders, sweep

    try:
        _check(command)
        load(command.plugins)
        from .problems import PROBLEMS

        todo = plan.cells(
            estimators=plan.known(command.estimators, registry, "estimator"),
            problems=plan.known(command.problems or plan.MAIN_JOB, PROBLEMS, "problem"),
            seeds=tuple(dict.fromkeys(command.seeds)),
            conds=tuple(dict.fromkeys(command.conds)),
            dtype=command.dtype,
            meta_steps=command.meta_steps,
        )
    except (plan.UnknownName, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    if command.retry_failed:
        for cell in todo:
            if finished(cell, command.out) == "failed":
                cell.file(command.out).unlink()
    orders = Orders(
        out=command.out, jobs=command.jobs, force=command.force, timeout=command.timeout, plugins=command.plugins
    )
    with Progress(len(todo)) as progress:
        counts = sweep(todo, orders, progress.report)
    measured = time.perf_counter() - begin
    status = _show(command.out, ids={c.id for c in todo}, draw=command.figures)
    total = time.perf_counter() - begin
    print(
        f"\n{len(todo)} cells: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        + f". {measured:.0f} s measuring, {total:.0f} s in all. Everything is in {command.out.resolve()}"
    )  # fmt: skip
    return 1 if any(finished(c, command.out) == "failed" for c in todo) else status


def _check(command: Run) -> None:
    from .plan import UnknownName

    if command.jobs < 1 or command.timeout <= 0 or command.meta_steps < 0:
        raise UnknownName("--jobs must be at least 1, --timeout positive and --meta-steps not negative")
    if not command.seeds or not command.conds or any(not 1 <= c < math.inf for c in command.conds):
        raise UnknownName("--seeds and --conds must not be empty, and condition numbers are finite and at least 1")
    if command.out.exists() and not command.out.is_dir():
        raise UnknownName(f"--out {command.out} is a file: name a folder")


def study(command: Study) -> int:
    """`study`."""
    from analysis import figures, studies

    from .listing import plain_console
    from .plan import UnknownName, known
    from .studies import STUDIES
    from .studies.execute import execute, result_file

    try:
        if command.every == bool(command.names):
            raise UnknownName(f"name studies, or give --all; there are: {', '.join(STUDIES)}")
        if command.settings and len(command.names) != 1:
            raise UnknownName("--set is for one study at a time: name it")
        if command.out.exists() and not command.out.is_dir():
            raise UnknownName(f"--out {command.out} is a file: name a folder")
        names = known(command.names, STUDIES, "study")
        chosen = {name: STUDIES[name].settings(command.settings, quick=command.quick) for name in names}
    except ValueError as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    console, status = plain_console(), 0
    for name, settings in chosen.items():
        print(f"{name} ...", file=sys.stderr)
        execute(name, STUDIES[name], settings, command.out)
        found = studies.load(result_file(command.out, name))
        studies.show(found, console)
        if not found.ok or (found.content["defaults"] and not all(c["holds"] for c in found.claims)):
            status = 1
        try:
            drawn = figures.draw_study(name, found.rows, command.out / "figures") if found.ok else []
        except Exception as error:  # the numbers are saved, and the other studies wait
            print(f"hypergradbench: no figure of {name}: {type(error).__name__}: {error}", file=sys.stderr)
            drawn, status = [], 1
        for path in drawn:
            print(f"figure: {path}")
    return status


def claims(command: Claims) -> int:
    """`claims`."""
    from analysis import studies

    from .studies import STUDIES

    for folder in (command.folder, command.docs):
        if not folder.is_dir():
            print(f"hypergradbench: there is no folder {folder}", file=sys.stderr)
            return 2
    found, damaged = studies.load_all(command.folder)
    for reason in damaged:
        print(f"hypergradbench: {reason}: left out", file=sys.stderr)
    if not found:
        print(f"hypergradbench: no results of studies in {command.folder}", file=sys.stderr)
        return 1
    other = [f.name for f in found if not f.content["defaults"]]
    if other:
        print(
            f"hypergradbench: {', '.join(other)}: not run at the default settings, for which the claims are worded; run "
            "`hypergradbench study` on them again, without --quick and --set",
            file=sys.stderr,
        )
        return 1
    if lost := sorted(STUDIES.keys() - {f.name for f in found}):
        if not command.partial:
            print(
                f"hypergradbench: no results of {', '.join(lost)} in {command.folder}, and nothing was written: run "
                f"`hypergradbench study {' '.join(lost)} --out {command.folder}`, or give --partial for pages without them",
                file=sys.stderr,
            )
            return 1
        print(f"hypergradbench: left out, for want of results: {', '.join(lost)}", file=sys.stderr)
    for path in studies.write_docs(found, command.docs):
        print(f"written: {path}")
    return 0


def show_list(command: List) -> int:
    """`list`."""
    from .listing import show
    from .plugins import load

    try:
        load(command.plugins)
    except ImportError as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    show()
    return 0


def again(command: Table | Figures) -> int:
    """`table` and `figures`."""
    if not command.folder.is_dir():
        print(f"hypergradbench: there is no folder {command.folder}", file=sys.stderr)
        return 2
    return _show(command.folder, draw=isinstance(command, Figures), text=isinstance(command, Table))


def _show(out: Path, *, ids: set[str] | None = None, draw: bool, text: bool = True) -> int:
    """Table and figures from the files in ``out`` (of ``ids`` only, if given)."""
    from analysis import figures, results, tables

    frame = results.load(out, ids=ids)
    for name in frame.attrs["damaged"]:
        print(f"hypergradbench: {name} is damaged and was left out", file=sys.stderr)
    if frame.empty:
        print(f"hypergradbench: no results in {out}", file=sys.stderr)
        return 1
    if text:
        tables.show(frame)
        tables.save(frame, out / "table.txt")
    if draw:
        for path in figures.draw_all(frame, out / "figures"):
            print(f"figure: {path}")
    return 0
