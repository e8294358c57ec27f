"""Error against the condition number of the inner problem, under the bounds that theory gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..style import look, order
from .common import area, better, floored, handle, legend_below, missing, not_shown, one_place, panels, title_above

RUN = ("unroll", "unroll-checkpointed", "forward", "unroll-truncated")
"""These differentiate the run; so does any other whose claim names the run as its target."""


ABOUT = "Relative error, or angle, to the true hypergradient against the condition number of the inner problem, and theory's bounds."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: error and angle (degrees) with their bounds, and the panel it is in."""
    rows = _cells(frame)[0]
    rows = rows[rows["status"] == "ok"]
    if rows["cond"].nunique() < 2:
        rows = rows[:0]
    family = {n: _family(n, rows[rows["estimator"] == n]) for n in set(rows["estimator"])}
    rows = rows.assign(panel=rows["estimator"].map(family))
    return rows[
        [
            "id",
            "estimator",
            "panel",
            "problem",
            "cond",
            "seed",
            "dtype",
            "relative_error",
            "bound_error",
            "angle",
            "bound_angle",
        ]
    ]


def draw(frame: pd.DataFrame) -> Figure | None:
    """Three panels: estimators that differentiate the run, implicit ones, and those of which only a direction is asked.

    Every seed is a point (moved sideways a little, so that none hides another), a line joins the medians, and the
    dashed line is the largest of the seeds' bounds, which `benchmarks.theory` derives.
    """
    cells, dtype, others = _cells(frame)
    rows = cells[cells["status"] == "ok"]
    if rows["cond"].nunique() < 2:
        return None
    names = order(rows["estimator"])
    family = {n: _family(n, rows[rows["estimator"] == n]) for n in names}
    shown = [
        (title, [n for n in names if family[n] == title], value, bound)
        for title, value, bound in (
            ("differentiating the run", "relative_error", "bound_error"),
            ("implicit differentiation", "relative_error", "bound_error"),
            ("a direction only", "angle", "bound_angle"),
        )
    ]
    shown = [p for p in shown if p[1]]
    figure, grid = panels(len(shown), 2.6, 0.7)
    for axes, (title, members, value, bound) in zip(grid.flat, shown, strict=True):
        _panel(axes, rows, members, value, bound, names)
        axes.set_title(title, loc="left")
        axes.set(xscale="log", xlabel=r"condition number $\kappa$")
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(rows["cond"]))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        if value == "angle":
            axes.set(ylabel=r"angle to the true $\nabla_\lambda M$ (degrees)", ylim=(0, 92), yticks=range(0, 91, 15))
            if (rows.loc[rows["estimator"].isin(members), value] > 90).any():
                axes.set(ylim=(0, 184), yticks=range(0, 181, 30))
        else:
            axes.set(ylabel=r"relative error to the true $\nabla_\lambda M$", yscale="log")
        axes.grid()
        better(axes, "down")
    errors = [a for a, p in zip(grid.flat, shown, strict=True) if p[2] == "relative_error"]
    if errors:
        low, high = min(a.get_ylim()[0] for a in errors), max(a.get_ylim()[1] for a in errors)
        for axes in errors:
            axes.set_ylim(low, high)
    drawn = {
        n for _, members, value, _ in shown for n in members if rows.loc[rows["estimator"] == n, value].notna().any()
    }
    handles = [handle(n, names) for n in names if n in drawn]
    handles.append(Line2D([], [], color="#777777", linestyle=(0, (2, 2)), linewidth=0.9, label="theory's upper bound"))
    lost = missing(cells[~cells["estimator"].isin(names)], [])
    for _, members, value, _ in shown:
        lost += missing(cells[cells["estimator"].isin(members)], [value], names)
    if dtype:
        title_above(figure, f"biased_regression{dtype}")
    legend_below(figure, handles, 5, not_shown([*lost, *others]))
    return figure


def _cells(frame: pd.DataFrame) -> tuple[pd.DataFrame, str, list[str]]:
    return one_place(frame[(frame["kind"] == "point") & (frame["problem"] == "biased_regression")])


def _family(name: str, rows: pd.DataFrame) -> str:
    if name in RUN or (rows["target"] == "run").any():
        return "differentiating the run"
    return "implicit differentiation" if (rows["scale"] == "true").any() else "a direction only"


def _panel(axes: Axes, rows: pd.DataFrame, members: Sequence[str], value: str, bound: str, names: list[str]) -> None:
    drawn: list[pd.Series] = []
    shifts = np.geomspace(1 / 1.35, 1.35, len(members)) if len(members) > 1 else np.ones(1)
    for name, shift in zip(members, shifts, strict=True):
        mine = rows[rows["estimator"] == name]
        style = look(name, names)
        axes.scatter(
            mine["cond"] * shift, _drawn(mine[value], value), s=area(style.marker, 12), color=style.color, marker=style.marker, linewidths=0.4,
            edgecolors="white", zorder=3, gid=name,
        )  # fmt: skip
        middle = _drawn(mine.groupby("cond")[value].median(), value)
        axes.plot(middle.index * shift, middle, color=style.color, linestyle=style.line, linewidth=0.9, zorder=2)
        limit = mine.groupby("cond")[bound].max().dropna()
        if any(limit.index.equals(d.index) and np.allclose(limit, d, rtol=0.02) for d in drawn):
            continue  # the same bound as another's
        if len(limit):
            drawn.append(limit)
            axes.plot(
                limit.index * shift, limit, color=style.color, linestyle=(0, (2, 2)), linewidth=0.8, alpha=0.7, zorder=1
            )


def _drawn(values: pd.Series, value: str) -> pd.Series:
    return values if value == "angle" else floored(values)
