"""Many cells, one result file each: child processes do the measuring, so that one that dies is one row.

A result that is there already is not measured again. The parent never touches a tensor.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cells
from .cells import Cell

Report = Callable[[str, Cell, dict[str, Any]], None]
"""(event, cell, details): "start", or "done" with status, reason and seconds. Called from several threads."""

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Orders:
    """How to run cells.

    Attributes:
        out: folder of the results.
        jobs: child processes at a time. Timings of several at once disturb each other; the rows say how many ran.
        force: measure again what is there already.
        timeout: seconds after which a cell's process is killed.
        plugins: see `benchmarks.plugins`.
        effort: fields of `benchmarks.point.Effort`.
    """

    out: Path
    jobs: int = 1
    force: bool = False
    timeout: float = 600.0
    plugins: tuple[str, ...] = ()
    effort: dict[str, Any] = field(default_factory=dict)


class _Children:
    """The processes at work, so that an interruption ends them all, and none of them is taken for a crash."""

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def add(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._alive.add(process)
            if self.stopped:
                process.kill()

    def discard(self, process: subprocess.Popen[str]) -> None:
        with self._lock:
            self._alive.discard(process)

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for process in self._alive:
                process.kill()


def sweep(todo: Sequence[Cell], orders: Orders, report: Report) -> dict[str, int]:
    """Run what is not there yet: points first, ``jobs`` at a time, then paths, which are not timed, on every core.

    Returns:
        Number of cells by status, with those found finished under "kept".
    """
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def tell(event: str, cell: Cell, details: dict[str, Any]) -> None:
        with lock:
            if event == "done":
                counts[details["status"]] = counts.get(details["status"], 0) + 1
            report(event, cell, details)

    pending = []
    for cell in todo:
        status = None if orders.force else cells.finished(cell, orders.out)
        if status is None:
            cell.file(orders.out).unlink(missing_ok=True)
            pending.append(cell)
        else:
            tell("kept", cell, {"status": status})
            counts["kept"] = counts.get("kept", 0) + 1
    points = [c for c in pending if c.kind == "point"]
    paths = [c for c in pending if c.kind == "path"]
    for group, jobs in ((points, orders.jobs), (paths, max(orders.jobs, os.cpu_count() or 1))):
        batches = split(group, jobs)
        children = _Children()
        with ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
            try:
                for done in [pool.submit(_batch, batch, orders, jobs, tell, children) for batch in batches]:
                    done.result()
            except BaseException:  # Ctrl-C above all
                children.stop()
                raise
    return counts


def split(todo: Sequence[Cell], jobs: int) -> list[list[Cell]]:
    """One batch a job; cells of one instance stay together, so that its run and truth are made once.

    Paths share nothing and are dealt out one by one.
    """
    groups: dict[Any, list[Cell]] = {}
    for i, cell in enumerate(todo):
        groups.setdefault(cell.instance if cell.kind == "point" else i, []).append(cell)
    batches: list[list[Cell]] = [[] for _ in range(jobs)]
    for i, group in enumerate(groups.values()):
        batches[i % jobs].extend(group)
    return [b for b in batches if b]


def _batch(batch: list[Cell], orders: Orders, jobs: int, tell: Report, children: _Children) -> None:
    """Run a batch; whenever its process dies, write the row of the cell that it died on, and go on with the rest."""
    left = list(batch)
    while left and not children.stopped:
        done, culprit, reason = _child(left, orders, jobs, tell, children)
        left = [c for c in left if c.id not in done]
        if left and not children.stopped:  # it ended early
            culprit = culprit or left[0]
            cells.write(culprit.file(orders.out), cells.row(culprit, "failed", reason, environment=None))
            tell("done", culprit, {"status": "failed", "reason": reason, "seconds": None})
            left = [c for c in left if c.id != culprit.id]


def _child(
    todo: list[Cell], orders: Orders, jobs: int, tell: Report, children: _Children
) -> tuple[set[str], Cell | None, str]:
    """Start one process on ``todo`` and follow it to its end.

    Returns:
        (ids of finished cells, the cell it was at when it ended, why it ended).
    """
    by_id = {c.id: c for c in todo}
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    message = {
        "cells": [c.config for c in todo], "out": str(orders.out.resolve()), "plugins": list(orders.plugins),
        "effort": orders.effort, "jobs": jobs,
    }  # fmt: skip
    done: set[str] = set()
    culprit: Cell | None = None
    late = threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env,
            start_new_session=True,  # the terminal's Ctrl-C is for the parent to pass on
        )  # fmt: skip
        children.add(process)
        assert process.stdin is not None
        assert process.stdout is not None

        def expire() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(orders.timeout, expire)
        try:
            clock.start()
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code says why
                process.stdin.write(json.dumps(message))
                process.stdin.close()
            for line in process.stdout:
                event = json.loads(line)
                cell = by_id[event.pop("id")]
                clock.cancel()
                clock = threading.Timer(orders.timeout, expire)
                clock.start()
                if event["event"] == "start":
                    culprit = cell
                else:
                    culprit = None
                    done.add(cell.id)
                tell(event.pop("event"), cell, event)
            code = process.wait()
        finally:
            clock.cancel()
            children.discard(process)
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        errors.seek(0)
        tail = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()]
    return done, culprit, _why(code, late.is_set(), orders.timeout, tail)


def _why(code: int, late: bool, timeout: float, tail: list[str]) -> str:
    if late:
        return f"timeout: killed after {timeout:g} s"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process was killed by {name}{hint}"
    return f"the process ended with exit code {code}: {tail[-1] if tail else 'it said nothing'}"
