"""``hypergradbench check``: what is wrong with a problem, in plain words."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look for what makes hypergradients of a problem wrong, missing or surprising, and say what to change.

    Exit status 1 if there is an error; warnings and notes do not count. docs/own_problem.md explains every finding.
    """

    problem: Annotated[Positional[str], arg(metavar="PROBLEM")]
    """my_problem.py:make, a function that returns a Problem (or a Workload); or a name, see `hypergradbench list`."""
    settings: Annotated[
        Positional[tuple[str, ...]], arg(metavar="NAME=VALUE ...", help_behavior_hint="(default: none)")
    ] = ()
    """What make is called with."""
    dtype: Annotated[Literal["float64", "float32"] | None, arg(help_behavior_hint="(default: the problem's own)")] = (
        None
    )
    """Precision."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    timeout: float = 180.0
    """Seconds after which it is given up."""
    plugins: Annotated[tuple[str, ...], arg(metavar="MODULE ...", help_behavior_hint="(default: none)")] = ()
    """Modules or .py files that register further estimators or problems."""


def check(command: Check) -> int:
    """`check`."""
    from .. import own_problem
    from ..check import show
    from ..devices import absent, misnamed
    from ..own_run import Refused, report_on
    from ..plan import UnknownName
    from ..plugins import load

    try:
        if wrong := misnamed(command.device) or absent(command.device):
            raise UnknownName(f"--device: {wrong}")
        if command.timeout <= 0:
            raise UnknownName(f"--timeout {command.timeout}: must be positive")
        load(command.plugins)
        found = own_problem.find(command.problem)
        settings = own_problem.settings(found, command.settings)
    except (UnknownName, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    try:
        report = report_on(
            found.name, settings, dtype=command.dtype, device=command.device, full=True, seconds=command.timeout
        )
    except Refused as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 1
    show(report)
    counts = [sum(f.level == level for f in report.findings) for level in ("error", "warning")]
    print(f"{counts[0]} error{'s' * (counts[0] != 1)}, {counts[1]} warning{'s' * (counts[1] != 1)}")
    if counts[0]:
        return 1
    if own_problem.is_own(found.name):
        chosen = f" --set {' '.join(command.settings)}" if command.settings else ""
        print(f"Next: hypergradbench run {found.name}{chosen} --estimators all")
    return 0
