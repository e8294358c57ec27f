"""``hypergradbench sweep --predict``: what the cells of a sweep would need, without measuring any."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..cells import Cell
    from ..measure.predict import Prediction

PARTS = ("parameters", "slots", "recorded", "graph", "buffers")
"""Of the split, those that are shown; the others are small."""

ALONE = 4
"""Cells from which on it is worth starting processes, each of which imports torch."""


def show_predictions(todo: Sequence[Cell], limit: int | None) -> int:
    """Print a line a cell.

    Args:
        todo: the cells.
        limit: bytes that a cell may take; None: what this machine has.

    Returns:
        Exit status: 1 if a prediction failed.
    """
    from ..listing import plain_console

    begin, found = time.perf_counter(), []
    for i, (cell, prediction) in enumerate(zip(todo, _predictions(todo), strict=True), 1):
        print(f"[{i}/{len(todo)}] {prediction.seconds:.0f} s {cell.label}", file=sys.stderr, flush=True)
        found.append((cell, prediction))
    console = plain_console()
    console.print(_table(found, limit))
    for note in dict.fromkeys(p.note for _, p in found if p.note):
        console.print(f"Note: {escape(note)}.")
    for cell, p in found:
        if p.reason is not None:
            console.print(f"{escape(cell.label)}: {p.status}: {escape(p.reason)}")
    verdicts = [p.fits(_limit(cell, limit)) for cell, p in found]
    console.print(
        f"{len(found)} cells in {time.perf_counter() - begin:.0f} s: {verdicts.count(True)} fit, {verdicts.count(False)} do not, "
        f"{verdicts.count(None)} unknown. Live tensor bytes of one meta step, its parts at the moment of the peak; a kernel's scratch and torch itself come on top."
    )
    return int(any(p.status == "failed" for _, p in found))


def _predictions(todo: Sequence[Cell]) -> Iterator[Prediction]:
    """In order; by as many processes as there are cores, since it is nothing but Python."""
    from ..measure.predict import predict
    from ..plugins import LOADED, load

    if len(todo) < ALONE:
        yield from map(predict, todo)
        return
    workers = min(os.cpu_count() or 1, len(todo))
    context = multiprocessing.get_context("spawn")  # torch has its threads by now: a fork could hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=load, initargs=(tuple(LOADED),)) as pool:
        yield from pool.map(predict, todo)


def _table(found: Sequence[tuple[Cell, Prediction]], limit: int | None) -> Table:
    table = Table(
        title="predicted: peak of a meta step, what it is made of, and all that measuring it holds",
        title_justify="left",
    )
    table.add_column("cell", overflow="fold", min_width=24)
    for column in ("weights", "peak", "x plain", *PARTS, "needs", "limit", "fits"):
        table.add_column(column, justify="right")
    for cell, p in found:
        of = _limit(cell, limit)
        if p.peak_bytes is None or not p.plain_peak_bytes or p.needed_bytes is None:
            table.add_row(escape(cell.label), *["-"] * (5 + len(PARTS)), p.status)
            continue
        bound = "<= " if p.status == "at most" else ""
        fits = {True: "yes", False: "[red]NO[/]", None: "perhaps" if p.needed_bytes > of else "unknown"}[p.fits(of)]
        table.add_row(
            escape(cell.label), _number(p.parameters or 0), bound + size(p.peak_bytes), f"{p.peak_bytes / p.plain_peak_bytes:.2f}",
            *(size(p.split[part]) for part in PARTS), bound + size(p.needed_bytes), size(of), fits,  # type: ignore[index]
        )  # fmt: skip
    return table


def size(nbytes: int) -> str:
    """Three figures and a unit."""
    number, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:.3g} {units[0]}" if nbytes else "0"


def _number(n: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return str(n)


def _limit(cell: Cell, limit: int | None) -> int:
    return machine_memory(cell.device) if limit is None else limit


def machine_memory(device: str) -> int:
    """Bytes of the device; where there is none of the kind, and for a CPU, those of the machine."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(torch.device(device)).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
