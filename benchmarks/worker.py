"""The child process of a sweep: measures cells one after the other and writes each one's file.

``python -m benchmarks.worker`` reads its orders as JSON from standard input and reports on standard output, one
line a cell begun or finished. It is started by `benchmarks.sweep`; a cell that kills it takes nothing else along.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from estimators import NotApplicableError, per_stage, registry

from . import cells
from .cells import Cell
from .measure import environment
from .path import follow
from .plugins import load
from .point import Effort, Instance, describe, measure


def work(
    todo: Sequence[Cell], out: Path, effort: Effort, jobs: int, say: Callable[[str, Cell, dict[str, Any]], None]
) -> None:
    """Measure ``todo`` in order. Cells of one instance should be neighbours: its run and its truth are shared."""
    from .problems import PROBLEMS

    current: tuple[Any, Instance] | None = None
    where = None
    for cell in todo:
        say("start", cell, {})
        begin = time.perf_counter()
        dtype = getattr(torch, cell.dtype)
        where = where or environment(dtype=dtype)
        try:
            entry = registry[cell.estimator]
            if current is None or current[0] != cell.instance:
                current = None  # the previous instance's memory goes first
                current = (
                    cell.instance,
                    Instance(PROBLEMS[cell.problem].make(seed=cell.seed, dtype=dtype, **cell.settings)),
                )
                gc.collect()
                gc.freeze()  # the collections around every measurement need not walk through torch, nor what it imported
            instance = current[1]
            refused = entry.claim.refuses(instance.problem)
            if refused:
                result = cells.row(cell, "refused", refused, claim=describe(entry.claim))
            else:
                chosen = per_stage(entry.estimator, len(instance.problem.stages))
                if cell.kind == "path":
                    content = follow(instance, chosen, entry.claim, **cell.meta)
                else:
                    content = measure(instance, chosen, entry.claim, effort)
                result = cells.row(cell, "ok", None, **content)
        except NotApplicableError as error:
            result = cells.row(cell, "refused", str(error))
        except Exception as error:  # a row of its own; the rest go on
            result = cells.row(cell, "failed", f"{type(error).__name__}: {error}", traceback=_frames(error))
        seconds = time.perf_counter() - begin
        result |= {"environment": where | {"jobs": jobs, "load_average": _load()}, "seconds": seconds}
        result["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        cells.write(cell.file(out), result)
        say("done", cell, {"status": result["status"], "reason": result["reason"], "seconds": seconds})


def _load() -> list[float] | None:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _frames(error: Exception) -> list[str]:
    """The last frames, as module file and line, without the folders of this machine."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(f.filename).name}:{f.lineno} in {f.name}: {f.line}" for f in frames]


def main() -> None:
    """Read orders, measure, report."""
    orders = json.load(sys.stdin)
    report = _own_stdout()
    torch.set_num_threads(1)
    load(orders["plugins"])

    def say(event: str, cell: Cell, details: dict[str, Any]) -> None:
        print(json.dumps({"event": event, "id": cell.id, **details}), file=report, flush=True)

    todo = [Cell(**config) for config in orders["cells"]]
    work(todo, Path(orders["out"]), Effort(**orders["effort"]), orders["jobs"], say)


def _own_stdout() -> TextIO:
    """Keep standard output for reports: whatever an estimator prints goes to standard error."""
    sys.stdout.flush()
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return report


if __name__ == "__main__":
    main()
