"""Peak memory of a meta step against the size of the model (SAMA, Figure 1, right)."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import order
from .common import better, handle, legend_below, not_shown, panels, title_above
from .meta import chosen, curves, lost, one_setting, plain_curve, unit_of

ABOUT = "Peak memory of a meta step against the number of parameters, in bytes and relative to plain training."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: parameters, and peak bytes of the meta step and of plain training."""
    rows = one_setting(chosen(frame, over="params")[0])[0]
    rows = rows[rows["status"] == "ok"]
    rows = rows if rows["params"].nunique() > 1 else rows[:0]
    return rows[
        [
            "id",
            "estimator",
            "case",
            "dtype",
            "device",
            "unroll",
            "workers",
            "seed",
            "params",
            "meta_peak",
            "plain_peak",
            "memory_ratio",
        ]
    ]


def draw(frame: pd.DataFrame) -> Figure | None:
    """A line an estimator, over the sizes of one workload at one unroll length; left in bytes, right over plain training."""
    rows, title, others = chosen(frame, over="params")
    rows, unroll, more = one_setting(rows)
    fine = rows[rows["status"] == "ok"]
    if fine["params"].nunique() < 2:
        return None
    names = order(fine["estimator"])
    figure, grid = panels(2, 2.5, 0.7)
    left, right = grid.flat
    unit, word = unit_of(fine["meta_peak"].max())
    fine = fine.assign(peak=fine["meta_peak"] / unit, plain=fine["plain_peak"] / unit)
    plain_curve(left, fine, "params", "plain")
    right.axhline(1, color="black", linestyle="--", linewidth=1)
    curves(left, fine, "params", "peak", names)
    curves(right, fine, "params", "memory_ratio", names)
    left.set(xscale="log", yscale="log", xlabel="parameters (count)", ylabel=f"peak memory ({word})")
    right.set(xscale="log", xlabel="parameters (count)", ylabel="peak memory / plain training", ylim=(0, None))
    left.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
    for axes in (left, right):
        axes.set_xticks(sorted(fine["params"].unique()), [_short(x) for x in sorted(fine["params"].unique())])
        axes.minorticks_off()
        axes.grid()
        better(axes, "down")
    title_above(figure, f"{title}, unroll {unroll:.0f}")
    handles = [Line2D([], [], color="black", linestyle="--", marker="*", label="plain training")]
    handles += [handle(n, names) for n in names]
    notes = ["exact bytes of live tensors, parameters and optimizer slots included; a line ends where memory did"]
    legend_below(figure, handles, 5, [*notes, *not_shown([*lost(rows, at="size"), *more, *others])])
    return figure


def _short(count: float) -> str:
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"
