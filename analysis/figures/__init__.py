"""Figures from result files: one module a figure, registered in `FIGURES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ..style import RC
from . import error_condition, error_cost, figure5

FIGURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "figure5": figure5.draw,
    "error_condition": error_condition.draw,
    "error_cost": error_cost.draw,
}
"""name -> function of the loaded results; None if they do not hold what the figure shows."""


def draw_all(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw what the results allow, as PNG and as SVG.

    Returns:
        The files written; the same results give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        with mpl.rc_context(RC):
            figure = draw(frame)
            if figure is None:
                continue
            for path, metadata in (
                (folder / f"{name}.png", {"Software": None}),
                (folder / f"{name}.svg", {"Date": None, "Creator": None}),
            ):
                figure.savefig(path, metadata=metadata)
                written.append(path)
    return written
