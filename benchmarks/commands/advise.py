"""``hypergradbench advise``: which estimator for the user's own problem, on evidence."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagConversionOff, FlagCreatePairsOff, Positional, arg

if TYPE_CHECKING:
    from ..advise.reference import Kind
    from ..advise.survey import Survey
    from ..cells import Cell
    from ..grid import Grid
    from ..own_problem import Found

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


def seconds(text: str) -> float:
    """From "60s", "500ms", "5min".

    Raises:
        ValueError: it is no such thing, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no time: write a number and one of {', '.join(UNITS)}")
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
    memory = None if command.memory is None else size(command.memory, least=1)
    return {
        "memory": memory, "time_ratio": ratio, "time_seconds": absolute, "tolerance": command.tolerance,
        "error": command.error,
    }  # fmt: skip


def advise(command: Advise, words: Sequence[str]) -> int:
    """`advise`.

    Returns:
        Exit status: 0; 1 if nothing fits, or nothing could be measured; 2 for a wrong command line or problem.
    """
    try:
        session = _Session(command, words)
    except (ValueError, ImportError) as error:
        print(f"hypergradbench: {error}", file=sys.stderr)
        return 2
    session.measure()
    return session.tell()


class _Session:
    """One call of the command: what was asked for, and how far it is.

    Raises:
        ValueError, ImportError: a flag, the name or the problem itself is wrong.
    """

    def __init__(self, command: Advise, words: Sequence[str]) -> None:
        self.begin = time.monotonic()
        from estimators import registry

        from .. import plan
        from ..cells import unwritable
        from ..devices import absent, misnamed
        from ..own_problem import find, settings
        from ..plugins import load

        self.command, self.words = command, words
        if wrong := misnamed(command.device) or absent(command.device):
            raise ValueError(f"--device: {wrong}")
        if command.points < 1 or command.threads < 1 or not 0 <= command.tolerance < 2:
            raise ValueError("--points and --threads must be at least 1, and --tolerance from 0 to below 2")
        self.limits, self.budget = limits_of(command), seconds(command.budget)
        load(command.plugins)
        self.names = plan.known(command.estimators, registry, "estimator")
        self.found: Found = find(command.problem)
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

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.monotonic() - self.begin)

    def _look(self) -> Survey:
        """What the problem is; `peaks` are then known as far as time allows."""
        from ..advise.survey import Survey, look
        from ..plugins import LOADED
        from .prediction import machine_memory

        c, machine = self.command, machine_memory(self.command.device)
        context = multiprocessing.get_context("spawn")  # its tensors go with it
        told, to_tell = context.Pipe(duplex=False)
        options = {
            "dtype": c.dtype, "device": c.device, "names": self.names, "limit": self.limits["memory"] or machine,
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
        from ..cells import Cell

        c = self.command
        return Cell(
            estimator=estimator, problem=c.problem, settings=self.settings, seed=seed, dtype=self.survey.dtype,
            kind="advice", meta=meta, device=c.device, fields=fields, **built,
        )  # fmt: skip

    def reference(self, kind: Kind, seed: int) -> Cell:
        from ..advise.reference import NAME, estimator_of
        from ..cells import built_as, code_version

        made = estimator_of(kind, self.survey.steps)
        built = {"built": built_as(made), "code": code_version(made, self.found.function, "advice")}
        return self.cell(NAME, seed, {}, built, of=kind)

    def measure(self) -> None:
        """References and candidates at the first point, then the errors of those that succeeded at the others."""
        from ..advise.candidates import candidates
        from ..cells import finished
        from ..plan import made

        kind, first = self._choose()
        todo = []
        chosen = candidates(self.names, self.survey.steps)
        for i, (name, fields) in enumerate(chosen):
            built = made(name, self.command.problem, "advice", fields)
            cell = self.cell(name, 0, fields, built, reference=first, costs=True, bound=self._bounds(first))
            if i in self.unpredicted:
                self.notes.append(f"the memory of {name} could not be predicted: {self.unpredicted[i]}")
            if not self._discarded(cell, self.peaks.get(i)):
                todo.append(cell)
        self._run(todo, share=0.3, keep=LATER_SHARE * self.budget if kind and self.command.points > 1 else 0.0)
        fine = [c for c in todo if finished(c, self.out) == "ok"]
        missing = [c.label.partition(" on ")[0] for c in todo if finished(c, self.out) is None]
        if missing:
            self.notes.append(
                f"not measured, --budget {self.command.budget} was spent: {', '.join(missing)}; the same command again goes on"
            )
        if kind is None:
            return
        for seed in range(1, self.command.points):
            there = self.reference(kind, seed)
            others = [
                self.cell(
                    c.estimator,
                    seed,
                    c.fields,
                    {"built": c.built, "code": c.code},
                    reference=there.id,
                    costs=False,
                    bound=False,
                )
                for c in fine
            ]
            self._run([there, *others], share=REFERENCE_SHARE)

    def _bounds(self, reference: str | None) -> bool:
        """Whether errors are bounded, too: where there is no reference, and where that is cheap."""
        gradient = self.survey.plain_seconds / max(self.survey.steps, 1)
        return reference is None or BOUND_COST * gradient < BOUND_SHARE * self.budget

    def _choose(self) -> tuple[Kind | None, str | None]:
        """(kind, id) of the best reference that can be had at the first point."""
        from ..advise.reference import order
        from ..cells import finished
        from .prediction import machine_memory, size

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
        import json

        try:
            return str(json.loads(cell.file(self.out).read_text())["reason"])
        except OSError:
            return "the budget was spent"

    def _discarded(self, cell: Cell, needed: int | None) -> bool:
        """Whether what was predicted does not fit; its row then says so."""
        from .. import cells
        from .prediction import machine_memory, size

        limit = self.limits["memory"] or machine_memory(cell.device)
        if (
            needed is None or needed <= limit or cells.finished(cell, self.out) == "ok"
        ):  # measured is better than predicted
            return False
        reason = f"does not fit: {size(needed)} of {size(limit)} (predicted)"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.cells.append(cell)
        cells.write(
            cell.file(self.out),
            cells.row(cell, "failed", reason, "oom", memory={"peak_bytes": needed, "predicted": True}, finished=now),
        )
        return True

    def _run(self, todo: Sequence[Cell], share: float, keep: float = 0.0) -> None:
        """Measure in a process of their own until ``keep`` seconds of the budget are left; ``share``: the most that one cell may
        take of what there is."""
        from .. import isolated
        from ..cells import finished, forget_failed
        from .prediction import machine_memory

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
            effort={"budget": min(max(left / (10 * len(todo)), 0.05), LONGEST)}, force=self.command.force,
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
        from rich.console import Console

        from analysis import advice, figures, results

        from ..listing import plain_console
        from ..saved import save

        save(self.out, self._grid(), self.cells, command=self.words, shard=None, jobs=1)
        frame = results.load(self.out, ids={c.id for c in self.cells})
        if frame.empty:
            print("hypergradbench: nothing could be measured within --budget", file=sys.stderr)
            return 1
        frame.attrs["limits"] = self.limits
        found = advice.advise(frame, self.limits)
        head = (
            f"{self.command.problem}: {self.survey.steps} steps, {self.survey.params:,} parameters, {self.survey.hparams:,} "
            f"hyperparameters, {self.survey.dtype}"
        )
        with (self.out / "advice.txt").open("w") as file:
            for console in (plain_console(), Console(file=file, width=160, highlight=False)):
                advice.show(found, console, head=head, notes=self.notes)
        if self.command.figures:
            for path in figures.draw_all(frame, self.out / "figures"):
                print(f"figure: {path}")
        print(f"{time.monotonic() - self.begin:.0f} s. Everything is in {self.out.resolve()}")
        return 0 if found.best is not None else 1

    def _grid(self) -> Grid:
        from ..grid import Grid

        c = self.command
        return Grid(
            name="advise", about=f"which estimator for {c.problem}", kind="advice", estimators=self.names, problems=(c.problem,),
            seeds=tuple(range(c.points)), dtypes=(self.survey.dtype,), devices=(c.device,), threads=c.threads,
            settings={k: [v] for k, v in self.settings.items()}, plugins=c.plugins, seconds=self.budget,
            memory=self.limits["memory"], meta={"limits": [self.limits]},
        )  # fmt: skip


def _say(event: str, cell: Cell, details: dict[str, Any]) -> None:
    if event == "done":
        reason = f": {details['reason']}" if details["reason"] else ""
        took = "" if details["seconds"] is None else f" {details['seconds']:.2f} s"
        print(f"{details['status']}{took} {cell.label}{reason}", file=sys.stderr, flush=True)
