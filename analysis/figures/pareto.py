"""What `hypergradbench advise` found: error against time and against memory, the fronts, and the limits."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..advice import FLOOR, Advice, front, of_places
from ..style import look, order
from .common import area, better, floored, handle, legend_below, not_shown, panels, setting_of, title_above

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


ABOUT = "What `hypergradbench advise` found: error against time and against memory of a meta step, and what nothing beats in both."
COSTS = ["error", "time", "peak"]


def data(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a candidate: error (median, smallest, largest over points), time in runs, peak bytes, whether it is on a front."""
    columns = [
        "estimator",
        "name",
        "case",
        "dtype",
        "device_asked",
        *COSTS,
        "error_low",
        "error_high",
        "seconds",
        "front_time",
        "front_memory",
        "recommended",
    ]
    judged = _judged(frame)
    if judged is None:
        return pd.DataFrame(columns=columns)
    found, rows, *_ = judged
    rows = rows.assign(recommended=rows.index == found.choice)
    return rows.rename_axis("estimator").reset_index()[columns]


def _judged(frame: pd.DataFrame) -> tuple[Advice, pd.DataFrame, str, list[str]] | None:
    """(all that is said, the candidates that can be drawn, with where, what they are of, what the others are of)."""
    asked = of_places(frame)
    if not asked:
        return None
    head, mine, found = max(asked, key=lambda entry: len(entry[1]))
    rows = found.rows[found.rows["status"].eq("ok")].dropna(subset=COSTS)
    rows = rows.assign(**mine.iloc[0][["case", "dtype", "device_asked"]])
    return None if rows.empty else (found, rows, head, [other for other, *_ in asked if other != head])


def draw(frame: pd.DataFrame) -> Figure | None:
    """Left: error against the time of a meta step; right: against its peak memory. A point a candidate; of several problems the one
    with most."""
    judged = _judged(frame)
    if judged is None:
        return None
    found, rows, head, others = judged
    unit, scale = next((u for u in UNITS if rows["peak"].median() >= u[1]), UNITS[-1])
    rows = rows.assign(size=rows["peak"] / scale)
    figure, grid = panels(2, 2.9, 0.7, sharey=True)
    left, right = grid.flat
    limits = found.limits
    seconds = limits["time_seconds"]
    plain = (rows["seconds"] / rows["time"]).median()
    _panel(left, rows, "time", found, limits["time_ratio"] or (seconds and seconds / plain))
    _panel(right, rows, "size", found, limits["memory"] and limits["memory"] / scale)
    left.set(xlabel="time of a meta step / time of its run alone")
    right.set(xlabel=f"peak memory of a meta step ({unit})")
    words = "relative error" if limits["error"] == "relative" else "direction error"
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{words}\n(at the floor: {FLOOR:.0e} or less)".replace("e-0", "e-"))
    title_above(figure, f"{head}; reference: {found.truth or 'none, errors are bounds'}")
    names = order(rows["name"])
    handles = [handle(n, names, line=False) for n in names]
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="nothing is better in both"))
    if limits["memory"] or limits["time_ratio"] or seconds:
        handles.append(Line2D([], [], color="#CC3311", linewidth=0.9, linestyle="--", label="limit"))
    handles.append(Line2D([], [], marker="o", color="none", markeredgecolor="black", markersize=9, label="recommended"))
    lost = found.rows[found.rows["status"].isin(["failed", "discarded"])]
    notes = ["bars: smallest and largest error over the points; labels: settings of those that were tried with several"]
    legend_below(
        figure,
        handles,
        5,
        [
            *notes,
            *not_shown([f"{k} ({r['status']})" for k, r in lost.iterrows()] + others),
        ],
    )
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, x: str, found: Advice, limit: float | None) -> None:
    names = order(rows["name"])
    fine = rows[~rows["control"]]
    steps = rows.loc[front(fine, x)]
    axes.step(steps[x], floored(steps["error"], FLOOR), where="post", color="#999999", linewidth=0.9, zorder=1)
    if limit is not None:
        axes.axvline(limit, color="#CC3311", linewidth=0.9, linestyle="--", zorder=1)
    for label, row in rows.iterrows():
        style = look(row["name"], names)
        at, low, high = (max(row[k], FLOOR) for k in ("error", "error_low", "error_high"))
        axes.plot([row[x], row[x]], [low, high], color=style.color, linewidth=0.8, alpha=0.6, zorder=2)
        axes.scatter(
            row[x], at, s=area(style.marker, 34), color=style.color, marker=style.marker, edgecolors="white",
            linewidths=0.5, zorder=3, gid=str(label),
        )  # fmt: skip
        if label == found.choice:
            axes.scatter(row[x], at, s=130, facecolors="none", edgecolors="black", linewidths=1.0, zorder=4)
        if label != row["name"]:
            axes.annotate(
                setting_of(str(label)),
                (row[x], at),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=6,
                color="#444444",
            )
    axes.set(xscale="log", yscale="log")
    axes.set_ylim(bottom=FLOOR / 2)
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.xaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "25" else "")
    axes.tick_params(which="minor", labelsize=6)
    axes.margins(x=0.12)
    axes.grid()
    better(axes, "down left")
