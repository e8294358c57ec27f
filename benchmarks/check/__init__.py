"""``hypergradbench check``: what is wrong with a problem, or will surprise, in plain words and with what to change."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Literal

from rich.console import Console
from rich.markup import escape

from ..own_reference import Kind

Level = Literal["ok", "note", "warning", "error"]

STYLE: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One sentence on a problem.

    Attributes:
        level: "error": hypergradients would be wrong, or there are none. "warning": they may be, or some estimators fail. "note":
            good to know.
        what: was found, where.
        change: what to write instead; "" if there is nothing to do.
    """

    level: Level
    what: str
    change: str = ""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a problem is.

    Attributes:
        dtype: of its numbers, such as "float32".
        steps: of every stage.
        params: scalars that the start holds.
        hparams: name -> scalars.
        run_seconds: of one run; extrapolated from its first steps if it is long.
        references: the kinds that it could be compared with, the best first.
    """

    dtype: str
    steps: tuple[int, ...]
    params: int
    hparams: dict[str, int]
    run_seconds: float
    references: tuple[Kind, ...]


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        name: of the problem.
        findings: in the order in which they were made.
        survey: None if the problem could not be run.
    """

    name: str
    findings: Sequence[Finding]
    survey: Survey | None

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.level == "error"]


def show(report: Report, *, file: IO[str] | None = None, quiet: bool = False) -> None:
    """Print a report.

    Args:
        report: of a problem.
        file: standard output if None.
        quiet: leave out what is well.
    """
    console = Console(file=file, highlight=False)
    width = min(console.width, 120) if console.is_terminal else 120
    if report.survey is not None:
        _wrapped(console, f"{report.name}: {_described(report.survey)}", width)
    for finding in report.findings:
        if quiet and finding.level == "ok":
            continue
        _wrapped(console, finding.what, width, finding.level)
        if finding.change:
            _wrapped(console, f"-> {finding.change}", width, indent=8)


def _wrapped(console: Console, text: str, width: int, level: Level | None = None, indent: int = 0) -> None:
    """``text`` below a level's word, which stands out where there are colours."""
    indent = 8 if level is not None else indent
    lines = textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_long_words=False
    )
    head = "" if level is None else f"[{STYLE[level]}]{level:<8}[/]"
    console.print(head + escape(lines[0][8 if level else 0 :]), soft_wrap=True)
    for line in lines[1:]:
        console.print(escape(line), soft_wrap=True)


def _described(survey: Survey) -> str:
    stages = (
        f"{survey.steps[0]} steps"
        if len(survey.steps) == 1
        else f"stages of {' and '.join(map(str, survey.steps))} steps"
    )
    named = ", ".join(f"{k} {n:,}" for k, n in survey.hparams.items())
    return (
        f"{stages}, {survey.params:,} parameters, {sum(survey.hparams.values()):,} hyperparameters ({named}), {survey.dtype}; a run takes "
        f"{survey.run_seconds:.2g} s"
    )
