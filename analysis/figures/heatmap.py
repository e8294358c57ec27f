"""Heat maps whose cells say their numbers: median over seeds, and the whole range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from . import common

COLORS = "cividis"
"""Made for colour-blind readers, and as light in grey as it is high."""


def heat_maps(
    points: pd.DataFrame, panels: Mapping[str, pd.Series], rows: Sequence[str], columns: Sequence[str], label: str
) -> Figure:
    """A panel beside another, all with the same cells and the same colours; the higher the value the better.

    Args:
        points: a row a measured point: ``row``, ``column``, ``value`` (NaN where there is none) and ``why`` (in a word or two).
        panels: title -> which of the points are in it.
        rows: labels of the cells' rows, from above.
        columns: labels of their columns.
        label: of the colours.
    """
    figure, grid = common.panels(len(panels), 0.29 * len(rows) + 0.6, 0.6, tallest=9, sharey=True)
    known = points["value"].dropna()
    low, high = float(min(known.min(), 0.999)), 1.0
    mesh = None
    for axes, (title, chosen) in zip(grid.flat, panels.items(), strict=True):
        mine = points[chosen]
        medians = mine.groupby(["row", "column"])["value"].median().unstack().reindex(index=rows, columns=columns)
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(medians.to_numpy()), cmap=COLORS, vmin=low, vmax=high, edgecolors="white"
        )
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                cell = mine[(mine["row"] == row) & (mine["column"] == column)]
                _write(axes, i, j, cell, (low, high))
        axes.set_title(title, loc="left", fontsize=7.5)
        axes.set_xticks(
            np.arange(len(columns)) + 0.5, columns, fontsize=6.5, rotation=20, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=6.5)
        axes.tick_params(length=0)
        axes.set_xlabel("product")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    grid[0, 0].invert_yaxis()
    for axes in grid[:, 0]:
        axes.set_ylabel("approximate inverse")
    assert mesh is not None
    below = len(grid) > 1  # at the right the cells need the width
    bar = figure.colorbar(mesh, ax=grid, fraction=0.03, pad=0.01, location="bottom" if below else "right")
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6.5)
    common.better(bar.ax, "right" if below else "up")
    return figure


def _write(axes: Axes, i: int, j: int, cell: pd.DataFrame, ends: tuple[float, float]) -> None:
    """The numbers of one cell, or why it has none."""
    values = cell["value"].dropna()
    if values.empty:
        axes.add_patch(Rectangle((j, i), 1, 1, facecolor="#F4F4F4", edgecolor="white"))
        why = "not measured" if cell.empty else str(cell["why"].iloc[0])
        axes.text(j + 0.5, i + 0.5, why, ha="center", va="center", fontsize=5.5, color="#777777")
        return
    middle = float(values.median())
    share = (middle - ends[0]) / (ends[1] - ends[0])
    red, green, blue, _ = colormaps[COLORS](min(max(share, 0), 1))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    lost = int(cell["value"].isna().sum())
    text = _number(middle)
    if len(values) > 1:
        low, high = _number(values.min()), _number(values.max())
        text += f"\n{low} to{' ' if len(low + high) < 10 else chr(10)}{high}"  # two lines if both have four digits
    axes.text(
        j + 0.5, i + 0.5, text + f"\n({lost} failed)" * bool(lost), ha="center", va="center", fontsize=5.5, linespacing=1.05,
        color="white" if dark else "black",
    )  # fmt: skip


def _number(value: float) -> str:
    """Two digits, but never 1 where it is not."""
    text = f"{value:.2f}"
    return f"{value:.4f}" if text == "1.00" and value < 0.99995 else text
