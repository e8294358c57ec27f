"""`hypergradbench report`: one page that says what was measured, works from a file, and carries its sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .page import render
from .runs import read

__all__ = ["write"]


def write(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of some results folders; the same results give the same bytes.

    Args:
        folders: what `run`, `sweep`, `study`, `peers` or `advise` wrote.
        out: the file, replaced if it is there.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there are no results in any of them.
    """
    runs = read(folders)
    if all(run.frame.empty and not run.studies for run in runs):
        raise ValueError(f"no results in {', '.join(map(str, folders))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(runs, ", ".join(run.label for run in runs)), encoding="utf-8")
    return out
