"""The bound against the error: above the diagonal it holds, near it it is tight."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import WIDTH, look, order
from .common import area, floored, handle, legend_below

FLOOR = 1e-12
KNOWN = ("unroll", "unroll-truncated", "t1t2", "sama-na")


def draw(rows: pd.DataFrame) -> Figure | None:
    """One panel a size of the Krylov spaces, one for what an estimate knows of itself; every point is a cell."""
    cells = rows[rows["estimator"].notna()].assign(family=lambda f: f["estimator"].map(_family))
    if cells.empty:
        return None
    budgets = sorted(cells["products"].unique(), reverse=True)
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    grid = figure.subplots(1, len(budgets) + 1, sharex=True, sharey=True, squeeze=False)[0]
    names = order(cells["family"])
    panels = [(cells[cells["products"] == k], "error", "bound", f"{k:.0f} products a space") for k in budgets]
    own = cells[(cells["products"] == budgets[0]) & cells["own"].notna()]
    panels.append((own, "solve_error", "own", "from its own residual"))
    ends = [FLOOR, max(float(mine[[error, bound]].max().max()) for mine, error, bound, _ in panels)]
    for axes, (mine, error, bound, title) in zip(grid, panels, strict=True):
        for name in names:
            at, style = mine[mine["family"] == name], look(name, names)
            axes.scatter(
                floored(at[error], FLOOR), floored(at[bound], FLOOR), s=area(style.marker, 9), color=style.color,
                marker=style.marker, linewidths=0.2, edgecolors="white", zorder=2,
            )  # fmt: skip
        axes.plot(ends, ends, color="#777777", linewidth=0.8, zorder=1)
        axes.set(xscale="log", yscale="log", xlabel="relative error")
        axes.set_title(title, loc="left")
        axes.grid()
    grid[0].set_ylabel("bound on it")
    handles = [handle(n, names, line=False) for n in names]
    handles.append(Line2D([], [], color="#777777", linewidth=0.8, label="bound = error"))
    last = "Last panel: of the distance to the exact implicit gradient at the end of the run; of unrolls to first order"
    legend_below(figure, handles, 5, [f"{last}. Errors and bounds below {FLOOR:g} are drawn there."])
    return figure


def _family(name: str) -> str:
    return name if name in KNOWN else name.rpartition("-")[0]
