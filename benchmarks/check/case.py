"""What the checks hand on to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from estimators import Problem, Tree
from estimators.stage import Record

from ..own_problem import Found
from . import Finding, Level
from .watch import Watch


class Stop(Exception):
    """An error was found that makes the later checks meaningless."""


@dataclass
class Case:
    """A problem under examination.

    Attributes:
        found: where it comes from.
        make: makes it anew.
        problem: as it was made.
        findings: until now.
        short: the problem with a few steps a stage.
        records: of the last run.
        whole: that was of all steps.
        unrolled: of which unrolls are taken: the whole problem if they are cheap.
        inner, outer: what the losses were seen to do.
        twice: the losses have second derivatives.
    """

    found: Found
    make: Callable[[], Problem]
    problem: Problem
    findings: list[Finding]
    short: Problem
    records: list[Record] = field(default_factory=list)
    whole: bool = False
    unrolled: Problem | None = None
    inner: list[Watch] = field(default_factory=list)
    outer: Watch = field(default_factory=Watch)
    twice: bool = True

    def add(self, level: Level, what: str, change: str = "") -> None:
        self.findings.append(Finding(level, what, change))

    def fail(self, what: str, change: str = "") -> None:
        """An error after which nothing else can be looked at."""
        self.add("error", what, change)
        raise Stop

    @property
    def start(self) -> Tree:
        """Parameters before the first stage."""
        start = self.problem.start
        return start if isinstance(start, dict) else start.params

    def which(self, stage: int) -> str:
        """How to call a stage's loss."""
        return "the inner loss" if len(self.problem.stages) == 1 else f"the loss of stage {stage}"
