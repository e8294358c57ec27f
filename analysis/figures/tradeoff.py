"""What the figures of error against a cost share: panels by problem, points, and the front that nothing beats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..style import in_column, look, order, registered
from .common import (
    area,
    better,
    budget_of,
    floored,
    handle,
    legend_below,
    log_limits,
    log_ticks,
    missing,
    not_shown,
    one_place,
    panels,
    title_above,
)

COLUMNS = 3
FLOOR = 1e-4
"""Smaller errors are drawn here: nobody pays for them, and the axis is for those that differ."""
FEWEST = 4
"""A panel with fewer estimators says nothing about a trade."""


class Cost(NamedTuple):
    """What stands on the horizontal axis.

    Attributes:
        column: of `costed`.
        label: of the axis, with the unit.
        note: what is to be said below the figure.
        zero: whether it can be 0: the axis is then linear up to 1, and what costs nothing of it is on no front.
    """

    column: str
    label: str
    note: str = ""
    zero: bool = False


def data_of(frame: pd.DataFrame, cost: Cost) -> pd.DataFrame:
    """A row a cell: error of the direction (before any floor), and its cost."""
    rows = _known(one_place(frame[frame["kind"] == "point"])[0], cost)
    rows = rows[rows["case"].isin(one_case_a_problem(rows))]
    return rows[["id", "estimator", "problem", "case", "seed", "dtype", "direction_distance", cost.column]]


def costed(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with ``direction_distance``, between unit vectors (0 the same, 1.41 across, 2 opposite), and ``bytes``, the peak of
    the hypergradient with the states that are kept for it."""
    angle = cells["angle"].astype(float)
    return cells.assign(
        direction_distance=2 * np.sin(np.radians(angle) / 2), bytes=cells["peak_bytes"] + cells["kept_bytes"].fillna(0)
    )


def _known(cells: pd.DataFrame, cost: Cost) -> pd.DataFrame:
    return costed(cells[cells["status"] == "ok"]).dropna(subset=["direction_distance", cost.column])


def draw_of(frame: pd.DataFrame, cost: Cost) -> Figure | None:
    """A panel a problem (for a swept one, one instance); a small point a seed, a large one at the medians.

    The error is that of the direction: the distance between the unit vectors, 2 sin(angle / 2). It is fair to
    estimators that carry a learning rate, and tells the right way (0) from across (1.41) and the wrong way (2).
    """
    cells, dtype, others = one_place(frame[frame["kind"] == "point"])
    rows = _known(cells, cost)
    cases = one_case_a_problem(rows)
    if not cases:
        return None
    rows = rows.assign(control=rows["control"].eq(True))
    names = order(rows.loc[rows["case"].isin(cases), "estimator"])
    figure, grid = panels(len(cases), 2.4, 0.7, COLUMNS)
    low = in_column()  # the panels: they have less room for a title and a label
    lost = [
        f"{problem} (fewer than {FEWEST} estimators)"
        for problem in dict.fromkeys(cells["problem"])
        if problem not in set(rows.loc[rows["case"].isin(cases), "problem"])
    ]
    where: dict[str, list[str]] = {}
    for i, (axes, case) in enumerate(zip(grid.flat, cases, strict=False)):
        mine = rows[rows["case"] == case]
        _panel(axes, mine, cost.column, names)
        for note in missing(costed(cells[cells["case"] == case]), ["angle", cost.column]):
            where.setdefault(note, []).append(short_title(case))
        itself = mine["truth"].astype(str).str.contains("unroll").any()
        parts = [short_title(case), *["(truth: float64 unroll)"] * int(itself)]
        axes.set_title((" " if low else "\n").join(parts), loc="left", fontsize=7.5)
        axes.set(yscale="log", ylim=(FLOOR / 2, 4))
        _axis(axes, mine[cost.column], cost)
        axes.grid()
        better(axes, "down left")
        if i + grid.shape[1] >= len(cases):
            axes.set_xlabel(cost.label, fontsize=7)
    error, floor = r"$\|\hat g-\hat g_{\rm true}\|$", f"at the floor: {FLOOR:.0e} or less".replace("e-0", "e-")
    for axes in grid[:, 0]:
        axes.set_ylabel(f"direction error:\n{error}" if low else f"direction error: {error}\n({floor})", fontsize=7)
    bases = order({registered(n) for n in names})
    handles = [handle(n, bases, line=False) for n in bases]
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="nothing is better in both"))
    lost += [f"{note} on {', '.join(places)}" for note, places in where.items()]
    if dtype:
        title_above(figure, dtype.removeprefix(", "))
    notes = [
        "small, faint: each seed; large: the median. The error is the distance between unit vectors: 1.41 across, 2 the wrong way. An "
        "estimator that does not apply to a problem is absent from its panel. Controls are on no front. " + cost.note
    ]
    if low:
        notes.append(f"direction errors {floor}")
    if any(budget_of(n) for n in names):
        notes.append(
            "numbers beside points, joined by thin lines: the setting of an estimator that was measured with several"
        )
    alike = order({registered(n) for n in names if n != registered(n) and not budget_of(n)})
    if alike:
        notes.append(f"several settings, not told apart here: {', '.join(alike)}")
    legend_below(figure, handles, 5, [*notes, *not_shown([*lost, *others])])
    return figure


def _axis(axes: Axes, values: pd.Series, cost: Cost) -> None:
    if not cost.zero:
        axes.set_xscale("log")
        low, high = log_limits(float(values.min()), float(values.max()))
        axes.set_xlim(low, high)
        if high / low < 30:  # matplotlib would label every tenth of a decade
            ticks = log_ticks(low, high)
            axes.set_xticks(ticks, [f"{t:g}" if t < 1e4 else _scientific(t) for t in ticks])
            axes.set_xticks([], minor=True)
        return
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    top = float(values.max())
    ticks = [0.0, *(10.0**k for k in range(int(np.floor(np.log10(max(top, 1)))) + 1))]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlim(-0.4, 2 * max(top, 1))


def _scientific(value: float) -> str:
    digits, _, power = f"{value:.0e}".partition("e")
    return rf"${digits}\times10^{{{int(power)}}}$"


def one_case_a_problem(rows: pd.DataFrame) -> list[str]:
    """One case a problem: of a sweep the hardest but one."""
    chosen = []
    for _, mine in rows.groupby("problem", sort=False):
        mine = mine[mine.groupby("case")["estimator"].transform("nunique") >= min(FEWEST, rows["estimator"].nunique())]
        cases = list(dict.fromkeys(mine["case"]))
        if cases:
            chosen.append(cases[max(len(cases) - 2, 0)])
    return chosen


def _panel(axes: Axes, rows: pd.DataFrame, x: str, names: list[str]) -> None:
    y = "direction_distance"
    medians = rows.groupby("estimator")[[x, y]].median()
    medians[y] = floored(medians[y], FLOOR)
    controls = set(rows.loc[rows["control"], "estimator"])
    able = medians[(medians[x] > 0) & ~medians.index.isin(list(controls))]
    front = pareto(able, x, y)
    axes.step(front[x], front[y], where="post", color="#999999", linewidth=0.9, zorder=1, gid="front")
    for base in order({registered(n) for n in rows["estimator"]}):
        several = [n for n in order(rows["estimator"]) if registered(n) == base and budget_of(n)]
        at = medians.loc[several]
        if len(several) > 1:
            axes.plot(at[x], at[y], color=look(base).color, linewidth=0.6, alpha=0.6, zorder=1.5)
        for i, name in enumerate(several):
            axes.annotate(
                budget_of(name), (at.loc[name, x], at.loc[name, y]), xytext=(0, -5 if i % 2 else 4), textcoords="offset points",
                fontsize=6, color="#444444", ha="center", va="top" if i % 2 else "bottom", gid="setting",
            )  # fmt: skip
    for name in order(rows["estimator"]):
        style, mine, at = look(name, names), rows[rows["estimator"] == name], medians.loc[name]
        axes.scatter(
            mine[x], floored(mine[y], FLOOR), s=area(style.marker, 6), color=style.color, marker=style.marker, alpha=0.45,
            linewidths=0.3, zorder=2,
        )  # fmt: skip
        axes.scatter(
            at[x], at[y], s=area(style.marker, 32), color=style.color, marker=style.marker, edgecolors="white", linewidths=0.5,
            zorder=3, gid=name,
        )  # fmt: skip


def pareto(points: pd.DataFrame, cost: str, error: str) -> pd.DataFrame:
    """The rows that no other row beats in both columns, by rising cost."""
    best, kept = np.inf, []
    for name, row in points.sort_values([cost, error]).iterrows():
        if row[error] < best:
            best = row[error]
            kept.append(name)
    return points.loc[kept]


def short_title(case: str) -> str:
    """Short: a swept problem keeps the setting that is swept."""
    name, _, settings = case.partition(" (")
    return f"{name} (κ={settings[5:-1]})" if settings.startswith("cond=") and "," not in settings else name
