"""``hypergradbench compare``: what got better or worse between two runs or commits."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    import pandas as pd


WIDTH = 180
"""Of the tables in a pipe."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two sets of results of the same cells: error, time relative to plain training or to a gradient, exact bytes, failures.

    The exit status is 1 if something got worse beyond its threshold or fails newly, so that this can be a gate; 2 if there is
    nothing to compare. How it is decided: docs/comparing.md.
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="BEFORE [AFTER]")]
    """Two folders that `run`, `sweep`, `peers` or `advise` wrote; or one, with --commits."""
    commits: Annotated[tuple[str, ...], arg(metavar="BEFORE AFTER", help_behavior_hint="(default: none)")] = ()
    """Of one folder: the results of these two commits (their first digits)."""
    error: float = 0.1
    """Growth of an error that is no regression yet, as a fraction (0.1: ten percent)."""
    time: float = 0.25
    """The same for times, in units of plain training or of a gradient taken in turn."""
    bytes: float = 0.01
    """The same for bytes, which are exact: one cell beyond it is a regression."""
    alpha: float = 0.05
    """Chance of a false alarm over all comparisons of noisy values together (Holm)."""
    floor: Annotated[
        float | None, arg(help_behavior_hint="(default: 1e-10 in float64, 1e-5 in float32, 1e-2 below)")
    ] = None
    """Errors below this are rounding, and all the same."""
    each_case: bool = False
    """Test times of each case by itself (over seeds), not of an estimator over all its cases."""
    complete: bool = False
    """A cell that is missing in AFTER is a regression, too."""
    all: bool = False
    """Show also comparisons that are within the thresholds."""
    csv: Path | None = None
    """Write every comparison to this file."""


def compare(command: Compare) -> int:
    """`compare`."""
    from rich.console import Console

    from analysis import comparison, comparison_tables

    try:
        _check(command)
        before, after = _sides(command)
    except (ValueError, OSError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    thresholds = comparison.Thresholds(
        error=command.error, time=command.time, bytes=command.bytes, alpha=command.alpha, floor=command.floor
    )
    found = comparison.compare(before, after, thresholds, each_case=command.each_case)
    if len(found.appeared) == len(after) or len(found.disappeared) == len(before):
        print(
            "hypergradbench: no cell is in both: they differ in problem, settings, estimator, precision, device or seed "
            f"(before: {_what(before)}; after: {_what(after)})",
            file=sys.stderr,
        )
        return 2
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)  # a pipe has no width of its own
    for name, frame in (("before", before), ("after", after)):
        console.print(f"{name}: {_what(frame)}", markup=False, soft_wrap=True)
    for note in comparison_tables.sides(before, after):
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    comparison_tables.show(found, thresholds, console, everything=command.all)
    if command.commits and not found.disappeared.empty:
        console.print(
            "Cells whose code did not change between the commits are not measured again: they are among those only before.",
            style="dim",
        )
    if command.csv:
        command.csv.parent.mkdir(parents=True, exist_ok=True)
        comparison_tables.as_frame(found.comparisons).to_csv(command.csv, index=False)
    gone = command.complete and not found.disappeared.empty
    if gone:
        console.print(f"Regression: {len(found.disappeared)} cells are missing (--complete)", style="bold red")
    console.print(
        comparison_tables.conclusion(found, thresholds),
        style="bold red" if found.regressed else "bold",
        markup=False,
        soft_wrap=True,
    )
    return 1 if found.regressed or gone else 0


def _check(command: Compare) -> None:
    for name in ("error", "time", "bytes", "alpha", "floor"):
        value = getattr(command, name)
        if value is not None and not (math.isfinite(value) and value >= 0 and (name != "alpha" or value <= 1)):
            kind = "a probability" if name == "alpha" else "a fraction, 0 or more (0.1: ten percent)"
            raise ValueError(f"--{name} {value:g}: give {kind}")


def _sides(command: Compare) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two frames.

    Raises:
        ValueError, OSError: they are not there, or hold nothing; says what to type instead.
    """
    from analysis import comparison, results

    if command.commits:
        if len(command.commits) != 2 or len(command.folders) != 1:
            raise ValueError("--commits takes two commits of one folder: compare RUN --commits BEFORE AFTER")
    elif len(command.folders) != 2:
        raise ValueError(
            "give two folders: compare BEFORE AFTER (or one with two commits: compare RUN --commits BEFORE AFTER)"
        )
    elif command.folders[0].resolve() == command.folders[1].resolve():
        raise ValueError("both folders are the same one; for two commits in it: compare RUN --commits BEFORE AFTER")
    frames = []
    for folder in command.folders:
        frame = results.load(folder, newest=not command.commits)
        for name, reason in frame.attrs["skipped"].items():
            print(f"hypergradbench: {name} was left out: {reason}", file=sys.stderr)
        if frame.empty:
            studies = (
                "; results of studies are judged by their own claims: hypergradbench study"
                if frame.attrs["studies"]
                else ""
            )
            raise ValueError(f"no results of cells in {folder}{studies}")
        frames.append(frame)
    if not command.commits:
        return frames[0], frames[1]
    first, second = (comparison.of_commit(frames[0], commit) for commit in command.commits)
    if first["commit"].iloc[0] == second["commit"].iloc[0]:
        raise ValueError("--commits: both are the same one")
    return first, second


def _what(frame: pd.DataFrame) -> str:
    commits = [f"{c[:10]}{' (changed since)' * dirty}" for c, dirty in _commits(frame)]
    counts = frame["status"].value_counts()
    rows = ", ".join(f"{n} {s}" for s, n in counts.items())
    return f"{', '.join(frame.attrs['folders'].values())}, commit {', '.join(commits) or 'unknown'}: {len(frame)} cells ({rows})"


def _commits(frame: pd.DataFrame) -> list[tuple[str, bool]]:
    known = frame[frame["commit"].notna()]
    return [(c, bool(rows["dirty"].eq(True).any())) for c, rows in known.groupby("commit", sort=False)]
