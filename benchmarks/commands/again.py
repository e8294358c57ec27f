"""``hypergradbench figures``, and what `run` and its like show at their end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Figures:
    """Draw the figures of a results folder again."""

    folder: Positional[Path]
    """Folder that `run` wrote (its --out)."""

    width: Literal["page", "column"] = "page"
    """The whole width of a paper, or one of its two columns: then the files end in _column."""


def again(command: Figures) -> int:
    """`figures`."""
    if not command.folder.is_dir():
        print(f"hypergradbench: there is no folder {command.folder}", file=sys.stderr)
        return 2
    return show_results(command.folder, draw=True, text=False, width=command.width)


def show_results(out: Path, *, ids: set[str] | None = None, draw: bool, text: bool = True, width: str = "page") -> int:
    """Table and figures from the files in ``out`` (of ``ids`` only, if given)."""
    from analysis import figures, results, tables

    frame = results.load(out, ids=ids)
    for name, reason in frame.attrs["skipped"].items():
        print(f"hypergradbench: {name} was left out: {reason}", file=sys.stderr)
    if frame.empty:
        print(f"hypergradbench: no results in {out}", file=sys.stderr)
        return 1
    if text:
        tables.show(frame)
        tables.save(frame, out / "table.txt")
    if draw:
        for path in figures.draw_all(frame, out / "figures", width):
            print(f"figure: {path}")
    return 0
