"""Error against the condition number of the inner problem, under the bounds that theory gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..style import WIDTH, look, order
from .common import area, better, floored, handle, legend_below

RUN = ("unroll", "unroll-checkpointed", "forward", "unroll-truncated")


def draw(frame: pd.DataFrame) -> Figure | None:
    """Three panels: estimators that differentiate the run, implicit ones, and those of which only a direction is asked.

    Every seed is a point (moved sideways a little, so that none hides another), a line joins the medians, and the
    dashed line is the largest of the seeds' bounds, which `benchmarks.theory` derives.
    """
    rows = frame[(frame["kind"] == "point") & (frame["problem"] == "biased_regression") & (frame["status"] == "ok")]
    if rows["cond"].nunique() < 2:
        return None
    names = order(rows["estimator"])
    scaled = [n for n in names if (rows.loc[rows["estimator"] == n, "scale"] != "true").all()]
    panels = [
        ("differentiating the run", [n for n in names if n in RUN], "relative_error", "bound_error"),
        (
            "implicit differentiation",
            [n for n in names if n not in RUN and n not in scaled],
            "relative_error",
            "bound_error",
        ),
        ("identity for the inverse", scaled, "angle", "bound_angle"),
    ]
    panels = [p for p in panels if p[1]]
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, members, value, bound) in zip(grid, panels, strict=True):
        _panel(axes, rows, members, value, bound, names)
        axes.set_title(title, loc="left")
        axes.set(xscale="log", xlabel=r"condition number $\kappa$")
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(rows["cond"]))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        if value == "angle":
            axes.set(ylabel=r"angle to the true $\nabla_\lambda M$ (degrees)", ylim=(0, 92), yticks=range(0, 91, 15))
        else:
            axes.set(ylabel=r"relative error to the true $\nabla_\lambda M$", yscale="log")
        axes.grid()
        better(axes, "down")
    errors = [a for a, p in zip(grid, panels, strict=True) if p[2] == "relative_error"]
    if errors:
        low, high = min(a.get_ylim()[0] for a in errors), max(a.get_ylim()[1] for a in errors)
        for axes in errors:
            axes.set_ylim(low, high)
    handles = [handle(n, names) for n in names]
    handles.append(Line2D([], [], color="#777777", linestyle=(0, (2, 2)), linewidth=0.9, label="theory's upper bound"))
    legend_below(figure, handles, 5)
    return figure


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
