"""One call of `hypergradbench advise`: what was asked for, how far it is, and in which order it is measured."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from analysis import advice, figures, results
from estimators import registry

from .. import cells, isolated, plan
from ..cells import Cell, built_as, code_version, finished, forget_failed, unwritable
from ..commands.prediction import machine_memory, size
from ..devices import absent, misnamed
from ..grid import Grid
from ..listing import plain_console
from ..own_problem import find, settings
from ..plan import made
from ..plugins import LOADED, load
from ..saved import save
from .candidates import candidates, spare_of
from .reference import NAME, Kind, estimator_of, order
from .survey import Survey, look

if TYPE_CHECKING:
    from ..commands.advise import Advise

REFERENCE_SHARE = 0.4
"""Of the budget, at most this part for a reference."""

PREDICTION_SHARE = 0.25
"""Of the budget, at most this part for predictions, the most doubtful ones first."""

LATER_SHARE = 0.25
"""Of the budget, what is kept for the errors at further points."""

UNROLL_COST = 12.0
"""A float64 unroll with checkpoints, in runs in float32: whether it is affordable."""

LONGEST = 2.0
"""Seconds that the clock has for one candidate, at most."""

BOUND_COST = 1000.0
"""What bounds every error, in training gradients."""

BOUND_SHARE = 0.05
"""Of the budget: where it takes no more than that, errors are bounded beside being measured."""


class Session:
    """One call of the command: what was asked for, and how far it is.

    Raises:
        ValueError, ImportError: a flag, the name or the problem itself is wrong.
    """

    def __init__(self, command: Advise, words: Sequence[str], *, limits: dict[str, Any], budget: float) -> None:
        self.begin = time.monotonic()
        self.command, self.words, self.limits, self.budget = command, words, limits, budget
        if wrong := misnamed(command.device) or absent(command.device):
            raise ValueError(f"--device: {wrong}")
        if command.points < 1 or command.threads < 1 or not 0 <= command.tolerance < 2:
            raise ValueError("--points and --threads must be at least 1, and --tolerance from 0 to below 2")
        load(command.plugins)
        self.names = plan.known(command.estimators, registry, "estimator")
        self.found = find(command.problem)
        self.settings = settings(self.found, command.settings)
        self.out = command.out or Path("results") / "advise"
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file: name a folder")
        if wrong := unwritable(self.out):
            raise ValueError(f"--out: {wrong}")
        self.notes: list[str] = []
        self.cells: list[Cell] = []
        self.peaks: dict[Any, int] = {}
        self.unpredicted: dict[Any, str] = {}
        self.survey: Survey = self._look()
        if self.survey.error is not None:
            raise ValueError(f"{command.problem}: {self.survey.error}")
        if self.survey.hparams == 1 and command.error == "direction":
            self.notes.append("one hyperparameter has no direction but its sign: --error relative counts the length")

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.monotonic() - self.begin)

    def _look(self) -> Survey:
        """What the problem is; `peaks` are then known as far as time allows."""
        c, machine = self.command, machine_memory(self.command.device)
        context = multiprocessing.get_context("spawn")  # its tensors go with it
        told, to_tell = context.Pipe(duplex=False)
        options = {
            "dtype": c.dtype, "device": c.device, "names": self.names, "memory": self.limits["memory"],
            "machine": machine,
        }  # fmt: skip
        child = context.Process(
            target=look, args=(to_tell, c.problem, self.settings, tuple(LOADED)), kwargs=options, daemon=True
        )
        child.start()
        to_tell.close()
        survey = Survey(error="the process that was to make it and run it once died")
        with contextlib.suppress(EOFError):  # it died, perhaps for want of memory
            survey = told.recv()
            until = time.monotonic() + PREDICTION_SHARE * self.left
            while True:
                if not told.poll(max(until - time.monotonic(), 0)):
                    self.notes.append("not all memory could be predicted in time: the rest is measured without")
                    break
                if (found := told.recv()) is None:
                    break
                key, peak, why = found
                if peak is not None:
                    self.peaks[key] = peak
                else:
                    self.unpredicted[key] = why
        child.kill()
        child.join()
        return survey

    # What is measured.

    def cell(self, estimator: str, seed: int, fields: dict[str, Any], built: dict[str, Any], **meta: Any) -> Cell:
        c = self.command
        return Cell(
            estimator=estimator, problem=c.problem, settings=self.settings, seed=seed, dtype=self.survey.dtype,
            kind="advice", meta=meta, device=c.device, fields=fields, **built,
        )  # fmt: skip

    def reference(self, kind: Kind, seed: int) -> Cell:
        made = estimator_of(kind, self.survey.steps)
        built = {"built": built_as(made), "code": code_version(made, self.found.function, "advice")}
        return self.cell(NAME, seed, {}, built, of=kind)

    def measure(self) -> None:
        """References and candidates at the first point, then the errors of those that succeeded at the others."""
        kind, first = self._choose()
        todo = []
        spare = spare_of(self.limits["memory"], self.survey.plain_bytes)
        chosen = candidates(self.names, self.survey.steps, spare)
        for i, (name, fields) in enumerate(chosen):
            built = made(name, self.command.problem, "advice", fields)
            cell = self.cell(name, 0, fields, built, reference=first, costs=True)
            if i in self.unpredicted:
                self.notes.append(f"the memory of {name} could not be predicted: {self.unpredicted[i]}")
            if not self._discarded(cell, self.peaks.get(i)):
                todo.append(cell)
        later = LATER_SHARE * self.budget if kind and self.command.points > 1 else 0.0
        self._run(todo, share=0.3, keep=later, bounds=self._bounds(first))
        fine = [c for c in todo if finished(c, self.out) == "ok"]
        missing = [c for c in todo if finished(c, self.out) is None]
        if missing:
            self.notes.append(
                f"not measured, --budget {self.command.budget} was spent: {_names(missing)}; the same command again goes on"
            )
        if kind is None:
            return
        for seed in range(1, self.command.points):
            there = self.reference(kind, seed)
            others = [
                self.cell(
                    c.estimator, seed, c.fields, {"built": c.built, "code": c.code}, reference=there.id, costs=False
                )
                for c in fine
            ]
            self._run([there], share=REFERENCE_SHARE)
            if finished(there, self.out) != "ok":
                self.notes.append(f"no errors at point {seed + 1}, no reference by {kind}: {self._reason(there)}")
                continue
            self._run(others, share=REFERENCE_SHARE)
            late = [c for c in others if finished(c, self.out) is None or self._failure(c) == "timeout"]
            forget_failed(late, self.out)  # the budget's fault, not that of a candidate that did the first point
            if late:
                self.notes.append(f"no time was left at point {seed + 1} for: {_names(late)}")

    def _bounds(self, reference: str | None) -> bool:
        """Whether errors are bounded, too: where there is no reference, and where that is cheap."""
        gradient = self.survey.plain_seconds / max(self.survey.steps, 1)
        return reference is None or BOUND_COST * gradient < BOUND_SHARE * self.budget

    def _choose(self) -> tuple[Kind | None, str | None]:
        """(kind, id) of the best reference that can be had at the first point."""
        machine = machine_memory(self.command.device)
        for kind in order(self.survey.closed_form, self.command.reference):
            needed = self.peaks.get(kind, 0)
            expected = UNROLL_COST * self.survey.plain_seconds if kind == "unroll" else 0.0
            if needed > machine:
                self.notes.append(f"no reference by {kind}: {size(needed)} of {size(machine)} (predicted)")
                continue
            if expected > REFERENCE_SHARE * self.left and self.command.reference is None:
                self.notes.append(f"no reference by {kind}: about {expected:.0f} s of a budget of {self.budget:.0f} s")
                continue
            cell = self.reference(kind, 0)
            self._run([cell], share=REFERENCE_SHARE)
            if finished(cell, self.out) == "ok":
                return kind, cell.id
            self.notes.append(f"no reference by {kind}: {self._reason(cell)}")
        return None, None

    def _reason(self, cell: Cell) -> str:
        return "the budget was spent" if finished(cell, self.out) is None else str(self._row(cell)["reason"])

    def _failure(self, cell: Cell) -> Any:
        return self._row(cell)["failure"]

    def _row(self, cell: Cell) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(cell.file(self.out).read_text())
        return row

    def _discarded(self, cell: Cell, needed: int | None) -> bool:
        """Whether what was predicted does not fit; its row then says so."""
        limit = self.limits["memory"] or machine_memory(cell.device)
        if needed is None or needed <= limit or finished(cell, self.out) == "ok":  # measured is better than predicted
            return False
        reason = f"does not fit: {size(needed)} of {size(limit)} (predicted)"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.cells.append(cell)
        cells.write(
            cell.file(self.out),
            cells.row(cell, "failed", reason, "oom", memory={"peak_bytes": needed, "predicted": True}, finished=now),
        )
        return True

    def _run(self, todo: Sequence[Cell], share: float, keep: float = 0.0, bounds: bool = False) -> None:
        """Measure in a process of their own until ``keep`` seconds of the budget are left; ``share``: the most that one cell may
        take of what there is; ``bounds``: of the errors, too."""
        self.cells += todo
        forget_failed(todo, self.out, ("timeout", "oom"))  # limits may be other ones now
        todo = [c for c in todo if self.command.force or finished(c, self.out) is None]
        left = self.left - keep
        if not todo or left <= 0:
            return
        children = isolated.Children()
        orders = isolated.Orders(
            out=self.out, timeout=max(share * left, 1.0), threads=self.command.threads, plugins=self.command.plugins,
            memory=machine_memory(self.command.device) if sys.platform.startswith("linux") else None,
            effort={"budget": min(max(left / (10 * len(todo)), 0.05), LONGEST), "bounds": bounds}, force=self.command.force,
        )  # fmt: skip
        alarm = threading.Timer(left, children.stop)
        alarm.start()
        try:
            isolated.run_batch(todo, orders, _say, children)
        finally:
            alarm.cancel()

    # What is told.

    def tell(self) -> int:
        """Table, figure and recommendation."""
        save(self.out, self._grid(), self.cells, command=self.words, shard=None, jobs=1)
        frame = results.load(self.out, ids={c.id for c in self.cells})
        if frame["name"].isin(self.names).sum() == 0:
            print("hypergradbench: nothing could be measured within --budget", file=sys.stderr)
            return 1
        frame.attrs["limits"] = self.limits
        found = advice.advise(frame, self.limits)
        head = (
            f"{self.command.problem}: {self.survey.steps} steps, {self.survey.params:,} parameters, {self.survey.hparams:,} "
            f"hyperparameters, {self.survey.dtype}"
        )
        with (self.out / "advice.txt").open("w") as file:
            for console in (plain_console(), Console(file=file, width=180, highlight=False)):
                advice.show(found, console, head=head, notes=self.notes)
        if self.command.figures:
            for path in figures.draw_all(frame, self.out / "figures"):
                print(f"figure: {path}")
        print(f"{time.monotonic() - self.begin:.0f} s. Everything is in {self.out.resolve()}")
        return 0 if found.best is not None else 1

    def _grid(self) -> Grid:
        c = self.command
        return Grid(
            name="advise", about=f"which estimator for {c.problem}", kind="advice", estimators=self.names, problems=(c.problem,),
            seeds=tuple(range(c.points)), dtypes=(self.survey.dtype,), devices=(c.device,), threads=c.threads,
            settings={k: [v] for k, v in self.settings.items()}, plugins=c.plugins, seconds=self.budget,
            memory=self.limits["memory"], meta={"limits": [self.limits]},
        )  # fmt: skip


def _names(cells: Sequence[Cell]) -> str:
    return ", ".join(c.label.partition(" on ")[0] for c in cells)


def _say(event: str, cell: Cell, details: dict[str, Any]) -> None:
    if event == "done":
        reason = f": {details['reason']}" if details["reason"] else ""
        took = "" if details["seconds"] is None else f" {details['seconds']:.2f} s"
        print(f"{details['status']}{took} {cell.label}{reason}", file=sys.stderr, flush=True)
