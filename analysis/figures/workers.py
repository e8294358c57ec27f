"""Throughput and memory of data-parallel meta steps against the number of workers."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import order
from .common import better, handle, legend_below, not_shown, panels, title_above
from .meta import chosen, curves, lost, one_of, plain_curve, unit_of, whole

ABOUT = "Throughput of data-parallel meta steps, its share of the ideal, and peak memory of one rank, against the number of workers."


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: samples per second of all workers, efficiency, peak bytes of one rank; and the same of plain training."""
    rows = scaled(one_of(chosen(frame, over="workers")[0], "unroll")[0])
    return rows[[
        "id", "estimator", "case", "dtype", "device", "unroll", "seed", "batch", "workers", "throughput", "plain_throughput",
        "efficiency", "plain_efficiency", "meta_peak", "plain_peak",
    ]]  # fmt: skip


def scaled(rows: pd.DataFrame) -> pd.DataFrame:
    """What succeeded, with ``efficiency``: throughput over (workers / fewest workers) times the median with the fewest; none if all
    have as many."""
    rows = rows[rows["status"] == "ok"]
    if rows["workers"].nunique() < 2:
        return rows[:0].assign(efficiency=[], plain_efficiency=[])
    fewest = rows["workers"].min()
    share = rows["workers"] / fewest
    least = rows[rows["workers"] == fewest]
    alone = rows["estimator"].map(least.groupby("estimator")["throughput"].median())
    return rows.assign(
        efficiency=rows["throughput"] / (share * alone),
        plain_efficiency=rows["plain_throughput"] / (share * least["plain_throughput"].median()),
    )


def draw(frame: pd.DataFrame) -> Figure | None:
    """A line an estimator. The batch of a step is shared among the workers, whatever their number."""
    rows, title, others = chosen(frame, over="workers")
    rows, unroll, more = one_of(rows, "unroll")
    fine = scaled(rows)
    if fine.empty:
        return None
    names = order(fine["estimator"])
    unit, word = unit_of(fine["meta_peak"].max())
    fine = fine.assign(peak=fine["meta_peak"] / unit, plain=fine["plain_peak"] / unit)
    figure, grid = panels(3, 2.3, 0.7)
    rate, share, memory = grid.flat
    for axes, y, plain in (
        (rate, "throughput", "plain_throughput"),
        (share, "efficiency", "plain_efficiency"),
        (memory, "peak", "plain"),
    ):
        plain_curve(axes, fine, "workers", plain)
        curves(axes, fine, "workers", y, names)
        axes.set(xlabel="workers (processes)", xscale="log")
        whole(axes.xaxis, fine["workers"])
        axes.grid()
    share.axhline(1, color="#777777", linestyle=(0, (2, 2)), linewidth=0.9)
    rate.set(ylabel="samples per second, of all workers", yscale="log")
    rate.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    rate.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
    rate.tick_params(axis="y", which="minor", labelsize=6)
    share.set(ylabel="samples per second / ideal", ylim=(0, None))
    memory.set(ylabel=f"peak memory of one rank ({word})", ylim=(0, None))
    better(rate, "up")
    better(share, "up")
    better(memory, "down")
    title_above(figure, f"{title}; unroll {unroll:.0f}")
    handles = [Line2D([], [], color="black", linestyle="--", marker="*", label="plain training")]
    handles += [handle(n, names) for n in names]
    handles.append(Line2D([], [], color="#777777", linestyle=(0, (2, 2)), linewidth=0.9, label="ideal"))
    fewest = fine["workers"].min()
    notes = [
        f"ideal: the throughput with {fewest:.0f} worker{'s' if fewest > 1 else ''}, times as many. Batch of a step, all workers together: "
        f"{', '.join(f'{b:.0f}' for b in sorted(set(fine['batch'])))}"
    ]
    cpus = set(fine["device"])
    if cpus == {"cpu"}:
        notes.append(
            "on one CPU workers share its cores: this says what communication costs, not what more devices bring"
        )
    legend_below(figure, handles, 5, [*notes, *not_shown([*lost(rows, at="workers"), *more, *others])])
    return figure
