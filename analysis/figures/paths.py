"""What the figures of paths share: which path is drawn, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .common import one_place


def one_path(frame: pd.DataFrame, holding: str = "") -> tuple[pd.DataFrame, str, list[str]]:
    """The cells of one path.

    Args:
        frame: all results.
        holding: a column that some cell of the path must have something in.

    Returns:
        (the cells of the first path, what a title adds about their dtype, what is left out); no cells if none succeeded.
    """
    cells, dtype, others = one_place(frame[frame["kind"] == "path"])
    rows = cells[cells["status"] == "ok"]
    rows = rows[rows[holding].notna()] if holding else rows
    if rows.empty:
        return rows, dtype, others
    first = rows.iloc[0]
    others += [f"{case} (another path)" for case in dict.fromkeys(rows["case"]) if case != first["case"]]
    return cells[(cells["case"] == first["case"]) & (cells["seed"] == first["seed"])], dtype, others


def series(values: object) -> np.ndarray:
    """One number a meta step; empty if nothing was recorded."""
    return np.array(values, dtype=float) if isinstance(values, list) else np.array([])


def wrapped(group: Sequence[str], most: int = 3) -> str:
    """Every name of a group whose curves coincide, ``most`` a line."""
    lines = [" = ".join(group[i : i + most]) for i in range(0, len(group), most)]
    return " =\n".join(lines)
