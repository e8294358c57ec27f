"""Cells in child processes, so that one that dies is one row: the part of a sweep that is the same wherever it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cells, failures, limits, locks
from .cells import Cell

Report = Callable[[str, Cell, dict[str, Any]], None]
"""(event, cell, details): "start"; "done" with status, reason, failure and seconds; "kept" with status, if a row was there;
"elsewhere" if another sweep is at it. Called from several threads."""

ROOT = Path(__file__).resolve().parent.parent

WORKER = ("-m", "benchmarks.worker")
"""What the child process runs."""

STARTUP = 300.0
"""Seconds that a process has before its first cell, to import torch and the plugins on a busy machine."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """How to run cells.

    Attributes:
        out: folder of the results.
        jobs: child processes at a time. Timings of several at once disturb each other; the rows say how many ran.
        force: measure again what is there already.
        timeout: seconds that a cell has before its process is killed.
        memory: bytes that a process may take, see `benchmarks.limits.memory`; None for no limit.
        threads: of torch, in each process.
        per_process: cells a process; None for as many as there are a job. One is the cleanest; several save torch's import.
        together: "meta" cells of one instance share a process and are timed in turns.
        plugins: see `benchmarks.plugins`.
        effort: fields of `benchmarks.point.Effort`, or of what measures a meta step.
        executor: its name, for the rows.
        shares_machine: whether jobs may be on one machine, for the rows.
        cwd: folder in which the processes start, so that relative paths mean the same everywhere.
        began: time of these orders, in seconds: with ``force`` an older row is one of before.
    """

    out: Path
    jobs: int = 1
    force: bool = False
    timeout: float = 600.0
    memory: int | None = None
    threads: int = 1
    per_process: int | None = None
    together: bool = False
    plugins: tuple[str, ...] = ()
    effort: dict[str, Any] = field(default_factory=dict)
    executor: str = "local"
    shares_machine: bool = True
    cwd: str = field(default_factory=os.getcwd)
    began: float = field(default_factory=time.time)

    @property
    def marks(self) -> dict[str, Any]:
        """What every row's ``environment`` says of these orders."""
        return {"jobs": self.jobs, "disturbed": self.jobs > 1 and self.shares_machine, "executor": self.executor}


class Children:
    """The processes at work, so that an interruption ends them all, and none of them is taken for a crash."""

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def add(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._alive.add(process)
            if self.stopped:
                _kill(process)

    def discard(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._alive.discard(process)

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for process in self._alive:
                _kill(process)


def run_batch(batch: Sequence[Cell], orders: Orders, tell: Report, children: Children | None = None) -> None:
    """Claim the cells of a batch and measure them in a child process.

    Whenever the process dies, the row of the cell that it died on is written here, and another process goes on with the rest.
    One that dies after it finished a cell and before it began the next dies on none of them.
    """
    children = children or Children()
    left = [cell for cell in batch if _claimed(cell, orders, tell)]
    try:
        while left and not children.stopped:
            done, culprit, death = _child(left, orders, tell, children)
            left = [c for c in left if c.id not in done]
            if left and not children.stopped and (culprit is not None or not done):  # it ended early
                begun = culprit is not None
                culprit = culprit or left[0]
                left = [c for c in left if c.id != culprit.id]
                status = cells.finished(culprit, orders.out) if begun else None
                if status is None:  # else it died between writing the row and saying so
                    write_failure(culprit, orders, death)
                    status = "failed"
                tell("done", culprit, death.verdict._asdict() | {"status": status, "seconds": death.seconds})
                locks.release(orders.out, culprit.id)
    finally:
        for cell in left:
            locks.release(orders.out, cell.id)


@dataclass(frozen=True)
class Death:
    """How a process ended, and what is known of the cell that it was at.

    Attributes:
        verdict: why.
        environment: what the cell's row says of it; None if the process did not live to say it.
        seconds: that went into the cell.
        peak_rss: bytes, of the process.
    """

    verdict: failures.Verdict
    environment: dict[str, Any] | None = None
    seconds: float | None = None
    peak_rss: int | None = None


def write_failure(cell: Cell, orders: Orders, death: Death) -> None:
    """The row of a cell whose process did not live to write it."""
    row = cells.row(
        cell, "failed", **failures.content(death.verdict), environment=death.environment or dict(orders.marks),
        process={"peak_rss_bytes": death.peak_rss, "cells_before": None, "memory_limit": orders.memory},
        seconds=death.seconds, finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )  # fmt: skip
    cells.write(cell.file(orders.out), row)


def _claimed(cell: Cell, orders: Orders, tell: Report) -> bool:
    """Whether ``cell`` is ours to measure now."""
    if not locks.claim(orders.out, cell.id):
        tell("elsewhere", cell, {})
        return False
    status = None if orders.force else cells.finished(cell, orders.out)
    if status is not None:  # another sweep was quicker
        locks.release(orders.out, cell.id)
        tell("kept", cell, {"status": status})
        return False
    return True


class _Watch:
    """Kills a process when the cell that it is at has had its time, and what it started when it ends.

    Cells that take turns have each their own time.
    """

    def __init__(self, process: subprocess.Popen[str], limit: float) -> None:
        self._process, self._limit = process, limit
        self._spent: dict[str | None, float] = {}
        self._at: str | None = None
        self._since = time.monotonic()
        self._deadline = self._since + max(limit, STARTUP)
        self._ended = threading.Event()
        self.late = False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def turn(self, cell: str | None) -> None:
        """From now on it is at ``cell``."""
        now = time.monotonic()
        self._spent[self._at] = self._spent.get(self._at, 0.0) + now - self._since
        self._at, self._since = cell, now
        self._deadline = now + (
            self._limit - self._spent.get(cell, 0.0) if cell is not None else max(self._limit, STARTUP)
        )

    def spent(self, cell: str) -> float:
        """Seconds that went into ``cell`` until now."""
        now = time.monotonic() - self._since if cell == self._at else 0.0
        return self._spent.get(cell, 0.0) + now

    def end(self) -> None:
        """It needs no watching any more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(min(0.1, max(0.001, self._deadline - time.monotonic()))):
            if _has_ended(self._process):
                _kill(self._process)  # what it left behind may hold its end of the pipe
                return
            if time.monotonic() > self._deadline:
                self.late = True
                _kill(self._process)
                return


def _child(
    todo: Sequence[Cell], orders: Orders, tell: Report, children: Children
) -> tuple[set[str], Cell | None, Death]:
    """Start one process on ``todo`` and follow it to its end.

    Returns:
        (ids of finished cells, the cell it was at when it ended, how it ended).
    """
    by_id = {c.id: c for c in todo}
    env = os.environ | {"OMP_NUM_THREADS": str(orders.threads), "MKL_NUM_THREADS": str(orders.threads)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), orders.cwd, *filter(None, [os.environ.get("PYTHONPATH")])])
    message = {
        "cells": [c.config for c in todo], "out": str(orders.out.resolve()), "plugins": list(orders.plugins),
        "effort": orders.effort, "memory": orders.memory, "together": orders.together, "threads": orders.threads,
        "marks": orders.marks, "parent": os.getpid(),
    }  # fmt: skip
    done: set[str] = set()
    culprit: Cell | None = None
    where: dict[str, Any] | None = None
    before = 0  # bytes on its standard error that other cells put there
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=orders.cwd,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent to pass on
        )  # fmt: skip
        children.add(process)
        watch = _Watch(process, orders.timeout)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code says why
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()  # and stays open: see `benchmarks.lifeline`
            for line in process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:  # it died in the middle of a line
                    continue
                name, cell = event.pop("event"), by_id[event.pop("id")]
                if name == "done":
                    culprit = None
                    done.add(cell.id)
                    locks.release(orders.out, cell.id)
                else:
                    culprit = cell
                where = event.pop("environment", where)
                before = event.pop("said", before)
                watch.turn(culprit.id if culprit is not None else None)
                if name != "at":
                    tell(name, cell, event)
        except BaseException:
            _kill(process)
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code, rss = _reap(process, children, watch)
            process.stdout.close()
        errors.seek(max(before, errors.seek(0, os.SEEK_END) - 4000))
        said = [line.strip() for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    verdict = failures.of_exit(code, late=watch.late, limit=orders.timeout, said=said)
    return done, culprit, Death(verdict, where, watch.spent(culprit.id) if culprit is not None else None, rss)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill it and whatever it started: it leads a session of its own."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether it runs no more; it is not waited for, so that its number stays its own."""
    if not hasattr(os, "waitid"):
        return False
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _reap(process: subprocess.Popen[str], children: Children, watch: _Watch) -> tuple[int, int | None]:
    """Wait for its end, watched until then: once it is reaped its number may be somebody else's.

    Returns:
        (exit code, peak RSS in bytes of the largest process among it and those it waited for; None if the system does not say).
    """
    if not hasattr(os, "waitid"):
        code = process.wait()
        watch.end()
        children.discard(process)
        return code, None
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    watch.end()
    _kill(process)  # what it may have left behind
    children.discard(process)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, limits.rss_of(usage.ru_maxrss)
