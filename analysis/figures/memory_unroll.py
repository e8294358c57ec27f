"""Peak memory of a meta step against the number of training steps in it."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import order
from .common import better, handle, legend_below, not_shown, panels, title_above
from .meta import chosen, curves, lost, one_of, plain_curve, unit_of, whole

ABOUT = "Peak memory of a meta step against its unroll length, in bytes and relative to plain training."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: unroll length, and peak bytes of the meta step and of plain training."""
    rows = one_of(chosen(frame, over="unroll")[0], "workers")[0]
    rows = rows[rows["status"] == "ok"]
    rows = rows if rows["unroll"].nunique() > 1 else rows[:0]
    return rows[
        [
            "id",
            "estimator",
            "case",
            "dtype",
            "device",
            "workers",
            "seed",
            "unroll",
            "meta_peak",
            "plain_peak",
            "memory_ratio",
        ]
    ]


def draw(frame: pd.DataFrame) -> Figure | None:
    """A line an estimator, at one size of one workload."""
    rows, title, others = chosen(frame, over="unroll")
    rows, workers, more = one_of(rows, "workers")
    fine = rows[rows["status"] == "ok"]
    if fine["unroll"].nunique() < 2:
        return None
    names = order(fine["estimator"])
    unit, word = unit_of(fine["meta_peak"].max())
    fine = fine.assign(peak=fine["meta_peak"] / unit, plain=fine["plain_peak"] / unit)
    figure, grid = panels(2, 2.5, 0.7)
    left, right = grid.flat
    plain_curve(left, fine, "unroll", "plain")
    right.axhline(1, color="black", linestyle="--", linewidth=1)
    curves(left, fine, "unroll", "peak", names)
    curves(right, fine, "unroll", "memory_ratio", names)
    left.set_ylabel(f"peak memory ({word})")
    right.set_ylabel("peak memory / plain training")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="unroll length (training steps)")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
        axes.tick_params(axis="y", which="minor", labelsize=6)
        whole(axes.xaxis, fine["unroll"])
        axes.grid()
        better(axes, "down")
    title_above(figure, title + (f" ×{workers:.0f}" if workers > 1 else ""))
    handles = [Line2D([], [], color="black", linestyle="--", marker="*", label="plain training")]
    handles += [handle(n, names) for n in names]
    notes = [
        "exact bytes of live tensors, parameters and optimizer slots included, of one rank; a line ends where memory did"
    ]
    legend_below(figure, handles, 5, [*notes, *not_shown([*lost(rows, at="unroll"), *more, *others])])
    return figure
