"""``hypergradbench table``: the tables of results folders, for the terminal, a page, a paper or a spreadsheet."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    import pandas as pd

COMPARED = "hypergradbench sweep benchmarks/sweeps/table8.toml"


@dataclass(frozen=True)
class Table:
    """Print the tables of results folders."""

    folders: Positional[Annotated[tuple[Path, ...], arg(metavar="FOLDER ...")]]
    """Folders that `run`, `sweep`, `peers` or `advise` wrote (their --out)."""
    format: Literal["console", "markdown", "latex", "csv"] = "console"
    """LaTeX: with booktabs. CSV: unrounded, and without --layout every row and column of the results (docs/results.md)."""
    layout: Literal["all", "table2", "table8", "table9"] = "all"
    """All tables that there are; or those of SAMA's paper, its ratios beside ours and their difference."""
    out: Path | None = None
    """File to write to, in place of standard output."""


def table(command: Table) -> int:
    """`table`."""
    from analysis import load
    from analysis.tables import ALL, of_runs

    if not command.folders:
        return _wrong("table: give a results folder, say `hypergradbench table results`")
    try:
        frame = load(command.folders)
    except FileNotFoundError as error:
        return _wrong(str(error))
    for name, reason in frame.attrs["skipped"].items():
        print(f"hypergradbench: {name} was left out: {reason}", file=sys.stderr)
    if frame.empty:
        print(f"hypergradbench: no results in {', '.join(map(str, command.folders))}", file=sys.stderr)
        return 1
    if command.layout != ALL and not any(s.sheets for _, found in of_runs(frame, command.layout) for s in found):
        print(
            f"hypergradbench: nothing there stands in the paper's table; measure what does by `{COMPARED}`",
            file=sys.stderr,
        )
        return 1
    if command.out is None:
        _print(frame, command)
        return 0
    try:
        _save(frame, command, command.out)
    except OSError as error:
        return _wrong(f"--out: nothing can be written to {command.out}: {error.strerror or error}")
    print(f"written: {command.out}", file=sys.stderr)
    return 0


def _print(frame: pd.DataFrame, command: Table) -> None:
    from analysis import document, tables

    if command.format != "console":
        print(document.FORMS[command.format](frame, command.layout), end="")
        return
    tables.show(frame, layout=command.layout)
    if command.layout == tables.ALL and len(command.folders) == 1:
        with contextlib.suppress(OSError):  # a folder of somebody else's can be shown all the same
            tables.save(frame, command.folders[0] / "table.txt")


def _save(frame: pd.DataFrame, command: Table, out: Path) -> None:
    from analysis import document, tables

    if command.format == "console":
        tables.save(frame, out, command.layout)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(document.FORMS[command.format](frame, command.layout), encoding="utf-8")


def _wrong(text: str) -> int:
    print(f"hypergradbench: {text}", file=sys.stderr)
    return 2
