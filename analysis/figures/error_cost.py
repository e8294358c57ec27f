"""What accuracy costs: error against time, with the estimators that nothing beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import WIDTH, look, order
from .common import area, handle, legend_below

MOST_PANELS = 3
FLOOR = 1e-6
"""Smaller errors are drawn here: nobody pays for them, and the axis is for those that differ."""
FEWEST = 4
"""A panel with fewer estimators says nothing about a trade."""


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a problem (for a swept one, one instance); a small point a seed, a large one at the medians.

    The error is that of the direction: the distance between the unit vectors, 2 sin(angle / 2). It is fair to
    estimators that carry a learning rate, and tells the right way (0) from across (1.41) and the wrong way (2).
    """
    rows = frame[(frame["kind"] == "point") & (frame["status"] == "ok")]
    rows = rows.dropna(subset=["angle", "time_ratio"])
    rows = rows.assign(direction_error=2 * np.sin(np.radians(rows["angle"]) / 2))
    cases = _cases(rows)
    if not cases:
        return None
    names = order(rows.loc[rows["case"].isin(cases), "estimator"])
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    grid = figure.subplots(1, len(cases), squeeze=False)[0]
    for axes, case in zip(grid, cases, strict=True):
        _panel(axes, rows[rows["case"] == case], names)
        axes.set(xscale="log", yscale="log", xlabel="time / one training gradient")
        axes.set_title(_title(case), loc="left")
        axes.grid()
        axes.set_ylim(FLOOR / 2, 4)
        axes.annotate("↙ better", (0.03, 0.03), xycoords="axes fraction", fontsize=6.5, color="#555555")
    grid[0].set_ylabel(
        r"direction error: $\|\hat g-\hat g_{\rm true}\|$ of unit vectors" "\n(at the floor: 1e-6 or less)"
    )
    handles = [handle(n, names, line=False) for n in names]
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="nothing is better in both"))
    legend_below(figure, handles, 5)
    return figure


def _cases(rows: pd.DataFrame) -> list[str]:
    """One case a problem: of a sweep the hardest but one."""
    chosen = []
    for _, mine in rows.groupby("problem", sort=False):
        mine = mine[mine.groupby("case")["estimator"].transform("nunique") >= min(FEWEST, rows["estimator"].nunique())]
        cases = list(dict.fromkeys(mine["case"]))
        if cases:
            chosen.append(cases[max(len(cases) - 2, 0)])
    return chosen[:MOST_PANELS]


def _panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    medians = rows.groupby("estimator")[["time_ratio", "direction_error"]].median()
    medians["direction_error"] = _floored(medians["direction_error"])
    front = pareto(medians)
    axes.step(front["time_ratio"], front["direction_error"], where="post", color="#999999", linewidth=0.9, zorder=1)
    for name in order(rows["estimator"]):
        style = look(name, names)
        mine = rows[rows["estimator"] == name]
        axes.scatter(
            mine["time_ratio"], _floored(mine["direction_error"]), s=area(style.marker, 6), color=style.color, marker=style.marker, alpha=0.45,
            linewidths=0.3, zorder=2,
        )  # fmt: skip
        at = medians.loc[name]
        axes.scatter(
            at["time_ratio"], at["direction_error"], s=area(style.marker, 32), color=style.color, marker=style.marker, edgecolors="white",
            linewidths=0.5, zorder=3, gid=name,
        )  # fmt: skip


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in both columns (time_ratio, direction_error), by rising time."""
    best, kept = np.inf, []
    for name, row in points.sort_values(["time_ratio", "direction_error"]).iterrows():
        if row["direction_error"] < best:
            best = row["direction_error"]
            kept.append(name)
    return points.loc[kept]


def _floored(values: pd.Series) -> pd.Series:
    return values.clip(lower=FLOOR)


def _title(case: str) -> str:
    """Short: a swept problem keeps the setting that is swept."""
    name, _, settings = case.partition(" (")
    return f"{name} (κ={settings[5:-1]})" if settings.startswith("cond=") and "," not in settings else name
