"""What accuracy costs: error against time, with the estimators that nothing beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import WIDTH, look, order
from .common import area, floored, handle, legend_below, missing, not_shown, one_dtype

COLUMNS = 3
FLOOR = 1e-4
"""Smaller errors are drawn here: nobody pays for them, and the axis is for those that differ."""
FEWEST = 4
"""A panel with fewer estimators says nothing about a trade."""


ABOUT = "Error of the direction against the time that the hypergradient takes, a panel a problem, and what nothing beats in both."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: error of the direction (before any floor), and time in training gradients."""
    cells = one_dtype(frame[frame["kind"] == "point"])[0]
    rows = _known(cells)
    rows = rows[rows["case"].isin(_cases(rows))]
    return rows[["id", "estimator", "problem", "case", "seed", "dtype", "direction_error", "time_ratio"]]


def _known(cells: pd.DataFrame) -> pd.DataFrame:
    rows = cells[cells["status"] == "ok"].dropna(subset=["angle", "time_ratio"])
    return rows.assign(direction_error=2 * np.sin(np.radians(rows["angle"]) / 2))


def draw(frame: pd.DataFrame) -> Figure | None:
    """A panel a problem (for a swept one, one instance); a small point a seed, a large one at the medians.

    The error is that of the direction: the distance between the unit vectors, 2 sin(angle / 2). It is fair to
    estimators that carry a learning rate, and tells the right way (0) from across (1.41) and the wrong way (2).
    """
    cells, dtype, others = one_dtype(frame[frame["kind"] == "point"])
    rows = _known(cells)
    cases = _cases(rows)
    if not cases:
        return None
    names = order(rows.loc[rows["case"].isin(cases), "estimator"])
    columns = min(COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    figure = Figure(figsize=(WIDTH, 0.7 + 2.8 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    lost = [
        f"{problem} (fewer than {FEWEST} estimators)"
        for problem in dict.fromkeys(cells["problem"])
        if problem not in set(rows.loc[rows["case"].isin(cases), "problem"])
    ]
    where: dict[str, list[str]] = {}
    for axes in list(grid.flat)[len(cases) :]:
        axes.set_visible(False)
    for axes, case in zip(grid.flat, cases, strict=False):
        mine = rows[rows["case"] == case]
        _panel(axes, mine, names)
        for note in missing(cells[cells["case"] == case], ["angle", "time_ratio"]):
            where.setdefault(note, []).append(_title(case))
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("time of the hypergradient, run not\nincluded / one training gradient", fontsize=7)
        itself = mine["truth"].astype(str).str.contains("unroll").any()
        axes.set_title(_title(case) + ("\n(truth: the float64 unroll itself)" if itself else ""), loc="left")
        axes.grid()
        axes.set_ylim(FLOOR / 2, 4)
        axes.annotate("↙ better", (0.03, 0.1), xycoords="axes fraction", fontsize=6.5, color="#555555")
    for axes in grid[:, 0]:
        axes.set_ylabel(
            r"direction error: $\|\hat g-\hat g_{\rm true}\|$ of unit vectors"
            f"\n(at the floor: {FLOOR:.0e} or less)".replace("e-0", "e-")
        )
    handles = [handle(n, names, line=False) for n in names]
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="nothing is better in both"))
    lost += [f"{note} on {', '.join(places)}" for note, places in where.items()]
    if dtype:
        figure.suptitle(dtype.removeprefix(", "), fontsize=8)
    notes = [
        "small, faint: each seed; large: the median. An estimator that does not apply to a problem is absent from its panel"
    ]
    legend_below(figure, handles, 5, [*notes, *not_shown([*lost, *others])])
    return figure


def _cases(rows: pd.DataFrame) -> list[str]:
    """One case a problem: of a sweep the hardest but one."""
    chosen = []
    for _, mine in rows.groupby("problem", sort=False):
        mine = mine[mine.groupby("case")["estimator"].transform("nunique") >= min(FEWEST, rows["estimator"].nunique())]
        cases = list(dict.fromkeys(mine["case"]))
        if cases:
            chosen.append(cases[max(len(cases) - 2, 0)])
    return chosen


def _panel(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    medians = rows.groupby("estimator")[["time_ratio", "direction_error"]].median()
    medians["direction_error"] = floored(medians["direction_error"], FLOOR)
    front = pareto(medians)
    axes.step(front["time_ratio"], front["direction_error"], where="post", color="#999999", linewidth=0.9, zorder=1)
    for name in order(rows["estimator"]):
        style = look(name, names)
        mine = rows[rows["estimator"] == name]
        axes.scatter(
            mine["time_ratio"], floored(mine["direction_error"], FLOOR), s=area(style.marker, 6), color=style.color, marker=style.marker, alpha=0.45,
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


def _title(case: str) -> str:
    """Short: a swept problem keeps the setting that is swept."""
    name, _, settings = case.partition(" (")
    return f"{name} (κ={settings[5:-1]})" if settings.startswith("cond=") and "," not in settings else name
