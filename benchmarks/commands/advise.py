"""``hypergradbench advise``: which estimator for the user's own problem, on evidence."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg

Switch = Annotated[bool, FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Advise:
    """Measure the estimators on a problem of your own at a small budget, discard those that do not fit, and recommend one.

    What is measured is one meta step: the steps of the stage, and the hypergradient at their end. docs/advise.md says how to read
    the answer. The same command again goes on where the budget ended.
    """

    problem: Annotated[Positional[str], arg(metavar="PROBLEM")]
    """my_problem.py:make, a function that returns a Problem (or a Workload); or a name, see `hypergradbench list`."""
    settings: Annotated[
        Positional[tuple[str, ...]], arg(metavar="NAME=VALUE ...", help_behavior_hint="(default: none)")
    ] = ()
    """What make is called with."""
    memory: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: what the machine has)")] = None
    """Most that the tensors of a meta step may take, such as 8GiB."""
    time: Annotated[str | None, arg(metavar="TIME", help_behavior_hint="(default: any)")] = None
    """Most that a meta step may take: 2x, times the run alone; or 3s, 500ms."""
    estimators: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: all)")] = ()
    """Registered names; see `hypergradbench list`."""
    budget: Annotated[str, arg(metavar="TIME")] = "2min"
    """Time for all measurements together, such as 60s or 5min."""
    points: Annotated[int, arg(metavar="INT")] = 3
    """At how many points errors are taken: seeds of make, or, if it takes none, later points of its run."""
    error: Literal["direction", "relative"] = "direction"
    """What counts: the error of the direction, since a meta learning rate sets the length; or the relative error."""
    tolerance: Annotated[float, arg(metavar="FLOAT")] = 0.05
    """By how much a cheaper estimator's error may exceed the best one's."""
    reference: Annotated[
        Literal["exact", "unroll", "cg"] | None, arg(help_behavior_hint="(default: the best affordable)")
    ] = None
    """What errors are to: a closed form, a full unroll (the steps taken), or CG to tolerance (the optimum), in float64."""
    dtype: Annotated[Literal["float64", "float32"] | None, arg(help_behavior_hint="(default: the problem's)")] = None
    """Precision of the estimators."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: results/advise)")] = None
    """Folder for cells/, advice.txt and figures/."""
    threads: Annotated[int, arg(metavar="INT")] = 1
    """Threads of torch."""
    force: Switch = False
    """Measure again what is there already."""
    plugins: Annotated[tuple[str, ...], arg(metavar="MODULE ...", help_behavior_hint="(default: none)")] = ()
    """Modules or .py files that register further estimators."""
    figures: Annotated[bool, FlagConversionOff] = True
    """Draw the figure at the end: True or False."""


UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """From "60s", "500ms", "5min".

    Raises:
        ValueError: it is no such thing, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no time: write a positive number and one of {', '.join(UNITS)}")
    return float(found[1]) * UNITS[found[2]]


def limits_of(command: Advise) -> dict[str, Any]:
    """What the recommendation must keep to.

    Raises:
        ValueError: a flag says no limit.
    """
    from ..limits import size

    ratio, absolute = None, None
    if command.time is not None and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x\s*", command.time)):
        ratio = float(found[1])
    elif command.time is not None:
        try:
            absolute = seconds(command.time)
        except ValueError as error:
            raise ValueError(f"--time: {error}; or 2x, times the run alone") from error
    if ratio is not None and ratio <= 1:
        raise ValueError(f"--time {command.time}: a meta step contains the run, so it takes more than 1x")
    try:
        memory = None if command.memory is None else size(command.memory, least=1)
    except ValueError as error:
        raise ValueError(f"--memory: {error}") from error
    return {
        "memory": memory, "time_ratio": ratio, "time_seconds": absolute, "tolerance": command.tolerance,
        "error": command.error,
    }  # fmt: skip


def _budget(command: Advise) -> float:
    try:
        return seconds(command.budget)
    except ValueError as error:
        raise ValueError(f"--budget: {error}") from error


def advise(command: Advise, words: Sequence[str]) -> int:
    """`advise`.

    Returns:
        Exit status: 0; 1 if nothing fits, or nothing could be measured; 2 for a wrong command line or problem.
    """
    from ..advise.session import Session

    try:
        session = Session(command, words, limits=limits_of(command), budget=_budget(command))
    except (ValueError, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    session.measure()
    return session.tell()
