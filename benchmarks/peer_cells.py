"""The rows of "peers" cells: libraries at the same task, one after the other, then timed in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from estimators import Hypergradient, NonFiniteError, NotApplicableError, Tree, tree

from .accuracy import compare
from .cells import Cell
from .measure import Timing, interleaved, peak_bytes
from .meta_cells import Desk
from .peers import LIBRARIES, Case, Library, Variant
from .peers.base import Work
from .peers.case import Task, case_of, in_float64
from .peers.reference import reference
from .point import told
from .throughput import Effort

REFERENCE = "plain autograd in float64"


def named(library: str, variant: str) -> str:
    """What a cell calls a contestant."""
    return f"{library}: {variant}"


def contestant(cell: Cell) -> tuple[Library, str, Variant]:
    """(library, variant's name, how) of a cell.

    Raises:
        NotApplicableError: the library is not there.
    """
    name, _, variant = cell.estimator.partition(": ")
    library = LIBRARIES[name]
    if not library.present:
        raise NotApplicableError(f"skipped: not installed ({library.install})")
    return library, variant, library.variants[cell.meta["method"], variant]


def measure(group: Sequence[Cell], desk: Desk, effort: Mapping[str, Any]) -> None:
    """Measure peers cells of one instance. Each takes part on its own; those that did are then timed in turn.

    Args:
        group: cells that agree in `Cell.instance`.
        desk: gets a row of each.
        effort: fields of `benchmarks.throughput.Effort`.
    """
    arena: Arena | None = None
    entered: dict[str, Cell] = {}
    for cell in group:
        desk.start(cell)
        with desk.attempt(cell):
            contestant(cell)
            arena = arena or Arena(cell, Effort(**effort))
            arena.enter(cell)
            entered[cell.id] = cell
    if arena is None or not entered:
        return
    try:
        with desk.limited(group[0]):
            arena.time(lambda name: desk.at(entered[name]))
    except Exception as error:  # the first one's: it is the unit of the others
        for cell in entered.values():
            desk.fail(cell, error)
        return
    for cell in entered.values():
        desk.at(cell)
        with desk.attempt(cell):
            desk.done(cell, arena.content(cell))


class Arena:
    """One task, its reference, and whoever takes part.

    Args:
        cell: any of the instance.
        effort: for the clock.

    Raises:
        Exception: whatever making the case and its reference raise.
    """

    def __init__(self, cell: Cell, effort: Effort) -> None:
        meta = dict(cell.meta)
        self.task = Task(
            problem=cell.problem, settings=cell.settings, seed=cell.seed, dtype=getattr(torch, cell.dtype),
            device=cell.device, **meta,
        )  # fmt: skip
        self.effort = effort
        self.case: Case = case_of(self.task)
        self.truth = reference(in_float64(self.case, self.task))
        self._before = _values(self.case)
        self._works: dict[str, Work] = {}
        self._found: dict[str, dict[str, Any]] = {}
        self._timings: dict[str, Timing | Exception] = {}

    def enter(self, cell: Cell) -> None:
        """Set up, take the answer, and count bytes. Then it waits for `time`.

        Raises:
            NonFiniteError: the answer is NaN or infinite.
            RuntimeError: the contestant changed the task.
            Exception: whatever it raises.
        """
        _, _, how = contestant(cell)
        work = how.make(self.case)
        found = self._told(work())
        peak = how.peak(self.case) if how.peak is not None else peak_bytes(work)
        if not all(torch.equal(a, b) for a, b in zip(self._before, _values(self.case), strict=True)):
            raise RuntimeError("it changed the weights or the hyperparameters that it was given")
        self._works[cell.id] = work
        self._found[cell.id] = {**found, "peak_bytes": peak}

    def _told(self, answer: Hypergradient | Tree | None) -> dict[str, Any]:
        pullbacks = told(answer) if isinstance(answer, Hypergradient) else []
        found = answer.hparams if isinstance(answer, Hypergradient) else answer
        if found is None:
            return {"accuracy": None, "pullbacks": pullbacks}
        if not tree.all_finite(found):
            raise NonFiniteError("the answer is NaN or infinite")
        return {"accuracy": compare(found, self.truth), "pullbacks": pullbacks}

    def time(self, at: Any) -> None:
        """Time all that entered, in turn.

        Raises:
            Exception: whatever the first one raises.
        """
        e, shares = self.effort, len(self._works)
        self._timings = interleaved(
            self._works, next(iter(self._works)), width=e.width, budget=shares * e.budget, least=e.least, most=e.most,
            device=self.task.device, at=at, patience=shares * e.patience * e.budget,
        )  # fmt: skip

    def content(self, cell: Cell) -> dict[str, Any]:
        """What the row says.

        Raises:
            Exception: what it raised while it was timed.
        """
        library, variant, how = contestant(cell)
        timing, found, case = self._timings[cell.id], self._found[cell.id], self.case
        if isinstance(timing, Exception):
            raise timing
        return {
            "peers": {
                "library": library.name, "version": library.version, "variant": variant, "note": how.note,
                "method": case.method, "steps": case.steps, "settle": self.task.settle, "lr": case.lr,
            },
            "truth": REFERENCE,
            "accuracy": found["accuracy"],
            "pullbacks": found["pullbacks"],
            "size": {"params": _count(case.params), "hparams": _count(case.hparams)},
            "cost": {
                "seconds": timing.seconds, "seconds_low": timing.low, "seconds_high": timing.high, "samples": timing.samples,
                "to_first": timing.ratio, "reached": timing.reached, "clock": timing.clock, "peak_bytes": found["peak_bytes"],
            },
            "timing": asdict(timing),
        }  # fmt: skip


def _values(case: Case) -> list[Tensor]:
    return [x.clone() for x in [*case.params.values(), *case.hparams.values()]]


def _count(a: Tree) -> int:
    return sum(x.numel() for x in a.values())
