"""What the figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import look, order

FLOOR = 1e-16
"""Where an error of exactly 0 is drawn on a logarithmic axis."""


def handle(name: str, names: Sequence[str], label: str | None = None, *, line: bool = True) -> Line2D:
    """A legend entry."""
    style = look(name, names)
    return Line2D(
        [], [], color=style.color, marker=style.marker, linestyle=style.line if line else "none", label=label or name,
        markeredgewidth=0.8,
    )  # fmt: skip


def legend_below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """One legend for all panels, outside of them."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, handlelength=2.6, columnspacing=1.4)


def better(axes: Axes, where: str) -> None:
    """Mark the direction of better: "down", "up", or "down left"."""
    arrow = {"down": "↓ better", "up": "↑ better", "down left": "↙ better"}[where]
    axes.annotate(
        arrow, (1.0, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
        fontsize=6.5, color="#555555",
    )  # fmt: skip


def coinciding(curves: dict[str, np.ndarray], tolerance: float) -> list[list[str]]:
    """Names whose curves differ by at most ``tolerance`` from the first of their group, in the usual order."""
    groups: list[list[str]] = []
    for name in order(curves):
        for group in groups:
            a, b = curves[group[0]], curves[name]
            if a.shape == b.shape and np.allclose(a, b, atol=tolerance, rtol=0, equal_nan=True):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def floored(values: pd.Series) -> pd.Series:
    """For a logarithmic axis."""
    return values.clip(lower=FLOOR)


def area(marker: str, points: float) -> float:
    """Size for ``scatter`` at which markers look alike: stars and crosses have little ink."""
    return points * {"*": 2.2, "P": 1.3, "X": 1.3, "d": 1.2, "s": 0.8, "D": 0.7}.get(marker, 1.0)
