"""Throughput against memory of meta steps (SAMA, Figure 1, left)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import look, order
from .common import area, better, handle, legend_below, not_shown, panels, title_above
from .meta import at_one_unroll, chosen, lost

MIB = 2**20
ABOUT = "Samples per second against peak memory of meta steps, relative to plain training of the same model and in absolute numbers."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: samples per second and bytes, of the meta step and of plain training."""
    rows = chosen(frame)[0]
    return rows.loc[rows["status"] == "ok", [
        "id", "estimator", "case", "dtype", "device", "unroll", "workers", "seed", "throughput", "plain_throughput", "throughput_ratio",
        "throughput_ratio_low", "throughput_ratio_high", "meta_peak", "plain_peak", "memory_ratio",
    ]]  # fmt: skip


def draw(frame: pd.DataFrame) -> Figure | None:
    """Left: relative to plain training of the same model; right: the figures themselves. A point an estimator.

    Of several workloads, sizes, devices and dtypes that were measured, the one with most estimators is drawn. Published
    figures are in the table, not here: another machine's would not lie on these axes.
    """
    rows, title, others = chosen(frame)
    fine = rows[rows["status"] == "ok"].dropna(subset=["throughput", "throughput_ratio", "meta_peak", "memory_ratio"])
    if fine.empty:
        return None
    names = order(fine["estimator"])
    figure, grid = panels(2, 2.6, 0.7)
    left, right = grid.flat
    _points(left, fine, "memory_ratio", "throughput_ratio", names)
    _points(right, fine.assign(mib=fine["meta_peak"] / MIB), "mib", "throughput", names)
    plain = fine.groupby(["unroll", "workers"])[["plain_peak", "plain_throughput"]].median()
    left.plot(1, 1, marker="*", color="black", markersize=9, linestyle="none")
    right.plot(
        plain["plain_peak"] / MIB, plain["plain_throughput"], marker="*", color="black", markersize=9, linestyle="none"
    )
    left.set(xlabel="peak memory / plain training", ylabel="samples per second / plain training", title="relative")
    right.set(xlabel="peak memory (MiB)", ylabel="samples per second", title="absolute")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")
        axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")
        axes.tick_params(which="minor", labelsize=6)
        axes.margins(0.12)
        axes.grid(which="both")
        axes.set_title(axes.get_title(), loc="center")
        better(axes, "up left")
    several = len(plain) > 1
    title_above(figure, title if several else title + at_one_unroll(fine))
    handles = [Line2D([], [], marker="*", color="black", linestyle="none", markersize=9, label="plain training")]
    handles += [handle(n, names, line=False) for n in names]
    notes = [
        "bars: 95 % confidence interval of the paired ratio" + "; u1, u2, ...: unroll length, ×2: two workers" * several
    ]
    legend_below(figure, handles, 5, [*notes, *not_shown([*lost(rows), *others])])
    return figure


def _points(axes: Axes, rows: pd.DataFrame, x: str, y: str, names: list[str]) -> None:
    several = rows[["unroll", "workers"]].drop_duplicates().shape[0] > 1
    for (name, unroll, workers), mine in rows.groupby(["estimator", "unroll", "workers"]):
        style, at = look(str(name), names), mine[[x, y]].median()
        if y == "throughput_ratio" and len(mine) == 1 and pd.notna(mine["throughput_ratio_low"].iloc[0]):
            low, high = mine.iloc[0][["throughput_ratio_low", "throughput_ratio_high"]]
            axes.plot([at[x], at[x]], [low, high], color=style.color, linewidth=1, zorder=2)
        axes.scatter(
            at[x], at[y], s=area(style.marker, 36), color=style.color, marker=style.marker, edgecolors="white", linewidths=0.5,
            zorder=3, gid=str(name),
        )  # fmt: skip
        if several:
            text = f"u{unroll:.0f}" + (f" ×{workers:.0f}" if workers > 1 else "")
            axes.annotate(text, (at[x], at[y]), xytext=(5, 2), textcoords="offset points", fontsize=6, color="#444444")
